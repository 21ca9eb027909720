"""A dump's table of contents: what is in it, what needs what, and what only a superuser could restore."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final, NamedTuple

from medianest_operator.backups.logical.dump import DumpError, contents, script
from medianest_operator.postgres.catalog import Catalog, CatalogObject
from medianest_operator.postgres.copies import EXTENSIONS, PUBLIC

ACL: Final = frozenset({"ACL", "DEFAULT ACL", "MATERIALIZED VIEW DATA"})
"""What is restored at the end, when everything belongs to whom it should: rights, and what is read with them."""
DATA: Final = frozenset({"TABLE DATA", "MATERIALIZED VIEW DATA", "SEQUENCE SET", "BLOBS", "BLOB DATA"})
# pg_dump's words for what an entry is (its source, pg_dump.c); longer ones first where one begins with another.
_KINDS: Final = tuple(sorted((
    "ACCESS METHOD", "ACL", "AGGREGATE", "BLOB", "BLOB DATA", "BLOB METADATA", "BLOBS", "CAST", "CHECK CONSTRAINT",
    "COLLATION", "COMMENT", "CONSTRAINT", "CONVERSION", "DATABASE", "DATABASE PROPERTIES", "DEFAULT", "DEFAULT ACL",
    "DOMAIN", "EVENT TRIGGER", "EXTENSION", "FK CONSTRAINT", "FOREIGN DATA WRAPPER", "FOREIGN TABLE", "FUNCTION",
    "INDEX", "INDEX ATTACH", "LARGE OBJECT", "MATERIALIZED VIEW", "MATERIALIZED VIEW DATA", "OPERATOR",
    "OPERATOR CLASS", "OPERATOR FAMILY", "POLICY", "PROCEDURAL LANGUAGE", "PROCEDURE", "PUBLICATION",
    "PUBLICATION TABLE", "PUBLICATION TABLES IN SCHEMA", "ROW SECURITY", "RULE", "SCHEMA", "SECURITY LABEL",
    "SEQUENCE", "SEQUENCE OWNED BY", "SEQUENCE SET", "SERVER", "SHELL TYPE", "STATISTICS", "SUBSCRIPTION",
    "SUBSCRIPTION TABLE", "TABLE", "TABLE ATTACH", "TABLE DATA", "TEXT SEARCH CONFIGURATION", "TEXT SEARCH DICTIONARY",
    "TEXT SEARCH PARSER", "TEXT SEARCH TEMPLATE", "TRANSFORM", "TRIGGER", "TYPE", "USER MAPPING", "VIEW",
), key=len, reverse=True))  # fmt: skip
_OF_SCHEMA: Final = "PUBLICATION TABLES IN SCHEMA"
# PostgreSQL manual, the CREATE command of each.
_SUPERUSERS: Final = frozenset({
    "ACCESS METHOD", "EVENT TRIGGER", "FOREIGN DATA WRAPPER", "OPERATOR CLASS", "OPERATOR FAMILY",
    "PROCEDURAL LANGUAGE", "SECURITY LABEL", "SHELL TYPE", "SUBSCRIPTION",
    "TEXT SEARCH PARSER", "TEXT SEARCH TEMPLATE",
    # These lead elsewhere, and hold passwords.
    "SERVER", "USER MAPPING",
})  # fmt: skip
_RIGHTS: Final = "grants"
RIGHTS_ON: Final = "rights on "
"""How the labels of those rights begin that a restore leaves out; the rest is what they are on."""
_UNDER: Final = (_RIGHTS, "comment")
"""What a catalog calls by what it is on."""
_RELATION: Final = "relation"
_ROUTINE: Final = "routine"
# Tables and types share their names (PostgreSQL manual, CREATE TABLE), and so do functions and their like.
_SPACES: Final = {
    **dict.fromkeys((
        "table", "view", "materialized view", "foreign table", "sequence", "type", "shell type", "domain", "enum type",
        "composite type", "range type", "base type",
    ), _RELATION),
    **dict.fromkeys(("function", "procedure", "aggregate"), _ROUTINE),
    **dict.fromkeys(("fk constraint", "check constraint"), "constraint"),
    "default": "column", "procedural language": "language", "server": "foreign server",
    "statistics": "statistics object",
}  # fmt: skip
_QUALIFIED: Final = frozenset({"operator", "operator class", "operator family"})
_NAMES: Final = (
    (re.compile(r"^CAST \((.+)\)$"), r"\1"),
    (re.compile(r"^TRANSFORM FOR (.+) LANGUAGE (.+)$"), r"for \1 language \2"),
    (re.compile(r"^USER MAPPING (.+) SERVER (.+)$"), r"\2 for \1"),
)
"""How a dump and a catalog call the same, where they differ."""
_ABOUT: Final = ("ACL", "COMMENT")
_SYSTEM_OBJECTS: Final = ("LANGUAGE ", "FOREIGN DATA WRAPPER ", "SCHEMA pg_catalog ")
_LANGUAGES: Final = frozenset({"sql", "plpgsql", "plperl", "pltcl"})
_ROUTINES: Final = frozenset({"FUNCTION", "PROCEDURE"})
_LINE = re.compile(r"(\d+); \d+ \d+ (.+)")
_DEPENDS = re.compile(r";\s+depends on:((?: \d+)+)\s*$")
_EXTENSION = re.compile(r"^CREATE EXTENSION IF NOT EXISTS (\S+) WITH SCHEMA (.+);$", re.MULTILINE)
_MARK = re.compile(r"^-- TOC entry (\d+) \(class \d+ OID \d+\)$", re.MULTILINE)


@dataclass(frozen=True)
class Entry:
    """One entry.

    Attributes:
        number: its own in the dump.
        line: as pg_restore lists it.
        kind: `TABLE`, `FUNCTION`, `ACL` and so on; empty for one that isn't known here.
        schema: `-` where it is in none.
        rest: its name and its owner.
        needs: the numbers of those that it depends on.
    """

    number: int
    line: str
    kind: str
    schema: str
    rest: str
    needs: frozenset[int] = frozenset()

    @property
    def is_comment_on_extension(self) -> bool:
        """It belongs to the extension's owner, and is there with the extension anyway."""
        return self.kind == "COMMENT" and self.schema == "-" and self.rest.startswith("EXTENSION ")

    def name(self, owners: Collection[str]) -> str:
        """Without schema and owner.

        Args:
            owners: the roles that there are: a name with spaces is told from its owner by them.
        """
        for owner in sorted(owners, key=len, reverse=True):
            if self.rest.endswith(f" {owner}"):
                return self.rest.removesuffix(f" {owner}")
        return self.rest.rpartition(" ")[0]

    def owner(self, owners: Collection[str]) -> str:
        """Its owner, empty where it has none."""
        return self.rest.removeprefix(self.name(owners)).strip()


