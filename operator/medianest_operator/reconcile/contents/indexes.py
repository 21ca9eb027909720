"""The state of the application's indexes: the critical ones, invalid ones, duplicates."""

from __future__ import annotations

from medianest_operator.api import status as api
from medianest_operator.api.conditions import Condition, Reason
from medianest_operator.hardening.naming import is_own
from medianest_operator.health.indexes import IndexHealth
from medianest_operator.reconcile.concern import Concern, Needs, Outcome, Verdict
from medianest_operator.reconcile.contents.schema import Schema
from medianest_operator.reconcile.context import Run


async def observe(run: Run) -> Outcome:
    """Judge what was read of the schema; nothing is said of a database that has none yet."""
    schema = run.facts.require(Schema)
    if schema.history.version is None:
        return Outcome()
    health = application_indexes(schema.indexes)
    return Outcome(
        conditions={Condition.INDEXES_HEALTHY: verdict(health)},
        status={
            "indexes": api.Indexes(
                total=health.total,
                critical=f"{health.critical_present}/{health.critical_expected}",
                missing=list(health.missing),
                invalid=list(health.invalid),
                duplicate=[item.name for item in health.duplicates],
                foreign_keys_without_index=[item.name for item in health.unindexed_foreign_keys],
            )
        },
    )


def verdict(health: IndexHealth) -> Verdict:
    """Whether the indexes are healthy, and what to do where they aren't."""
    if health.missing:
        message = (
            f"Critical indexes are missing or invalid: {', '.join(health.missing)}. The application's queries scan"
            " whole tables; create them again as the migrations do, with CREATE INDEX CONCURRENTLY."
        )
        return Verdict("False", Reason.INDEXES_MISSING, message)
    if health.invalid:
        message = (
            f"Invalid indexes: {', '.join(health.invalid)}. They cost writes and serve no query; REINDEX INDEX"
            " CONCURRENTLY or drop them."
        )
        return Verdict("False", Reason.INDEXES_INVALID, message)
    message = f"All {health.critical_expected} critical indexes of {health.total} exist and are valid."
    if health.duplicates:
        names = ", ".join(f"{item.name} (of {item.duplicate_of})" for item in health.duplicates)
        return Verdict("True", Reason.INDEXES_DUPLICATE, f"{message} Duplicates that could be dropped: {names}.")
    return Verdict("True", Reason.INDEXES_HEALTHY, message)


def application_indexes(health: IndexHealth) -> IndexHealth:
    """Without the operator's own indexes that aren't complete: the hardening option reports them, and fixes them."""
    return health.model_copy(update={"invalid": tuple(name for name in health.invalid if not is_own(name))})


CONCERN = Concern("indexes", Needs.SCHEMA, observe, observe, conditions=(Condition.INDEXES_HEALTHY,), calm=True)
