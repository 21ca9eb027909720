"""The row of a query that has one whatever it finds: a count, a setting, a function's answer."""

from __future__ import annotations

from typing import TypeVar

from psycopg import AsyncCursor, Cursor

Row = TypeVar("Row")


class NoRow(RuntimeError):
    """A query that always has a row had none."""


def only(cursor: Cursor[Row]) -> Row:
    """The one row of the query that a cursor has run.

    Raises:
        NoRow: it has none.
    """
    return _there(cursor.fetchone())


async def only_async(cursor: AsyncCursor[Row]) -> Row:
    """As `only`."""
    return _there(await cursor.fetchone())


def _there(row: Row | None) -> Row:
    if row is None:
        raise NoRow("a query that always has a row had none")
    return row