def name_space(kind: str) -> str:
    """Among what a name is one: `relation`, `routine`, `policy` and so on.

    Args:
        kind: in a dump's words or in a catalog's.
    """
    return _SPACES.get(kind.lower(), kind.lower())


class Name(NamedTuple):
    """How an object is called, in such a space; with its schema unless that is `public`, and without quotes."""

    space: str
    name: str

    @classmethod
    def of(cls, kind: str, name: str) -> Name:
        """An object's, from its kind in a dump's words or in a catalog's."""
        return cls(name_space(kind), name.replace('"', ""))

    @classmethod
    def table(cls, name: str) -> Name:
        """A table's."""
        return cls.of("table", name)

    @classmethod
    def all_of(cls, item: CatalogObject) -> set[Name]:
        """What an object of a catalog goes by, itself or as a part of another."""
        name, table, space = item.name.replace('"', ""), item.table.replace('"', ""), name_space(item.kind)
        if item.kind in _QUALIFIED:
            # Of an operator and its like a dump tells the name alone.
            name = re.split(r" USING | \(", name, maxsplit=1)[0]
        if item.kind == "index" and "." in table:
            name = f"{table.rpartition('.')[0]}.{name}"
        return {cls(_RELATION, table), cls(space, name), cls(space, f"{table} {name}")}

    def is_of(self, item: CatalogObject) -> bool:
        """Whether a catalog's object is it, a part of it, a right on it or a comment on it."""
        name = item.name.replace('"', "")
        if self.space == _RIGHTS:
            return item.kind == _RIGHTS and name == self.name
        if item.kind in _UNDER:
            return self._is_under(name.replace(f" {PUBLIC}.", " "))
        if name_space(item.kind) == _ROUTINE:
            return self.space == _ROUTINE and _is_same_routine(name, self.name)
        return self in Name.all_of(item)

    def _is_under(self, what: str) -> bool:
        """Whether a right or a comment is on it: `table users`, `column users.name`, `policy own on users`."""
        if self.space == _RELATION and f" column {self.name}." in f" {what}":
            return True
        name = self.name.replace(f"{PUBLIC}.", "") if self.space == _ROUTINE else self.name
        if not what.endswith(f" {name}"):
            return False
        on = what.removesuffix(f" {name}")
        return name_space(on) == self.space or (self.space == _RELATION and on.endswith(" on"))


