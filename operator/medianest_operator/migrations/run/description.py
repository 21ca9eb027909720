"""A database as PostgreSQL describes it: the second witness of a rollback, which shares no code with the first.

The catalog's fingerprint (`postgres.catalog`) knows the kinds of objects that it was made for. pg_dump knows every kind
that PostgreSQL has: collations, operators, text search, a publication's filters, rights and settings of the database,
default privileges. What it doesn't say, because roles belong to the whole server, is read beside it.

Both texts are compared as they are but for this:

* the order of entries, which follows from object identifiers where names don't decide it, the order of lines of one
  object's rights, which is that of its access list, and that of the database's settings, which is the one in which they
  were set: all change when something is made again as it was;
* comments of pg_dump's own, and what it repeats for the session: its `\\restrict` word (random), and the defaults of
  `SET default_tablespace` and `SET default_table_access_method`, which stand wherever the order of entries puts them.

The journal and Prisma's history are the run's own book-keeping and aren't described; what `spec.hardening` has made is
left out, as in the fingerprint.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Final, LiteralString

from psycopg import Connection
from psycopg.rows import tuple_row

from medianest_operator.hardening.naming import CURRENT_USER_ID, MARK, is_own
from medianest_operator.migrations.history import TABLE
from medianest_operator.postgres import read_only
from medianest_operator.postgres.contents import read_unreadable

Description = Mapping[str, str]
"""What is said of each object, by its kind, schema and name."""

_ENTRY: Final = re.compile(r"^-- Name: (?P<name>.*); Type: (?P<kind>[A-Z ]+); Schema: (?P<schema>.*); Owner: .*$")
_SESSION: Final = re.compile(
    r"^(\\(un)?restrict .*|SET default_tablespace = '';|SET default_table_access_method = heap;|"
    r"--( Name: .*| PostgreSQL database dump( complete)?| Dumped (from database|by pg_dump) version .*)?|)$"
)
_IN_ANY_ORDER: Final = frozenset({"ACL", "DEFAULT ACL", "DATABASE PROPERTIES"})
_READ_ONLY: Final = (" SET default_transaction_read_only TO 'on';", f' SET "{read_only.SINCE}" TO ')
"""What the operator sets on a database while a volume is full, and takes back, in whatever step a run is."""
_HEAD: Final = "DATABASE settings of the dump"
# Those that the run itself may change; others belong to whoever makes roles, and change at any time.
_ROLES: LiteralString = """
SELECT r.rolname::text,
       pg_catalog.to_jsonb(r) - ARRAY['oid', 'rolpassword', 'rolname'] || pg_catalog.jsonb_build_object(
           'member_of', (SELECT pg_catalog.jsonb_agg(g.rolname || CASE WHEN m.admin_option THEN ' (admin)' ELSE '' END
                                                     ORDER BY g.rolname)
                           FROM pg_catalog.pg_auth_members m JOIN pg_catalog.pg_roles g ON g.oid = m.roleid
                          WHERE m.member = r.oid))
  FROM pg_catalog.pg_roles r
 WHERE r.rolname IN (session_user, current_user)
    OR EXISTS (SELECT FROM pg_catalog.pg_auth_members m JOIN pg_catalog.pg_roles s ON s.oid = m.member
                WHERE m.roleid = r.oid AND m.admin_option AND s.rolname IN (session_user, current_user))
 ORDER BY 1
"""
_LIKE_ROLE = "ROLE "


def read_description(
    connection: Connection[Any], environment: Mapping[str, str], *, inherit: bool = True
) -> Description:
    """Describe the database now.

    Args:
        connection: in the database, for what pg_dump doesn't say.
        environment: libpq's variables that lead pg_dump to the same database.
        inherit: pg_dump gets this process's environment as well; nothing of it where the server is a copy.

    Raises:
        DumpError: pg_dump failed: no right, no connection, or a table stayed locked.
        psycopg.Error: as the server says.
    """
    return {**entries(_dumped(environment, _left_out(connection), inherit)), **_roles(connection)}


@contextmanager
def describing(connection: Connection[Any], environment: Mapping[str, str]) -> Iterator[Future[Description]]:
    """As `read_description`, with pg_dump at work beside what the block does; the connection isn't used in it."""
    roles, without = _roles(connection), _left_out(connection)
    with ThreadPoolExecutor(1, thread_name_prefix="description") as pool:
        yield pool.submit(lambda: {**entries(_dumped(environment, without, True)), **roles})


