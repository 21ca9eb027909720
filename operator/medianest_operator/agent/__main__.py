"""The command line of `medianest-dbctl`.

Exit codes, which the Jobs' `podFailurePolicy` relies on:

- 0: done (for `migrate`: everything up to the target is applied; for `harden`: what the schema doesn't have yet is
  waited for; for `backup`: it is in all repositories; for `verify`, `restore` and `import`: it is verified);
- 1: failed, and would fail again unchanged: the source, the target or the database needs a person (Stalled);
- 2: could not be done now (no connection, a lock not granted, a lost connection, stopped by a signal, a repository
  that doesn't answer): try again.

A wrong command line exits 1 as well, where click by itself would exit 2: no retry helps it.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from medianest_operator.agent import backup as backup_commands
from medianest_operator.agent.process import EXIT_TRANSIENT, TEMPORARY, duration, finish, say, stop_on_sigterm
from medianest_operator.api.migrations import OnFailure, Rehearse
from medianest_operator.api.run_options import RunOptions
from medianest_operator.migrations.run.options import Workbench

if TYPE_CHECKING:
    from psycopg import Connection

    from medianest_operator.migrations.source import Migration
    from medianest_operator.results.migration import MigrationResult

EXIT_FAILED = 1
_PROGRAMS = Path("/usr/lib/postgresql/15/bin")
# What typer itself exits with for a wrong command line.
_TYPER_USAGE = 2

app = typer.Typer(
    name="medianest-dbctl",
    help="Migrations, plan, hardening, indexes, catalog and backups of a MediaNest database.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    # What is wrong with a command line is its last line, which is what people get to see of a Job that left no result.
    rich_markup_mode=None,
)


SourceOption = Annotated[
    Path | None,
    typer.Option(help="Folder with migrations: Prisma's layout, or a mounted ConfigMap with <name>.sql keys."),
]
BundledOption = Annotated[bool, typer.Option("--bundled", help="Take the migrations that come with the operator.")]
TargetOption = Annotated[str | None, typer.Option(help="Stop after this migration.")]
ConnectTimeoutOption = Annotated[
    str, typer.Option(help="How long to wait for the server to let us in.", metavar="DURATION")
]
ResultFileOption = Annotated[
    Path | None, typer.Option(help="Write the result as JSON of at most 4096 bytes, as /dev/termination-log.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def migrate(
    source: SourceOption = None,
    bundled: BundledOption = False,
    target: TargetOption = None,
    on_failure: Annotated[
        OnFailure, typer.Option(help="Rollback goes back to where the run began and verifies it; Halt stops.")
    ] = OnFailure.ROLLBACK,
    rehearse: Annotated[
        Rehearse, typer.Option(help="Try the run on a copy first; Auto copies no data above --rehearsal-limit.")
    ] = Rehearse.AUTO,
    rehearsal_limit: Annotated[
        int, typer.Option(help="Size of the database up to which Auto copies the data.", metavar="BYTES")
    ] = 2 << 30,
    allow_destructive: Annotated[
        bool, typer.Option("--allow-destructive", help="Let statements run that lose data.")
    ] = False,
    lock_timeout: Annotated[
        str, typer.Option(help="How long a statement waits for a table's lock; 0 indefinitely.", metavar="DURATION")
    ] = "10s",
    statement_timeout: Annotated[
        str, typer.Option(help="How long a statement may take; 0 indefinitely.", metavar="DURATION")
    ] = "0",
    run_lock_timeout: Annotated[
        str, typer.Option(help="How long to wait for another run to end.", metavar="DURATION")
    ] = "10s",
    connect_timeout: ConnectTimeoutOption = "60s",
    repository: Annotated[
        list[str] | None,
        typer.Option(help="Where the pre-migration backup goes: NAME=URL, file:// or s3://. None without it."),
    ] = None,
    namespace: Annotated[
        str | None, typer.Option(help="The MediaNestDatabase's, under which its backups lie; `local` without it.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="The MediaNestDatabase's name.")] = None,
    recipient: Annotated[
        list[str] | None, typer.Option(help="Encrypt that backup for this public key of age, age1....")
    ] = None,
    identity_file: Annotated[
        Path | None, typer.Option(help="File with age's private key, to read it back.", metavar="FILE")
    ] = None,
    signing_keys: backup_commands.SigningKeysOption = None,
    work_dir: Annotated[
        Path | None, typer.Option(help="Room for the copy that the run is rehearsed on. No rehearsal without it.")
    ] = None,
    sandbox: backup_commands.SandboxOption = None,
    retry: Annotated[str | None, typer.Option(help="Another id lets a source be tried again that failed.")] = None,
    once: Annotated[
        bool, typer.Option("--once", help="Don't try again what failed with the same source and options.")
    ] = False,
    result_file: ResultFileOption = None,
) -> None:
    """Apply what is pending. Connects by PGHOST and its kin, or by DATABASE_URL."""
    from medianest_operator.errors import Interrupted
    from medianest_operator.results.migration import MigrationResult, Reason

    options = RunOptions(
        target=target,
        on_failure=on_failure,
        rehearse=rehearse,
        rehearsal_limit=rehearsal_limit,
        allow_destructive=allow_destructive,
        lock_timeout=duration(lock_timeout),
        statement_timeout=duration(statement_timeout),
        run_lock_timeout=duration(run_lock_timeout) / 1000,
        retry=retry,
        once=once,
    )
    wait = duration(connect_timeout) / 1000
    _check_source_options(source, bundled)
    stop_on_sigterm()
    try:
        keys = tuple(backup_commands.recipients(recipient or [])), tuple(backup_commands.identities(identity_file))
        workbench = _workbench(repository or [], work_dir, namespace, name, *keys, signing_keys)
        workbench = replace(workbench, sandbox=backup_commands.open_sandbox(sandbox))
        result = _migrate(source, options, wait, workbench)
    except Interrupted:
        result = MigrationResult.of(Reason.INTERRUPTED, "The run was asked to stop before it began.")
    finish(result, result_file)


@app.command()
def plan(
    source: SourceOption = None,
    bundled: BundledOption = False,
    target: TargetOption = None,
    as_json: JsonOption = False,
    connect_timeout: ConnectTimeoutOption = "10s",
) -> None:
    """Show what `migrate` would do. Changes nothing; exits 1 if something is in the way or a statement is refused."""
    import psycopg

    from medianest_operator.agent import show
    from medianest_operator.migrations.history import read_history
    from medianest_operator.migrations.lint.lint import Severity, lint, read_table_sizes
    from medianest_operator.migrations.plan import make_plan

    _check_source_options(source, bundled)
    migrations = _load_or_exit(source)
    try:
        with _connect_or_exit(connect_timeout, "plan") as connection:
            # Somebody who has a table locked must not keep the command waiting indefinitely.
            connection.execute(
                "SELECT set_config('lock_timeout', '10s', false) WHERE current_setting('lock_timeout') = '0'"
            )
            result = make_plan(migrations, read_history(connection), target)
            findings = lint(result.pending, read_table_sizes(connection) if result.pending else {})
    except psycopg.Error as error:
        _fail(f"the plan could not be made: {error}", TEMPORARY)
    say(show.plan_as_json(result, findings) if as_json else show.plan_as_table(result, migrations, findings))
    if result.blocker is not None or any(finding.severity is Severity.REFUSED for finding in findings):
        raise typer.Exit(EXIT_FAILED)


@app.command()
def harden(
    options: Annotated[str, typer.Option(help="spec.hardening as JSON.", metavar="JSON")],
    app_role: Annotated[str, typer.Option(help="The role that the application logs in as.")] = "medianest_app",
    connect_timeout: ConnectTimeoutOption = "60s",
    result_file: ResultFileOption = None,
) -> None:
    """Add and remove the operator's own indexes, constraints, columns and policies, as the options want."""
    from medianest_operator.agent.harden import harden as run
    from medianest_operator.errors import Interrupted
    from medianest_operator.results.hardening import HardeningResult, Reason

    wait = duration(connect_timeout) / 1000
    stop_on_sigterm()
    try:
        result = run(options, app_role, wait, say)
    except Interrupted:
        result = HardeningResult.of(Reason.INTERRUPTED, "The run was asked to stop before it began.")
    finish(result, result_file)


