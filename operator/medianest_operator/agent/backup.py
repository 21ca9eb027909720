"""The commands around backups: take, list, verify and restore them, and bring in a running server's database."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medianest_operator.agent.process import TEMPORARY, duration, finish, say, stop_on_sigterm
from medianest_operator.errors import Interrupted

if TYPE_CHECKING:
    from medianest_operator.backups.logical.finding import Wanted
    from medianest_operator.backups.repository.client import Repository
    from medianest_operator.backups.repository.layout import Format, Tier
    from medianest_operator.postgres.sandbox import Sandbox

_SPAN = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}

RepositoryOption = Annotated[
    list[str],
    typer.Option(
        "--repository",
        help="Where backups lie, several times for several: NAME=file:///folder, or"
        " NAME=s3://bucket/prefix?endpoint=https://...&region=...&path_style=true&credentials=/folder&ca=/file.",
        metavar="NAME=URL",
        envvar="MEDIANEST_REPOSITORIES",
    ),
]
NamespaceOption = Annotated[str, typer.Option(help="Of the MediaNestDatabase that the backups are of.")]
NameOption = Annotated[str, typer.Option(help="The MediaNestDatabase's name.")]
IdentifierOption = Annotated[
    str, typer.Option(help="PostgreSQL's own of the server, where several had the name.", metavar="NUMBER")
]
WorkDirOption = Annotated[
    Path, typer.Option(help="Room for the dump and, for a verification, for its copy.", envvar="MEDIANEST_WORK_DIR")
]
IdentityOption = Annotated[
    Path | None,
    typer.Option(
        help="File with age's private key, where backups are encrypted.",
        metavar="FILE",
        envvar="MEDIANEST_IDENTITY_FILE",
    ),
]
SigningKeysOption = Annotated[
    Path | None,
    typer.Option(
        help="Folder whose file `key` signs backups; all in it are believed, and nothing that none of them has signed.",
        metavar="DIR",
        envvar="MEDIANEST_SIGNING_KEYS",
    ),
]
ResultFileOption = Annotated[
    Path | None, typer.Option(help="Write the result as JSON of at most 4096 bytes, as /dev/termination-log.")
]
ConnectTimeoutOption = Annotated[
    str, typer.Option(help="How long to wait for the server to let us in.", metavar="DURATION")
]
WhichOption = Annotated[str, typer.Option("--backup", help="latest, latest-verified, or an id.")]
SandboxOption = Annotated[
    Path | None,
    typer.Option(
        "--sandbox",
        help="Folder shared with `medianest-dbctl sandbox`, which runs the copy's server; a child process without it.",
        metavar="DIR",
    ),
]
JobsOption = Annotated[int, typer.Option(help="Connections that restore at the same time.", min=1, max=16)]

backups_app = typer.Typer(name="backups", help="What backups there are.", no_args_is_help=True, rich_markup_mode=None)


def backup(
    repository: RepositoryOption,
    tier: Annotated[str, typer.Option(help="daily, weekly, monthly or on-demand.")] = "on-demand",
    namespace: NamespaceOption = "",
    name: NameOption = "",
    replica_host: Annotated[
        str | None, typer.Option(help="Host that leads to replicas: one in sync is dumped.")
    ] = None,
    recipient: Annotated[list[str] | None, typer.Option(help="Encrypt for this public key of age, age1....")] = None,
    format: Annotated[
        list[str] | None, typer.Option(help="custom, plain or schema, several times for several.")
    ] = None,
    keep: Annotated[
        list[str] | None, typer.Option(help="How long a tier's backups stay: daily=7d.", metavar="TIER=SPAN")
    ] = None,
    keep_until: Annotated[
        str | None, typer.Option(help="How long this one stays, 2026-12-24T18:00:00Z.", metavar="TIME")
    ] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Restore it once, and compare.")] = False,
    work_dir: Annotated[Path | None, typer.Option(help="Room for the verification.")] = None,
    sandbox: SandboxOption = None,
    identity_file: IdentityOption = None,
    connect_timeout: ConnectTimeoutOption = "60s",
    signing_keys: SigningKeysOption = None,
    result_file: ResultFileOption = None,
) -> None:
    """Back the database up into all repositories, then remove what is too old. Connects as `migrate` does."""
    from medianest_operator.backups.logical.run import BackupOptions, BackupRun
    from medianest_operator.backups.verification.verifying import verify_taken

    if verify and work_dir is None:
        raise typer.BadParameter("--verify needs --work-dir")
    if (namespace == "") != (name == ""):
        raise typer.BadParameter("give --namespace and --name together")
    options = BackupOptions(
        tier=_tier(tier),
        database=(namespace, name) if namespace else None,
        formats=_formats(format),
        recipients=recipients(recipient or []),
        keep=dict(_keep(text) for text in keep or []),
        keep_until=_moment(keep_until) if keep_until else None,
        replica_host=replica_host,
        conninfo=_conninfo(),
        wait=duration(connect_timeout) / 1000,
    )
    opened = open_repositories(repository, signing_keys)
    keys = identities(identity_file)
    stop_on_sigterm()
    run = BackupRun(opened, options, say)
    result = run.run()
    if verify and work_dir is not None and run.origin is not None:
        verify_taken(run.origin, opened, result, work_dir, keys, say, sandbox=open_sandbox(sandbox))
    try:
        run.clean_up(result)
    except Interrupted:
        say("asked to stop: older backups are looked after by the next run")
    finish(result, result_file)


@backups_app.command("list")
def list_backups(
    repository: RepositoryOption,
    namespace: NamespaceOption = "",
    name: NameOption = "",
    signing_keys: SigningKeysOption = None,
    output: Annotated[str, typer.Option("--output", "-o", help="table or json.")] = "table",
) -> None:
    """List the backups of repositories, also those that are damaged or incomplete."""
    from medianest_operator.agent.backup_list import as_json, as_table
    from medianest_operator.backups.logical.finding import Wanted, look

    if output not in ("table", "json"):
        raise typer.BadParameter("--output is table or json")
    problems: list[str] = []
    found = look(open_repositories(repository, signing_keys), Wanted(namespace, name), problems.append)
    if output == "json":
        say(as_json(found))
    else:
        as_table(found, sys.stdout)
    for line in problems:
        typer.echo(line, err=True)
    if found.failures:
        raise typer.Exit(TEMPORARY if found.transient else 1)


def verify(
    repository: RepositoryOption,
    work_dir: WorkDirOption,
    namespace: NamespaceOption = "",
    name: NameOption = "",
    system_identifier: IdentifierOption = "",
    which: WhichOption = "latest",
    sandbox: SandboxOption = None,
    identity_file: IdentityOption = None,
    reread: Annotated[
        str | None,
        typer.Option(help="How long a verified backup may stay unread: then it is read back, 30d.", metavar="SPAN"),
    ] = None,
    signing_keys: SigningKeysOption = None,
    result_file: ResultFileOption = None,
) -> None:
    """Restore a backup into a throwaway server, compare it with its manifest and check its indexes."""
    from medianest_operator.backups.verification.verify import VerifyOptions, VerifyRun

    options = VerifyOptions(
        _wanted(namespace, name, system_identifier),
        which,
        work_dir,
        identities(identity_file),
        reread=span(reread) if reread else None,
        sandbox=open_sandbox(sandbox),
    )
    opened = open_repositories(repository, signing_keys)
    stop_on_sigterm()
    finish(VerifyRun(opened, options, say).run(), result_file)


def restore(
    repository: RepositoryOption,
    work_dir: WorkDirOption,
    namespace: NamespaceOption = "",
    name: NameOption = "",
    system_identifier: IdentifierOption = "",
    which: WhichOption = "latest",
    identity_file: IdentityOption = None,
    jobs: JobsOption = 2,
    create: Annotated[bool, typer.Option("--create", help="Make the database first; refused where it exists.")] = False,
    keep_unequal: Annotated[
        bool,
        typer.Option(help="With --create: leave a database that is not equal, under the name that is reported."),
    ] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse to restore what this role can't bring back as it was.")
    ] = False,
    accept_difference: Annotated[
        list[str] | None,
        typer.Option(help="An object that may differ or be lost, as the refusal names it.", metavar="OBJECT"),
    ] = None,
    accept_unsigned: Annotated[
        bool,
        typer.Option(
            "--accept-unsigned",
            help="Restore a backup that is named by its id although it isn't signed by the present key.",
        ),
    ] = False,
    ask_for_extensions: Annotated[
        bool,
        typer.Option("--ask-for-extensions", help="Give up, and say which, where a superuser has to make some first."),
    ] = False,
    target_time: Annotated[
        str | None, typer.Option(help="Only backups that hold nothing later, 2026-12-24T18:00:00Z.", metavar="TIME")
    ] = None,
    volume_size: Annotated[
        int, typer.Option(help="Of the server's volume: what doesn't fit is refused.", metavar="BYTES", min=0)
    ] = 0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what a restore over PGDATABASE would do, and change nothing.")
    ] = False,
    table: Annotated[
        list[str] | None,
        typer.Option(help="Only this table, with --into-schema: beside what PGDATABASE holds.", metavar="TABLE"),
    ] = None,
    into_schema: Annotated[
        str, typer.Option(help="The schema that is made for the tables.", metavar="NAME", show_default=False)
    ] = "",
    request: Annotated[
        str, typer.Option(help="Whose the schema is: a run that is repeated finds its own again.", hidden=True)
    ] = "",
    connect_timeout: ConnectTimeoutOption = "60s",
    signing_keys: SigningKeysOption = None,
    result_file: ResultFileOption = None,
) -> None:
    """Restore a backup into an empty database, and compare it with the manifest; or some tables beside what is there.

    PGDATABASE names the database.
    """
    from medianest_operator.backups.logical.dry_run import DryRun
    from medianest_operator.backups.logical.restore import RestoreOptions, RestoreRun
    from medianest_operator.backups.logical.tables import TablesRun, TablesWanted

    options = RestoreOptions(
        wanted=_wanted(namespace, name, system_identifier),
        which=which,
        work=work_dir,
        identities=identities(identity_file),
        jobs=jobs,
        create=create,
        keep=keep_unequal,
        strict=strict,
        accepted=accept_difference or (),
        asks=ask_for_extensions,
        accept_unsigned=accept_unsigned,
        conninfo=_conninfo(),
        wait=duration(connect_timeout) / 1000,
        before=_moment(target_time) if target_time else None,
        volume=volume_size,
    )
    if bool(table) != bool(into_schema):
        raise typer.BadParameter("--table and --into-schema go together")
    opened = open_repositories(repository, signing_keys)
    stop_on_sigterm()
    if table:
        wanted = TablesWanted(table, into_schema, request, dry_run)
        finish(TablesRun(opened, options, wanted, say).run(), result_file)
    else:
        finish((DryRun if dry_run else RestoreRun)(opened, options, say).run(), result_file)


def import_database(
    source_file: Annotated[
        Path, typer.Option(help="File with the source's URL, which may have Prisma's parameters.", metavar="FILE")
    ],
    work_dir: WorkDirOption,
    sandbox: SandboxOption = None,
    jobs: JobsOption = 2,
    connect_timeout: ConnectTimeoutOption = "60s",
    result_file: ResultFileOption = None,
) -> None:
    """Bring a running server's database (PostgreSQL 12 to 15) into an empty one, and compare; only reads the source."""
    from medianest_operator.backups.logical.imports import ImportOptions, ImportRun
    from medianest_operator.migrations.bundled.report import differences_from_bundled

    options = ImportOptions(
        source_file,
        work_dir,
        differences_from_bundled,
        jobs,
        _conninfo(),
        duration(connect_timeout) / 1000,
        open_sandbox(sandbox),
    )
    stop_on_sigterm()
    finish(ImportRun(options, say).run(), result_file)


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    for command in (backup, verify, restore):
        app.command()(command)
    app.command("import")(import_database)
    app.add_typer(backups_app)