def _dumped(environment: Mapping[str, str], without: list[tuple[str, str]], inherit: bool) -> str:
    # The controller reads evidence as well, and never a repository's libraries.
    from medianest_operator.backups.logical.dump import describe

    return describe(environment, without, inherit=inherit)


def _left_out(connection: Connection[Any]) -> list[tuple[str, str]]:
    """Prisma's history, and what others made that this role can't read, and so not change either."""
    return [("public", TABLE), *read_unreadable(connection)]


def _roles(connection: Connection[Any]) -> dict[str, str]:
    rows = connection.cursor(row_factory=tuple_row).execute(_ROLES).fetchall()
    return {f"{_LIKE_ROLE}{name}": json.dumps(facts, sort_keys=True) for name, facts in rows}


def entries(text: str) -> Description:
    """Take a plain dump of definitions apart. All of its text is in some entry, whatever its comments say."""
    found: dict[str, list[str]] = {}
    label, in_any_order, lines = _HEAD, False, list[str]()

    def close() -> None:
        body = sorted(_without_read_only(lines)) if in_any_order else lines
        if body:
            found.setdefault(label, []).append("\n".join(body))

    for line in text.split("\n"):
        match = _ENTRY.match(line)
        if match is not None:
            close()
            lines, in_any_order = [], match["kind"] in _IN_ANY_ORDER
            schema = "" if match["schema"] in ("-", "public") else f"{match['schema']}."
            label = f"{match['kind']} {schema}{match['name']}"
        elif not _SESSION.match(line):
            lines.append(line)
    close()
    return _without_hardening({label: "\n".join(sorted(bodies)) for label, bodies in found.items()})


def _without_read_only(lines: list[str]) -> list[str]:
    if not any(_READ_ONLY[1] in line for line in lines):
        return lines
    return [line for line in lines if not any(text in line for text in _READ_ONLY)]


def _without_hardening(described: Description) -> Description:
    """Leave out what `spec.hardening` has made, as the fingerprint does: it comes and goes automatically, and is made
    again where a migration takes it away."""
    function = f"FUNCTION {CURRENT_USER_ID}()"
    ours = MARK in described.get(f"COMMENT {function}", "")
    secured = {_table(label) for label in described if label.startswith("POLICY ") and is_own(_last(label))}
    secured -= {_table(label) for label in described if label.startswith("POLICY ") and not is_own(_last(label))}
    kept = {}
    for label, text in described.items():
        if is_own(_last(label)) or (label.startswith("COMMENT ") and MARK in text):
            continue
        if (ours and label.endswith(function)) or (label.startswith("ROW SECURITY ") and _last(label) in secured):
            continue
        kept[label] = _without_own_lines(text) if label.startswith("TABLE ") else text
    return kept


def _without_own_lines(text: str) -> str:
    """A table's columns and constraints but for our own; whether a comma follows is the next line's doing."""
    lines = [line.removesuffix(",") for line in text.split("\n")]
    return "\n".join(line for line in lines if not is_own(line.strip().removeprefix("CONSTRAINT ").partition(" ")[0]))


def _last(label: str) -> str:
    return label.rpartition(" ")[2].partition("(")[0].rpartition(".")[2]


def _table(label: str) -> str:
    """Of a policy, `POLICY users name`."""
    return label.split(" ")[1]


def differences(before: Description, after: Description) -> list[str]:
    """What is described otherwise than before, in words, in a stable order; empty if nothing is.

    Roles that only one of the two describes are somebody else's: a migration can't make or drop any (lint, and the
    migrator's rights).
    """
    lines = []
    for label in sorted(before.keys() | after.keys()):
        was, now = before.get(label), after.get(label)
        if was == now or (label.startswith(_LIKE_ROLE) and None in (was, now)):
            continue
        named = _spelled(label)
        if now is None:
            lines.append(f"{named} is missing")
        elif was is None:
            lines.append(f"{named} is not expected")
        else:
            lines.append(f"{named} is described otherwise: {_first_unlike(was, now)}")
    return lines


def _spelled(label: str) -> str:
    kind = re.match(r"[A-Z ]+(?= )", label)
    return label if kind is None else f"{kind[0].lower().replace('acl', 'rights on')}{label[kind.end() :]}"


def _first_unlike(was: str, now: str) -> str:
    old, new = was.split("\n"), now.split("\n")
    gone = next((line for line in old if line not in new), "")
    come = next((line for line in new if line not in old), "")
    parts = [f"`{come.strip()}`" if come else "", f"expected `{gone.strip()}`" if gone else ""]
    return ", ".join(part for part in parts if part) or "the same lines in another order"