@app.command()
def resolve(connect_timeout: ConnectTimeoutOption = "10s") -> None:
    """Accept the database as it is after a run whose rollback could not be verified: writers may connect again."""
    from medianest_operator.migrations.errors import RunError
    from medianest_operator.migrations.journal import Journal
    from medianest_operator.migrations.rollback import recovery

    with _connect_or_exit(connect_timeout, "resolve") as connection:
        try:
            resolved = recovery.resolve(connection, Journal(connection))
        except RunError as error:
            _fail(f"not resolved: {error}", TEMPORARY)
    say(f"resolved {resolved}" if resolved else "nothing to resolve")


@app.command()
def indexes(as_json: JsonOption = False, connect_timeout: ConnectTimeoutOption = "10s") -> None:
    """Show the indexes' health, each verdict with its evidence and the statement that fixes it.

    Which indexes are unused only the operator says, which asks every instance. Exits 1 if no migration was applied, a
    critical index is missing, any index is invalid, or a collation's version has changed.
    """
    import contextlib

    import psycopg

    from medianest_operator.agent import show
    from medianest_operator.hardening.naming import is_own
    from medianest_operator.health.indexes.reading import read
    from medianest_operator.health.indexes.report import judge, read_first
    from medianest_operator.migrations.history import read_history
    from medianest_operator.migrations.indexes import critical_indexes, is_bundled, made_indexes
    from medianest_operator.migrations.journal import Journal

    with _connect_or_exit(connect_timeout, "indexes") as connection:
        history = read_history(connection)
        if history.version is None:
            name = connection.info.dbname
            words = "Name the application's with DATABASE_URL or PGDATABASE."
            _fail(f"No migration was applied to database {name}, so nothing is expected of it. {words}", EXIT_FAILED)
        recorded = None
        if not is_bundled(history):
            # A database that was never the operator's has no journal.
            with contextlib.suppress(psycopg.errors.UndefinedTable, psycopg.errors.InsufficientPrivilege):
                known = Journal(connection).version(history.version)
                recorded = known[1] if known else None
        critical, made = critical_indexes(), made_indexes(history, recorded)
        report = judge(read(connection, read_first(critical, made)), critical, made, kept=is_own)
    say(report.model_dump_json(indent=2) if as_json else show.index_report(report))
    if not report.is_healthy:
        raise typer.Exit(EXIT_FAILED)


