"""`onFailure: Halt`: what was applied before a failure stays, and so does what the file itself left."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from psycopg import Connection

from medianest_operator.migrations import history as prisma
from medianest_operator.migrations.errors import ADVICE, RunError
from medianest_operator.migrations.run.apply import Failure
from medianest_operator.results.migration import AppliedMigration, Outcome, Reason


def halt(connection: Connection[Any], failure: Failure, applied: Sequence[AppliedMigration]) -> RunError:
    """Record a failure as Prisma's deploy does, and tell what the run ends with."""
    kept = ", ".join(item.name for item in applied)
    earlier = f" Applied before it and kept: {kept}." if kept else ""
    if failure.row_id is None:
        final = failure.reason.outcome is Outcome.FAILED
        if final:
            with connection.transaction():
                row_id = prisma.insert_started(connection, failure.planned.migration, failure.started_at)
                prisma.mark_failed(connection, row_id, failure.logs)
                prisma.mark_rolled_back(connection, row_id)
        return RunError(
            failure.reason,
            f"{failure.text} Nothing of this migration is left in the database.{earlier}"
            f" {ADVICE if final else 'Trying again.'}",
            failure.failed,
        )
    prisma.mark_failed(connection, failure.row_id, failure.logs)
    name = failure.planned.name
    return RunError(
        Reason.PARTIALLY_APPLIED,
        f"{failure.text} It doesn't run in a transaction, so what it did before may have stayed"
        f" ({failure.completed} of {len(failure.planned.script.statements)} statements went through).{earlier}"
        f" Remove or complete that, then record it with `prisma migrate resolve --rolled-back {name}` or"
        f" `--applied {name}`.",
        failure.failed,
    )
