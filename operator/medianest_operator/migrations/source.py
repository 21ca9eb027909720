"""Where migrations come from: a folder in Prisma's layout, or a ConfigMap's data.

Two spellings of the same thing are accepted, and may not be mixed for one name:

- nested, as Prisma writes it: `20250704075237_init/migration.sql`;
- prefixed, for a ConfigMap, whose keys can't hold a slash: `20250704075237_init.sql`.

Beside a migration may lie the script that reverts it: `down.sql` in its folder, or `20250704075237_init.down.sql`.

`migration_lock.toml` may lie beside them; its provider must be PostgreSQL. Names that begin with a dot are skipped,
because the kubelet keeps a mounted ConfigMap's versions under `..data`.
"""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

LOCK_FILE = "migration_lock.toml"
SCRIPT = "migration.sql"
DOWN_SCRIPT = "down.sql"
SUFFIX = ".sql"
DOWN_SUFFIX = ".down.sql"
# Prisma writes `<YYYYMMDDhhmmss>_<name>`; its guide for existing databases says `0_init`, and an empty name leaves `_`.
NAME = re.compile(r"[0-9]{1,14}(_[A-Za-z0-9_-]*)?")
# `_prisma_migrations.migration_name` is varchar(255).
NAME_LIMIT = 255
BYTE_ORDER_MARK = "\ufeff"


class SourceError(ValueError):
    """The source can't be read as a set of migrations; the text says which entry and what to do."""


@dataclass(frozen=True, slots=True, order=True)
class Migration:
    """One migration file.

    Attributes:
        name: the folder's name in Prisma's layout; the order of names is the order of migrations.
        sql: the text that is sent to the server: the file without a byte order mark.
        checksum: what `_prisma_migrations` records: lowercase hex SHA-256 of the file's bytes.
        accepted_checksums: every recorded checksum that means "this file", its LF and CRLF variants among them.
        down: the SQL that reverts it, `None` if its author gave none.
    """

    name: str
    sql: str = field(compare=False, repr=False)
    checksum: str = field(compare=False)
    accepted_checksums: frozenset[str] = field(compare=False, repr=False)
    down: str | None = field(default=None, compare=False, repr=False)

    @classmethod
    def from_bytes(cls, name: str, content: bytes) -> Migration:
        """Build from a file's bytes.

        Raises:
            SourceError: the bytes are not UTF-8, or hold a NUL, which PostgreSQL can't store or be sent.
        """
        text = _text(f"migration {name}", content)
        lf = content.replace(b"\r\n", b"\n")
        variants = (content, lf, lf.replace(b"\n", b"\r\n"))
        return cls(
            name=name,
            sql=text,
            checksum=_sha256(content),
            accepted_checksums=frozenset(_sha256(variant) for variant in variants),
        )

    def with_down(self, content: bytes) -> Migration:
        """The same migration with the script that reverts it. Raises SourceError as `from_bytes`."""
        return replace(self, down=_text(f"the down script of migration {self.name}", content))

    def recorded_as(self, checksum: str) -> Migration:
        """The same SQL, known to the history under another file's checksum."""
        return replace(self, checksum=checksum, accepted_checksums=self.accepted_checksums | {checksum})

    def recognises(self, checksum: str) -> bool:
        """Whether a recorded checksum is this file's, whatever its line ends were."""
        return checksum in self.accepted_checksums


def migrations_from_mapping(entries: Mapping[str, str | bytes], origin: str = "the source") -> tuple[Migration, ...]:
    """Read migrations from `key -> text`, which is what a ConfigMap's `data` is.

    Args:
        entries: keys as described at the top of this module; values as text or as bytes.
        origin: how messages call the place, such as `ConfigMap media/migrations`.

    Returns:
        The migrations in the order in which they are applied.

    Raises:
        SourceError: nothing there, an entry that is no migration, a bad or repeated name, or unreadable content.
    """
    found: dict[str, tuple[str, Migration]] = {}
    downs: dict[str, tuple[str, bytes]] = {}
    for key in sorted(entries):
        value = entries[key]
        content = value.encode("utf-8") if isinstance(value, str) else value
        if key == LOCK_FILE:
            _check_lock_file(content, origin)
            continue
        name, is_down = _name_of(key, origin)
        if is_down:
            if name in downs:
                raise SourceError(f"{origin} has two down scripts for {name}: {downs[name][0]} and {key}; keep one")
            downs[name] = key, content
            continue
        if name in found:
            raise SourceError(
                f"migration {name} appears twice in {origin}: as {found[name][0]} and as {key}; keep one of them"
            )
        found[name] = (key, Migration.from_bytes(name, content))
    if not found:
        raise SourceError(
            f"no migration in {origin}: expected entries such as 20250704075237_init{SUFFIX}"
            f" or 20250704075237_init/{SCRIPT}"
        )
    for name, (key, content) in downs.items():
        if name not in found:
            raise SourceError(f"{key} in {origin} reverts migration {name}, which is not there")
        found[name] = found[name][0], found[name][1].with_down(content)
    return tuple(sorted(migration for _, migration in found.values()))