@dataclass
class LeftOut:
    """What isn't in a copy.

    Attributes:
        numbers: of the entries.
        notes: in words.
        names: of the objects.
        refused: those that nobody but a superuser may make, in words.
    """

    numbers: set[int] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)
    names: set[Name] = field(default_factory=set)
    refused: dict[Name, str] = field(default_factory=dict)

    def without(self, expected: Catalog, found: Catalog) -> Catalog:
        """What is expected of the copy: all but what was left out and is really not there."""
        if not self.names:
            return expected
        kept = {key: item for key, item in expected.objects.items() if key in found.objects or not self.covers(item)}
        return Catalog(kept)

    def without_rights(self, catalog: Catalog) -> Catalog:
        """A catalog without those rights among these: whatever was not granted, each database has some."""
        names = {name for name in self.names if name.space == _RIGHTS}
        if not names:
            return catalog
        return Catalog({key: item for key, item in catalog.objects.items() if not any(n.is_of(item) for n in names)})

    def covers(self, item: CatalogObject) -> bool:
        """Whether an object of a catalog is one of these, or part of one."""
        if item.kind in _UNDER or name_space(item.kind) == _ROUTINE:
            return any(name.is_of(item) for name in self.names)
        return not self.names.isdisjoint(Name.all_of(item))

    def has_table(self, name: str) -> bool:
        """Whether a table is one of these."""
        return Name.table(name) in self.names


def _is_same_routine(name: str, known: str) -> bool:
    """Whether a routine as a catalog calls it, with its arguments' names, is one as a dump does: without those, and
    with the schema of each type."""
    (own, _, given), (other, _, types) = name.partition("("), known.replace(f"{PUBLIC}.", "").partition("(")
    arguments, kinds = given.removesuffix(")").split(", "), types.removesuffix(")").split(", ")
    return (
        own == other
        and len(arguments) == len(kinds)
        and all(full == kind or full.endswith(f" {kind}") for full, kind in zip(arguments, kinds, strict=True))
    )


def parse_entry(line: str) -> Entry | None:
    """An entry as pg_restore lists it; `None` for a line that is none."""
    found = _LINE.match(line)
    if found is None:
        return None
    text = found[2]
    kind = next((kind for kind in _KINDS if text.startswith(f"{kind} ")), "")
    # One without an owner ends in a space.
    schema, _, rest = text.removeprefix(f"{kind} ").partition(" ")
    return Entry(int(found[1]), line, kind, schema, rest)


def read_toc(archive: Path) -> list[Entry]:
    """The table of contents of a dump, or of the beginning of one.

    Raises:
        DumpError: it isn't one, or too little.
    """
    entries: list[Entry] = []
    for line in contents(archive, ["--verbose"]):
        if (entry := parse_entry(line)) is not None:
            entries.append(entry)
        elif (found := _DEPENDS.match(line)) is not None and entries:
            entries[-1] = replace(entries[-1], needs=frozenset(int(number) for number in found[1].split()))
    spaced = [entry.rest for entry in entries if entry.kind == "SCHEMA" and entry.rest.count(" ") > 1]
    return [_with_schema(entry, spaced) for entry in entries] if spaced else entries


