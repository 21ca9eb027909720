"""Whether a run may begin: what lint found, how it would be rolled back, and whether its backup could be restored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, LiteralString

from psycopg import Connection
from psycopg.rows import tuple_row

from medianest_operator.api.run_options import RunOptions
from medianest_operator.migrations import history as prisma
from medianest_operator.migrations.errors import RunError
from medianest_operator.migrations.lint.lint import Finding, Severity, lint, read_table_sizes
from medianest_operator.migrations.rollback.clearing import dependents
from medianest_operator.migrations.rollback.lockout import obstacle
from medianest_operator.migrations.run.checks import read_holders
from medianest_operator.migrations.run.evidence import application_catalog
from medianest_operator.migrations.run.parts import Part, RevertPlan, Strategy, make_parts, parse_all, plan_revert
from medianest_operator.migrations.run.stages import Admitted, Opened
from medianest_operator.migrations.run.work import Work
from medianest_operator.migrations.script import Kind
from medianest_operator.migrations.traces import Trace
from medianest_operator.postgres.catalog import Catalog
from medianest_operator.results.migration import FailedMigration, Reason
from medianest_operator.results.text import first_three

# PostgreSQL's own, and those of extensions, which no catalog lists.
_BUILT_IN: LiteralString = """
SELECT DISTINCT p.proname::text FROM pg_catalog.pg_proc p
 WHERE p.proname = ANY(%s)
   AND (p.pronamespace = 'pg_catalog'::pg_catalog.regnamespace
        OR EXISTS (SELECT FROM pg_catalog.pg_depend d
                    WHERE d.classid = 'pg_catalog.pg_proc'::pg_catalog.regclass AND d.objid = p.oid
                      AND d.deptype = 'e'))
"""


def refusal(findings: Sequence[Finding], options: RunOptions) -> RunError | None:
    """What ends the run before it begins; `None` where nothing does.

    A statement that is refused counts before one that loses data: allowing the latter would not help.
    """
    refused = [finding for finding in findings if finding.severity is Severity.REFUSED]
    if not refused and not options.allow_destructive:
        refused = [finding for finding in findings if finding.severity is Severity.DESTRUCTIVE]
    if not refused:
        return None
    first = refused[0]
    destructive = first.severity is Severity.DESTRUCTIVE
    advice = " Set spec.migrations.allowDestructive to true if that is meant." if destructive else ""
    more = f" ({len(refused) - 1} more like it in the log.)" if len(refused) > 1 else ""
    return RunError(
        Reason.DESTRUCTIVE if destructive else Reason.STATEMENT_REFUSED,
        f"{first}{advice}{more} Nothing was changed.",
        FailedMigration(
            migration=first.migration,
            # 0 stands for the file as a whole.
            statement=first.statement or None,
            line=first.line or None,
            message=first.message,
        ),
    )


def check_restorable(
    connection: Connection[Any], parts: Sequence[Part], revert: RevertPlan, *, whole: bool = False
) -> None:
    """Where no copy says whether the backup leads back, refuse what is known to be in its way.

    Args:
        whole: on a copy the restore dropped all that is the role's own: what others built on that without letting this
            role read it is in no copy.

    Raises:
        RunError: a restore would drop what others built on the tables.
    """
    if revert.strategy is not Strategy.RESTORE:
        return
    statements = [statement for part in parts for statement in part.statements]
    inert = (Kind.BEGINS, Kind.COMMITS)
    # Rows come back without the tables being dropped.
    on_rows = not whole and all(s.only_rows or s.kind in inert or s.trace is Trace.NOTHING for s in statements)
    built = dependents(connection, on_rows=on_rows)
    if built:
        raise RunError(
            Reason.ROLLBACK_IMPOSSIBLE,
            f"This run could not be rolled back: {revert.why}, and restoring the backup would drop what others built on"
            f" the tables: {first_three(built, ', ')}. Nothing was changed. Let the run be rehearsed"
            " (spec.migrations.rehearse), which finds out whether another rollback leads back, or set"
            " spec.migrations.onFailure to Halt.",
        )


def lint_files(work: Work) -> None:
    """Look at what the files say, before any of it runs."""
    with work.clock.timed("lint"):
        sizes = read_table_sizes(work.connection)
        work.tables = {name: size for name, size in sizes.items() if name != prisma.TABLE}
        findings = lint(work.plan.pending, work.tables)
    for finding in findings:
        work.report(f"{finding.severity}: {finding}")
    work.lint_warnings = tuple(str(finding) for finding in findings if finding.severity is Severity.WARNING)
    refused = refusal(findings, work.options)
    if refused is not None:
        raise refused


def admit(work: Work) -> Admitted:
    """Cut the run into parts, and choose how each would be rolled back."""
    parts = make_parts(parse_all(work.plan.pending), together=not work.halts)
    if work.halts:
        return Admitted(parts, RevertPlan(Strategy.NONE))
    revert = plan(work, parts, application_catalog(work.connection))
    return Admitted(parts, possible(work, revert), read_holders(work.connection))


def plan(
    work: Work, parts: Sequence[Part], catalog: Catalog, *, rehearsed: bool = True, with_rows: bool = True
) -> RevertPlan:
    """How this run would be rolled back, as `plan_revert` says it."""
    made = sorted({name for part in parts for statement in part.statements if (name := statement.makes) is not None})
    rows = work.connection.cursor(row_factory=tuple_row).execute(_BUILT_IN, (made,)).fetchall() if made else ()
    built_in = frozenset(row[0] for row in rows)
    return plan_revert(parts, catalog, rehearsed=rehearsed, with_rows=with_rows, built_in=built_in)


def possible(work: Work, revert: RevertPlan) -> RevertPlan:
    """The same plan, if this run can go through with it. Raises RunError where it can't."""
    if revert.locked_out and work.tables:
        problem = obstacle(work.connection)
        if problem is None and revert.strategy is Strategy.RESTORE:
            problem = work.workbench.no_restore
        if problem:
            raise RunError(
                Reason.ROLLBACK_IMPOSSIBLE,
                f"This run could not be rolled back without locking writers out, since {revert.why}; and they"
                f" can't be locked out, or nothing could be restored: {problem}. Nothing was changed. Put such"
                " statements into a migration of their own, or set spec.migrations.onFailure to Halt.",
            )
    return revert


def unrehearsed(work: Work, opened: Opened, catalog: Catalog) -> Opened:
    """The run with a rollback that leads back without having been tried."""
    revert = possible(work, plan(work, opened.parts, catalog, rehearsed=False))
    check_restorable(work.connection, opened.parts, revert)
    return replace(opened, revert=revert)