@app.command()
def catalog(
    as_json: Annotated[bool, typer.Option("--json", help="Print canonical JSON (the default).")] = False,
    fingerprint: Annotated[bool, typer.Option("--fingerprint", help="Print the JSON's SHA-256 instead.")] = False,
    connect_timeout: ConnectTimeoutOption = "10s",
) -> None:
    """Print the database's catalog: every table, column, index, function, grant and so on."""
    from medianest_operator.postgres.catalog import read_catalog

    if as_json and fingerprint:
        raise typer.BadParameter("give at most one of --json and --fingerprint")
    with _connect_or_exit(connect_timeout, "catalog") as connection:
        found = read_catalog(connection)
    say(found.fingerprint() if fingerprint else found.to_json())


@app.command("sandbox")
def serve_sandbox(
    folder: Annotated[Path, typer.Option(help="Shared with the commands that are given --sandbox.", metavar="DIR")],
) -> None:
    """Run throwaway servers for other commands, in a container that has nothing worth taking. Ends when asked to."""
    from medianest_operator.postgres.sandbox import end_on_sigterm, serve

    end_on_sigterm()
    serve(folder, say)


@app.command("blank-cluster", hidden=True)
def make_blank_cluster(folder: Path) -> None:
    """Make what throwaway servers begin with, where MEDIANEST_BLANK_CLUSTER names it."""
    from medianest_operator.postgres.throwaway import make_blank

    make_blank(folder)


@app.command("copy-primary", hidden=True)
def copy_the_primary(
    datadir: Annotated[Path, typer.Option()],
    waldir: Annotated[Path, typer.Option()],
    connstring: Annotated[str, typer.Option()],
    scope: Annotated[str, typer.Option()] = "",
    role: Annotated[str, typer.Option()] = "",
) -> None:
    """Make a replica whose log has a volume of its own. Patroni gives the options (its manual, Building replicas)."""
    from medianest_operator.agent.replica import copy_primary

    copy_primary(datadir, waldir, connstring)


@app.command("read-volume")
def read_the_volume(
    folder: Annotated[Path, typer.Argument(help="The data directory of a server that doesn't run.", metavar="DIR")],
    programs: Annotated[Path, typer.Option(help="Folder of PostgreSQL's programs.", metavar="DIR")] = _PROGRAMS,
    result_file: ResultFileOption = None,
) -> None:
    """Show how far the data of a stopped server go: its timeline, and the end of its log. Changes nothing."""
    from medianest_operator.agent.volume import UnreadableVolume, read_volume
    from medianest_operator.results.text import cut
    from medianest_operator.results.volume import VolumeState

    try:
        found = read_volume(folder, programs)
    except (UnreadableVolume, OSError) as error:
        message = cut(f"{folder} can't be read: {error}")
        if result_file is not None:
            result_file.write_text(VolumeState(message=message).to_json(), encoding="utf-8")
        _fail(message, EXIT_FAILED)
    say(found.message)
    if result_file is not None:
        result_file.write_text(found.to_json(), encoding="utf-8")