def _with_schema(entry: Entry, schemas: Sequence[str]) -> Entry:
    """An entry whose schema's name may have spaces, which end it in pg_restore's list.

    Args:
        schemas: the names of such, each with its owner.
    """
    words = f"{entry.schema} {entry.rest}".split(" ")
    for count in range(len(words) - 1, 1, -1):
        schema = " ".join(words[:count])
        if any(known.startswith(f"{schema} ") for known in schemas):
            return replace(entry, schema=schema, rest=" ".join(words[count:]))
    return entry


def schemas_of(entries: Iterable[Entry], owners: Collection[str]) -> dict[str, str]:
    """The dumped schemas and their owners; `public` only where it isn't its usual one's."""
    found = {entry.name(owners): entry.owner(owners) for entry in entries if entry.kind == "SCHEMA"}
    if found.get(PUBLIC) == "pg_database_owner":
        del found[PUBLIC]
    return found


def owners_of(entries: Iterable[Entry], roles: Collection[str]) -> set[str]:
    """Everybody to whom something belongs: also the bootstrap superuser, whom manifests don't note."""
    found = {entry.owner(roles) for entry in entries if entry.kind}
    return {name for name in found if name and not name.startswith("pg_")}


def choose(
    archive: Path, entries: Sequence[Entry], owners: Collection[str], extensions: Collection[str] = EXTENSIONS
) -> LeftOut:
    """What of a dump can't be restored without a superuser; with what needs that.

    Args:
        extensions: those that are there, or may be made.

    Raises:
        DumpError: the dump can't be read.
    """
    left = LeftOut()
    refused = {entry.number for entry in entries if entry.kind in _SUPERUSERS}
    refused |= set(_refused_by_text(archive, entries))
    refused |= {entry.number for entry in entries if entry.kind == "EXTENSION" and entry.name(owners) not in extensions}
    refused |= {entry.number for entry in entries if entry.kind in _ABOUT and _is_on_postgresqls_own(entry)}
    by_number = {entry.number: entry for entry in entries}
    # Half a publication would be worse than none.
    needed = {number for entry in entries if entry.kind == _OF_SCHEMA for number in entry.needs}
    refused |= {number for number in needed if number in by_number and by_number[number].kind == "PUBLICATION"}
    for number in sorted(refused):
        entry = by_number[number]
        left.notes.append(f"{described(entry, owners)} was left out: only a superuser may make it")
    also = closure(entries, refused) - refused
    told = [by_number[number] for number in sorted(also) if by_number[number].kind not in ACL | DATA | {"COMMENT"}]
    if told:
        shown = ", ".join(described(entry, owners) for entry in told[:5])
        more = f" and {len(told) - 5} more" if len(told) > 5 else ""
        left.notes.append(f"{shown}{more} was left out: what it needs was")
    left.numbers = refused | also
    for number in left.numbers:
        entry = by_number[number]
        name = entry.name(owners)
        for pattern, replacement in _NAMES:
            name = pattern.sub(replacement, name)
        called = Name.of(entry.kind, name if entry.schema in (PUBLIC, "-") else f"{entry.schema}.{name}")
        if entry.kind == "ACL":
            called = Name.of(_RIGHTS, _what_it_is_on(entry, owners))
        left.names.add(called)
        if number in refused:
            left.refused[called] = described(entry, owners)
    return left


def _is_on_postgresqls_own(entry: Entry) -> bool:
    """Whether rights or a comment are on what belongs to a superuser everywhere."""
    return entry.schema == "pg_catalog" or (entry.schema == "-" and entry.rest.startswith(_SYSTEM_OBJECTS))


def described(entry: Entry, owners: Collection[str]) -> str:
    """`event trigger audit`, or `rights on function pg_catalog.pg_ls_dir(text)`."""
    if entry.kind == "ACL":
        return f"{RIGHTS_ON}{_what_it_is_on(entry, owners)}"
    if entry.kind == "COMMENT":
        return f"comment on {_what_it_is_on(entry, owners)}"
    if entry.kind == "DEFAULT ACL":
        return entry.name(owners).lower()
    return f"{entry.kind.lower()} {entry.name(owners)}"