def open_repositories(texts: Sequence[str], signing_keys: Path | None = None) -> list[Repository]:
    """The repositories of a command line, with the keys that sign what is in them.

    Raises:
        typer.BadParameter: a text is none, two have the same name, or a key can't be used.
    """
    from medianest_operator.backups.repository.client import RepositoryError, open_repository

    try:
        opened = [open_repository(text) for text in texts]
    except RepositoryError as error:
        raise typer.BadParameter(str(error)) from error
    keys = read_signing_keys(signing_keys) if signing_keys else ()
    for repository in opened:
        repository.keys = keys
    if len({item.name for item in opened}) != len(opened):
        raise typer.BadParameter("two repositories have the same name; write --repository NAME=URL")
    return opened


def read_signing_keys(folder: Path) -> list[bytes]:
    """The keys in a folder, as a Secret is mounted: `key` signs, the others are believed as well, so that one can take
    another's place.

    Raises:
        typer.BadParameter: there is no `key`, or one is too short to keep anybody out.
    """
    from medianest_operator.backups.repository.seals import SHORTEST_KEY

    try:
        others = sorted(path.name for path in folder.iterdir() if not path.name.startswith("..") and path.name != "key")
        keys = [(folder / name).read_bytes().strip() for name in ("key", *others)]
    except OSError as error:
        raise typer.BadParameter(
            f"--signing-keys {folder} (spec.backup.encryption.signingSecret): {error.strerror}: {error.filename}"
        ) from error
    if min(map(len, keys)) < SHORTEST_KEY:
        raise typer.BadParameter(
            f"--signing-keys {folder} (spec.backup.encryption.signingSecret): a key has less than {SHORTEST_KEY} bytes;"
            " make one by `openssl rand -hex 32`"
        )
    return keys