backup_commands.register(app)


def main() -> None:
    """The entry point; a wrong command line exits 1, because 2 means "try again" to the Jobs."""
    try:
        app()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0
        sys.exit({_TYPER_USAGE: EXIT_FAILED, TEMPORARY: EXIT_TRANSIENT}.get(code, code))


def _migrate(source: Path | None, options: RunOptions, wait: float, workbench: Workbench) -> MigrationResult:
    from medianest_operator.migrations.run.run import MigrationRun
    from medianest_operator.migrations.source import SourceError
    from medianest_operator.postgres.connect import ConnectError, connect, conninfo_from, libpq_environment
    from medianest_operator.results.migration import MigrationResult, Reason

    try:
        migrations = _load(source)
        conninfo = conninfo_from()
    except (SourceError, ValueError) as error:
        return MigrationResult.of(Reason.INVALID_SOURCE, f"{_left_locked_out()}Nothing was changed: {error}.")
    try:
        connection = connect(conninfo, wait, say, "migrate")
    except ConnectError as error:
        return MigrationResult.of(Reason.CONNECT_FAILED, f"No connection within {wait:g} s: {error}")
    workbench = replace(workbench, environment=libpq_environment(connection))
    with connection:
        connection.add_notice_handler(lambda diag: say(f"{diag.severity}: {diag.message_primary}"))
        return MigrationRun(connection, migrations, options, say, workbench).run()


def _left_locked_out() -> str:
    """What a run that can't begin has to say first, where an earlier one has locked the application out; empty also
    where the server can't be asked."""
    import psycopg

    from medianest_operator.migrations.errors import access
    from medianest_operator.migrations.journal import Journal
    from medianest_operator.postgres.connect import ConnectError, connect, conninfo_from

    try:
        with connect(conninfo_from(), 0, lambda line: None, "migrate") as connection:
            closed = Journal(connection).locks_out()
    except (ConnectError, ValueError, psycopg.Error):
        return ""
    return f"{access(True)} Only a run with a valid source can finish the one that did it. " if closed else ""


def _workbench(
    repositories: list[str],
    work_dir: Path | None,
    namespace: str | None,
    name: str | None,
    recipients: tuple[str, ...],
    identities: tuple[str, ...],
    signing_keys: Path | None,
) -> Workbench:
    if (namespace is None) != (name is None):
        raise typer.BadParameter("give --namespace and --name together")
    return Workbench(
        repositories=tuple(backup_commands.open_repositories(repositories, signing_keys)),
        scratch=work_dir,
        database=(namespace, name) if namespace is not None and name is not None else None,
        recipients=recipients,
        identities=identities,
    )


def _load(source: Path | None) -> tuple[Migration, ...]:
    from medianest_operator.migrations.bundled import bundled_migrations
    from medianest_operator.migrations.source import migrations_from_directory

    return bundled_migrations() if source is None else migrations_from_directory(source)


def _load_or_exit(source: Path | None) -> tuple[Migration, ...]:
    from medianest_operator.migrations.source import SourceError

    try:
        return _load(source)
    except SourceError as error:
        _fail(str(error), EXIT_FAILED)


def _connect_or_exit(timeout: str, purpose: str) -> Connection[Any]:
    from medianest_operator.postgres.connect import ConnectError, connect, conninfo_from

    wait = duration(timeout) / 1000
    try:
        return connect(conninfo_from(), wait, lambda line: typer.echo(line, err=True), purpose)
    except ValueError as error:
        _fail(f"DATABASE_URL: {error}", EXIT_FAILED)
    except ConnectError as error:
        _fail(f"no connection within {wait:g} s: {error}", TEMPORARY)


def _check_source_options(source: Path | None, bundled: bool) -> None:
    if bundled == (source is not None):
        raise typer.BadParameter("give exactly one of --source DIR and --bundled")


def _fail(message: str, code: int) -> NoReturn:
    typer.echo(message, err=True)
    raise typer.Exit(code)


if __name__ == "__main__":
    main()