def _what_it_is_on(entry: Entry, owners: Collection[str]) -> str:
    """As a catalog calls it: `language plpgsql`."""
    kind = next((kind for kind in _KINDS if entry.rest.startswith(f"{kind} ")), entry.rest.partition(" ")[0])
    name = entry.name(owners).removeprefix(f"{kind} ")
    return f"{kind.lower()} {name if entry.schema in (PUBLIC, '-') else f'{entry.schema}.{name}'}"


def _refused_by_text(archive: Path, entries: Sequence[Entry]) -> Iterator[int]:
    """Those whose definition tells that a superuser made them."""
    wanted = [entry for entry in entries if entry.kind in _ROUTINES or entry.kind in ("PUBLICATION", "CAST")]
    kinds = {entry.number: entry.kind for entry in wanted}
    for number, piece in pieces(archive, wanted):
        kind = kinds.get(number)
        # Its body may hold anything.
        head = re.split(r"\n\s+AS ", piece, maxsplit=1)[0]
        if kind in _ROUTINES:
            language = re.search(r'\n\s+LANGUAGE "?([A-Za-z0-9_]+)', head)
            if (language is not None and language[1] not in _LANGUAGES) or " LEAKPROOF" in head:
                yield number
        elif (kind == "PUBLICATION" and " FOR ALL TABLES" in piece) or (kind == "CAST" and "WITHOUT FUNCTION" in piece):
            yield number


def pieces(archive: Path, entries: Sequence[Entry]) -> Iterator[tuple[int, str]]:
    """The SQL of entries, each with its number.

    Raises:
        DumpError: the dump can't be read.
    """
    if not entries:
        return
    with TemporaryDirectory() as folder:
        text = script(archive, write_list(Path(folder, "list"), entries), ["--verbose"])
    split = _MARK.split(text)
    yield from zip(map(int, split[1::2]), split[2::2], strict=True)


def closure(entries: Sequence[Entry], numbers: Collection[int]) -> set[int]:
    """Some entries with all that needs them, such as their comments."""
    found = set(numbers)
    while more := {entry.number for entry in entries if entry.number not in found and entry.needs & found}:
        found |= more
    return found


def write_list(path: Path, entries: Iterable[Entry]) -> Path:
    """A file for pg_restore's `--use-list`."""
    path.write_text("".join(f"{entry.line}\n" for entry in entries), encoding="utf-8")
    return path


class Head:
    """The beginning of a dump that comes in pieces, as far as its table of contents goes.

    Attributes:
        entries: its table of contents.
        path: a file with it.
    """

    def __init__(self, chunks: Iterable[bytes], folder: Path) -> None:
        """Read as much as it takes.

        Raises:
            DumpError: it is no dump.
        """
        self.path = folder / "head.dump"
        self._rest = iter(chunks)
        self.entries = self._read()

    def _read(self) -> list[Entry]:
        failure: DumpError | None = None
        with self.path.open("wb") as file:
            for chunk in self._rest:
                file.write(chunk)
                file.flush()
                try:
                    return read_toc(self.path)
                except DumpError as error:
                    failure = error
        raise failure or DumpError("pg_restore: the dump is empty")

    def chunks(self) -> Iterator[bytes]:
        """All of the dump."""
        with self.path.open("rb") as file:
            while piece := file.read(1 << 20):
                yield piece
        yield from self._rest


def extensions_of(
    archive: Path, entries: Iterable[Entry], owners: Collection[str], among: Collection[str] = EXTENSIONS
) -> dict[str, str]:
    """The dumped extensions among some, and the schema of each.

    Raises:
        DumpError: the dump can't be read.
    """
    wanted = [entry for entry in entries if entry.kind == "EXTENSION" and entry.name(owners) in among]
    if not wanted:
        return {}
    with TemporaryDirectory() as folder:
        text = script(archive, write_list(Path(folder, "list"), wanted))
    found = {name.strip('"'): schema for name, schema in _EXTENSION.findall(text)}
    places = {entry.name(owners): found.get(entry.name(owners), PUBLIC) for entry in wanted}
    return {name: schema[1:-1].replace('""', '"') if schema[0] == '"' else schema for name, schema in places.items()}
