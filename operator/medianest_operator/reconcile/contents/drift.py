"""Whether the schema is still what its migrations made it: cheaply on every run, in full when something moved."""

from __future__ import annotations

from medianest_operator.hardening.fingerprint import without_hardening
from medianest_operator.migrations.history import TABLE, History
from medianest_operator.migrations.journal import read_version
from medianest_operator.postgres.catalog import difference, read_catalog_async
from medianest_operator.postgres.sessions import Connection
from medianest_operator.reconcile.context import Run

FULL_EVERY = 3600.0
"""Seconds until the catalogs are compared although nothing seems to have moved."""
_LONGEST = 10
_LONGEST_LINE = 300


async def observe(run: Run, connection: Connection, history: History, traces: str | None) -> tuple[str, ...] | None:
    """What no migration has made, in words; `None` where nobody recorded what the version should look like.

    Args:
        traces: of the definitions as they are (`read_traces_async`).
    """
    if history.version is None:
        return ()
    token = (history.version, traces)
    memory = run.services.memory
    known = memory.recall(run.key, "drift", token, FULL_EVERY)
    if known is not None:
        found: tuple[str, ...] = known
        return found
    expected = await read_version(connection, history.version)
    if expected is None:
        return None
    # As `migrations.versions.schema_of`, whose module needs what only a run has.
    live = (await read_catalog_async(connection)).without_restored().without_table(TABLE)
    live = without_hardening(live).without_privileges()
    lines = tuple(_in_words(line) for line in difference(expected, live))
    if len(lines) > _LONGEST:
        lines = (*lines[: _LONGEST - 1], f"and {len(lines) - _LONGEST + 1} more")
    memory.keep(run.key, "drift", token, lines)
    return lines


def _in_words(line: str) -> str:
    """A definition may be of any length; the status has room for its beginning."""
    words = " ".join(line.replace(" is not expected", " is not part of any migration").split())
    return words if len(words) <= _LONGEST_LINE else f"{words[: _LONGEST_LINE - 1]}…"