def migrations_from_directory(directory: Path) -> tuple[Migration, ...]:
    """Read a folder in Prisma's layout, or a mounted ConfigMap.

    Within a migration's own folder only `migration.sql` and `down.sql` are read; at the top, what is neither a folder
    nor a `.sql` file is ignored, as Prisma does.

    Raises:
        SourceError: as `migrations_from_mapping`, or the folder or one of its files can't be read.
    """
    origin = str(directory)
    entries: dict[str, bytes] = {}
    try:
        for item in sorted(directory.iterdir()):
            if item.name.startswith("."):
                continue
            if item.is_dir():
                script = item / SCRIPT
                if not script.is_file():
                    raise SourceError(f"folder {item.name} in {origin} has no {SCRIPT}; add it or remove the folder")
                entries[f"{item.name}/{SCRIPT}"] = script.read_bytes()
                if (down := item / DOWN_SCRIPT).is_file():
                    entries[f"{item.name}/{DOWN_SCRIPT}"] = down.read_bytes()
            elif item.name == LOCK_FILE or item.name.endswith(SUFFIX):
                entries[item.name] = item.read_bytes()
    except OSError as error:
        raise SourceError(f"can't read {error.filename or origin}: {error.strerror}") from error
    return migrations_from_mapping(entries, origin)


def content_digest(migrations: Iterable[Migration], options: Mapping[str, object] | None = None) -> str:
    """A SHA-256 in lowercase hex that changes exactly when what a run would do changes.

    The controller names the migration Job after it, and a failure is remembered under it, so it depends on the names,
    the text sent, the checksums recorded and the options that decide over a run (target, what is allowed, the retry
    id), and on nothing else: not on the order given, and not on how the entries were spelled.
    """
    document = {
        "migrations": [
            [m.name, m.checksum, _sha256(m.sql.encode("utf-8")), m.down and _sha256(m.down.encode("utf-8"))]
            for m in sorted(migrations)
        ],
        "options": dict(options or {}),
    }
    return _sha256(json.dumps(document, separators=(",", ":"), sort_keys=True).encode("ascii"))


def _name_of(key: str, origin: str) -> tuple[str, bool]:
    """The migration's name, and whether the entry reverts it."""
    folder, slash, file = key.partition("/")
    is_down = file == DOWN_SCRIPT if slash else key.endswith(DOWN_SUFFIX)
    if slash:
        if file not in (SCRIPT, DOWN_SCRIPT):
            raise SourceError(f"{key} in {origin} is not a migration: a migration's file is called {SCRIPT}")
        name = folder
    elif is_down:
        name = key.removesuffix(DOWN_SUFFIX)
    elif key.endswith(SUFFIX):
        name = key.removesuffix(SUFFIX)
    else:
        raise SourceError(f"{key} in {origin} is not a migration: expected <name>{SUFFIX} or {LOCK_FILE}")
    if not NAME.fullmatch(name):
        raise SourceError(
            f"{key} in {origin}: {name!r} is not a migration's name; use <YYYYMMDDhhmmss>_<name>"
            " with letters, digits, _ and -"
        )
    if len(name) > NAME_LIMIT:
        raise SourceError(f"{key[:60]}... in {origin}: the name has {len(name)} characters, the limit is {NAME_LIMIT}")
    return name, is_down


def _text(what: str, content: bytes) -> str:
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise SourceError(
            f"{what} is not UTF-8: byte {content[error.start]:#04x} in line {line}; save the file as UTF-8"
        ) from None
    if (nul := text.find("\0")) >= 0:
        line = text.count("\n", 0, nul) + 1
        raise SourceError(f"{what} holds a NUL byte in line {line}; save the file as UTF-8 text")
    return text.removeprefix(BYTE_ORDER_MARK)


def _check_lock_file(content: bytes, origin: str) -> None:
    try:
        provider = tomllib.loads(content.decode("utf-8")).get("provider")
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SourceError(f"{LOCK_FILE} in {origin} is not valid TOML: {error}") from None
    if provider not in ("postgresql", "postgres"):
        raise SourceError(f"{LOCK_FILE} in {origin} says provider {provider!r}: these migrations are not PostgreSQL's")


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
