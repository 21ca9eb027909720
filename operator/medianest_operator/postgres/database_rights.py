"""Rights on a whole database: who may do what there, who let them, and the statements that give the same again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal, LiteralString

from psycopg import sql

Right = Literal["CONNECT", "CREATE", "TEMPORARY"]
"""All that there are on a database (PostgreSQL manual, table 5.2)."""
_WORDS: Final[dict[Right, LiteralString]] = {"CONNECT": "CONNECT", "CREATE": "CREATE", "TEMPORARY": "TEMPORARY"}

SELECT_RIGHTS: LiteralString = """
SELECT pg_catalog.pg_get_userbyid(x.grantor)::text, x.privilege_type, x.is_grantable, x.grantor = d.datdba,
       CASE x.grantee WHEN 0 THEN NULL ELSE pg_catalog.pg_get_userbyid(x.grantee)::text END
  FROM pg_catalog.pg_database d, pg_catalog.aclexplode(d.datacl) WITH ORDINALITY x
 WHERE d.datname = %s AND x.grantee <> d.datdba ORDER BY x.ordinality
"""
"""The columns of `DatabaseRight`. A database whose rights nobody changed since its creation has none here."""


@dataclass(frozen=True, slots=True)
class DatabaseRight:
    """One right of one role.

    Attributes:
        grantor: who granted it.
        right: to do what.
        is_grantable: whether it may be passed on.
        by_owner: whether the grantor owns the database.
        grantee: who has it; `None`: everybody.
    """

    grantor: str
    right: Right
    is_grantable: bool
    by_owner: bool
    grantee: str | None = None


@dataclass(frozen=True, slots=True)
class Grant:
    """One statement that gives a right again.

    Attributes:
        right: which one.
        role: who has to run it; `None`: the owner, for whom a superuser acts as well.
        statement: the GRANT.
    """

    right: DatabaseRight
    role: str | None
    statement: sql.Composed


def grants(rights: Sequence[DatabaseRight], database: str) -> Iterator[Grant]:
    """The statements in an order in which each grantor may grant already what it passes on.

    A right whose grantor has it from nobody there is granted by the owner.
    """
    open_, given = list(rights), set[tuple[str | None, Right]]()
    while open_:
        able = [item for item in open_ if item.by_owner or (item.grantor, item.right) in given]
        for item in able or open_[:1]:
            yield Grant(item, None if item.by_owner or not able else item.grantor, _statement(item, database))
            open_.remove(item)
            if item.is_grantable:
                given.add((item.grantee, item.right))


def _statement(item: DatabaseRight, database: str) -> sql.Composed:
    whom = sql.SQL("PUBLIC") if item.grantee is None else sql.Identifier(item.grantee)
    right = sql.SQL(_WORDS[item.right])
    statement = sql.SQL("GRANT {} ON DATABASE {} TO {}").format(right, sql.Identifier(database), whom)
    return statement + sql.SQL(" WITH GRANT OPTION") if item.is_grantable else statement