def open_sandbox(folder: Path | None) -> Sandbox | None:
    """The sandbox that a command line names; `None` where it names none."""
    from medianest_operator.postgres.sandbox import SidecarSandbox

    return None if folder is None else SidecarSandbox(folder)


def span(text: str) -> timedelta:
    """`7d`, `12h`, `1d12h`.

    Raises:
        typer.BadParameter: it isn't one.
    """
    parts = re.findall(r"(\d+)(s|m|h|d|w)", text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise typer.BadParameter(f"{text!r} is not a span of time; write 7d or 12h")
    return timedelta(seconds=sum(int(number) * _SPAN[unit] for number, unit in parts))


def _keep(text: str) -> tuple[Tier, timedelta]:
    tier, separator, kept = text.partition("=")
    if not separator:
        raise typer.BadParameter(f"{text!r} is not TIER=SPAN, such as daily=7d")
    return _tier(tier), span(kept)


def _tier(text: str) -> Tier:
    from medianest_operator.backups.repository.layout import Tier

    try:
        return Tier(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is no tier; known: {', '.join(Tier)}") from None


def _formats(texts: list[str] | None) -> tuple[Format, ...]:
    from medianest_operator.backups.repository.layout import Format

    known = (Format.CUSTOM, Format.PLAIN, Format.SCHEMA)
    chosen = tuple(dict.fromkeys(texts or [Format.CUSTOM]))
    for text in chosen:
        if text not in known:
            raise typer.BadParameter(f"{text!r} is no format; known: {', '.join(known)}")
    return tuple(Format(text) for text in chosen)


def recipients(texts: list[str]) -> list[str]:
    """age's public keys, checked. Raises typer.BadParameter for what is none."""
    if not texts:
        return []
    from medianest_operator.backups.repository.encryption import EncryptionError, check_recipient

    try:
        return [check_recipient(text) for text in texts]
    except EncryptionError as error:
        raise typer.BadParameter(str(error)) from error


def identities(path: Path | None) -> list[str]:
    """What a file with age's private keys holds. Raises typer.BadParameter where it can't be read."""
    if path is None:
        return []
    try:
        return [path.read_text(encoding="utf-8")]
    except (OSError, UnicodeDecodeError) as error:
        raise typer.BadParameter(f"--identity-file {path}: {error}") from error


def _moment(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is no time; write 2026-12-24T18:00:00Z") from None
    if moment.tzinfo is None:
        raise typer.BadParameter(f"{text!r} has no time zone; write 2026-12-24T18:00:00Z")
    return moment


def _wanted(namespace: str, name: str, system_identifier: str) -> Wanted:
    from medianest_operator.backups.logical.finding import Wanted

    return Wanted(namespace, name, system_identifier)


def _conninfo() -> str:
    from medianest_operator.postgres.connect import conninfo_from

    try:
        return conninfo_from()
    except ValueError as error:
        raise typer.BadParameter(f"DATABASE_URL: {error}") from error
