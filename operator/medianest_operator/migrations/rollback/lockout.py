"""Lock the writers out: nobody but the run may connect to the database until it is lifted again.

The right to connect is taken from everybody else, the owner and its members included, and their sessions are ended.
That is the database owner's own right to give and take, so it needs no superuser; ending sessions needs
pg_signal_backend. It is written to the journal first, so that whoever finds the run interrupted can lift it. Superusers
can't be locked out, and the controller's reader isn't: it writes nothing, and reads in the journal how the run goes on.
What can't be taken, or not be given back as it was, is named by `obstacle` before anything is changed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any, LiteralString

from psycopg import Connection, sql
from psycopg.rows import tuple_row

from medianest_operator.postgres.logins import CONTROLLER_SUFFIX
from medianest_operator.postgres.rows import only

DRAIN_LIMIT = 60.0
"""Seconds until sessions that don't end are given up."""
_PAUSE = 0.1
_READER: Mapping[str, str] = {"reader": f"_{CONTROLLER_SUFFIX}"}
"""What follows the owner's name in the reader's (`logins.controller_name`)."""

# Who may connect by a grant of its own, the owner among them: its members have the right through it. 0 stands for
# everybody.
_GRANTEES: LiteralString = """
SELECT CASE a.grantee WHEN 0 THEN NULL ELSE pg_catalog.pg_get_userbyid(a.grantee)::text END, a.is_grantable
  FROM pg_catalog.pg_database d,
       pg_catalog.aclexplode(coalesce(d.datacl, pg_catalog.acldefault('d', d.datdba))) a
 WHERE d.datname = pg_catalog.current_database() AND a.privilege_type = 'CONNECT'
   AND (a.grantee = 0 OR pg_catalog.pg_get_userbyid(a.grantee) <> pg_catalog.pg_get_userbyid(d.datdba) || %(reader)s)
   AND (a.grantee = 0 OR pg_catalog.pg_get_userbyid(a.grantee) <> session_user)
 ORDER BY 1 NULLS LAST
"""

_PREPARED: LiteralString = """
SELECT pg_catalog.quote_literal(gid), owner::text FROM pg_catalog.pg_prepared_xacts
 WHERE database = pg_catalog.current_database() ORDER BY prepared LIMIT 1
"""

# What only its grantor takes and gives (PostgreSQL manual, GRANT and REVOKE).
_BY_OTHERS: LiteralString = """
SELECT pg_catalog.pg_get_userbyid(a.grantor)::text,
       CASE a.grantee WHEN 0 THEN 'everybody' ELSE pg_catalog.pg_get_userbyid(a.grantee)::text END
  FROM pg_catalog.pg_database d, pg_catalog.aclexplode(d.datacl) a
 WHERE d.datname = pg_catalog.current_database() AND a.privilege_type = 'CONNECT' AND a.grantor <> d.datdba
 ORDER BY 1, 2
"""

# Who logs in with the right of the role that the run itself logs in as, which keeps it.
_MEMBERS: LiteralString = """
SELECT r.rolname::text FROM pg_catalog.pg_roles r
 WHERE r.rolcanlogin AND NOT r.rolsuper AND r.rolname <> session_user
   AND pg_catalog.pg_has_role(r.oid, session_user::pg_catalog.regrole, 'USAGE')
 ORDER BY 1
"""

_POSSIBLE: LiteralString = """
SELECT pg_catalog.pg_has_role(current_user, d.datdba, 'MEMBER'),
       (SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname = session_user),
       pg_catalog.pg_has_role(session_user, 'pg_signal_backend', 'MEMBER'),
       pg_catalog.pg_get_userbyid(d.datdba)
  FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database()
"""

# Only what everybody may see of everybody's sessions: the rest is hidden from a role without pg_read_all_stats, and
# what is hidden must not look like nobody.
_OTHERS: LiteralString = """
SELECT a.pid, a.usename::text
  FROM pg_catalog.pg_stat_activity a JOIN pg_catalog.pg_roles r ON r.oid = a.usesysid
  JOIN pg_catalog.pg_database d ON d.datname = a.datname
 WHERE a.datname = pg_catalog.current_database() AND NOT r.rolsuper AND a.pid <> pg_catalog.pg_backend_pid()
   AND r.rolname <> pg_catalog.pg_get_userbyid(d.datdba) || %(reader)s
"""

# A session shows in pg_stat_activity at the end of its start only, after its right to connect was looked at. From
# before that look until that end it holds this lock on the database (PostgreSQL's source, InitPostgres).
_STARTING: LiteralString = """
SELECT l.pid
  FROM pg_catalog.pg_locks l JOIN pg_catalog.pg_database d ON d.oid = l.objid
 WHERE l.locktype = 'object' AND l.classid = 'pg_catalog.pg_database'::pg_catalog.regclass
   AND l.mode = 'RowExclusiveLock' AND l.pid <> pg_catalog.pg_backend_pid()
   AND d.datname = pg_catalog.current_database()
"""


class LockoutError(Exception):
    """The writers can't be locked out; the text says why."""


# A row that was written since, by a GRANT or a REVOKE, has another one.
_MARK: LiteralString = "SELECT xmin::text FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database()"

_OWN: LiteralString = """
SELECT session_user::text,
       EXISTS (SELECT FROM pg_catalog.pg_database d,
                      pg_catalog.aclexplode(coalesce(d.datacl, pg_catalog.acldefault('d', d.datdba))) a
                WHERE d.datname = pg_catalog.current_database() AND a.privilege_type = 'CONNECT'
                  AND pg_catalog.pg_get_userbyid(a.grantee) = session_user)
"""


@dataclass(frozen=True)
class Lockout:
    """What was changed to lock the writers out.

    Attributes:
        grantees: whose right to connect was taken; `None` among them stands for everybody (PUBLIC).
        grantable: those among them who could pass it on.
        own: the run's role, where it had no such right of its own and was given one meanwhile.
        mark: of the database's row once they were taken; `None` before.
        let_in: somebody has given a right back meanwhile: others may have written.
    """

    grantees: tuple[str | None, ...]
    own: str | None = None
    grantable: tuple[str, ...] = ()
    mark: str | None = None
    let_in: bool = False

    def to_json(self) -> dict[str, Any]:
        lists = {"grantees": list(self.grantees), "grantable": list(self.grantable)}
        return {**lists, "own": self.own, "mark": self.mark, "let_in": self.let_in}

    @classmethod
    def from_json(cls, document: Any) -> Lockout:
        grantees, grantable = tuple(document["grantees"]), tuple(document.get("grantable", ()))
        return cls(grantees, document["own"], grantable, document.get("mark"), document.get("let_in", False))


def obstacle(connection: Connection[Any]) -> str | None:
    """Why this session can't lock writers out, in words; `None` if it can."""
    owns, superuser, signals, owner = only(connection.cursor(row_factory=tuple_row).execute(_POSSIBLE))
    if not owns and not superuser:
        return f"the database belongs to {owner}, and role {connection.info.user} is no member of it"
    if not superuser and not signals:
        return f"role {connection.info.user} may not end sessions: grant it pg_signal_backend"
    cursor = connection.cursor(row_factory=tuple_row)
    by_others = cursor.execute(_BY_OTHERS).fetchall()
    if by_others:
        listed = ", ".join(f"{grantor} to {grantee}" for grantor, grantee in by_others)
        return (
            f"the right to connect was passed on ({listed}), which only its grantor can take back and give again:"
            f" REVOKE it, and GRANT it as {owner}"
        )
    members = [row[0] for row in cursor.execute(_MEMBERS).fetchall()]
    if members and not superuser:
        return (
            f"{', '.join(members)} can log in as members of {connection.info.user}, whose right to connect the run"
            " itself needs: let the run log in as a role of its own that is a member of the owner"
        )
    return None


def observe(connection: Connection[Any]) -> Lockout:
    """Whose right would be taken."""
    cursor = connection.cursor(row_factory=tuple_row)
    found = cursor.execute(_GRANTEES, _READER).fetchall()
    grantable = tuple(name for name, is_grantable in found if is_grantable and name is not None)
    own, has_it = only(cursor.execute(_OWN))
    return Lockout(tuple(name for name, _ in found), None if has_it else own, grantable)


def unexplained(connection: Connection[Any]) -> str | None:
    """That nobody has a right to connect, and how one is given back, where no run's record says whose was taken; `None`
    where anybody has."""
    if observe(connection).grantees:
        return None
    *_, owner = only(connection.cursor(row_factory=tuple_row).execute(_POSSIBLE))
    if connection.info.user == owner:
        # Whose own right is enough, and was never taken.
        return None
    name = connection.info.dbname
    return (
        f"Nobody has the right to connect to database {name}, as while a run locks writers out, and the run's record is"
        " gone. Once the database is as it should be, give it back to the application's role: GRANT CONNECT ON DATABASE"
        f' "{name}" TO ROLE_NAME.'
    )


def lock_out(
    connection: Connection[Any],
    lockout: Lockout,
    note: Callable[[Lockout], None],
    report: Callable[[str], None],
) -> None:
    """Take the rights and end the sessions; returns once nobody else is connected.

    Args:
        note: keeps what is known of the lockout, in the transaction that takes the rights.

    Raises:
        LockoutError: a session doesn't end, or may not be ended.
    """
    _take(connection, lockout, lockout.grantees, note)
    _end_sessions(connection, report)


def lock_out_again(
    connection: Connection[Any],
    lockout: Lockout,
    note: Callable[[Lockout], None],
    report: Callable[[str], None],
) -> None:
    """Lock out as before, also who was given the right to connect meanwhile, and note that somebody was.

    Raises:
        LockoutError: as `lock_out`.
    """
    given = [name for name in observe(connection).grantees if name not in lockout.grantees]
    let_in = lockout.let_in or was_lifted(connection, lockout)
    _take(connection, replace(lockout, let_in=let_in), (*lockout.grantees, *given), note)
    _end_sessions(connection, report)


def _take(
    connection: Connection[Any],
    lockout: Lockout,
    grantees: Sequence[str | None],
    note: Callable[[Lockout], None],
) -> None:
    with connection.transaction():
        if lockout.own is not None:
            _change(connection, "GRANT CONNECT ON DATABASE {} TO {}", (lockout.own,))
        _change(connection, "REVOKE CONNECT ON DATABASE {} FROM {}", grantees)
        note(replace(lockout, mark=_mark(connection)))


def was_lifted(connection: Connection[Any], lockout: Lockout) -> bool:
    """Whether rights on the database were changed since they were taken, by the run's own SQL or by a person."""
    return lockout.mark is not None and lockout.mark != _mark(connection)


def _mark(connection: Connection[Any]) -> str:
    (mark,) = only(connection.cursor(row_factory=tuple_row).execute(_MARK))
    return str(mark)


def _end_sessions(connection: Connection[Any], report: Callable[[str], None]) -> None:
    deadline = time.monotonic() + DRAIN_LIMIT
    told = False
    # Whoever begins from now on is refused; these may have come through before.
    starting = _starting(connection)
    while True:
        # In this order: who isn't starting any more is among the others, or gone.
        starting &= _starting(connection)
        others = _others(connection)
        if not starting and not others:
            _refuse_prepared(connection)
            return
        if not others:
            _give_up_after(deadline, starting)
            time.sleep(_PAUSE)
            continue
        if not told:
            report(f"ending {len(others)} sessions of {', '.join(sorted({user for _, user in others}))}")
            told = True
        _end(connection, [pid for pid, _ in others])
        _give_up_after(deadline, {pid for pid, _ in others})
        time.sleep(_PAUSE)


def _refuse_prepared(connection: Connection[Any]) -> None:
    """What a prepared transaction has written is seen by nobody, and is there once somebody commits it: after a restore
    nowhere any more."""
    row = connection.cursor(row_factory=tuple_row).execute(_PREPARED).fetchone()
    if row is not None:
        raise LockoutError(
            f"the prepared transaction {row[0]} of {row[1]} is open; COMMIT PREPARED or ROLLBACK PREPARED ends it"
        )


def _give_up_after(deadline: float, pids: Set[int]) -> None:
    if time.monotonic() > deadline:
        listed = ", ".join(str(pid) for pid in sorted(pids))
        raise LockoutError(f"sessions {listed} did not end within {DRAIN_LIMIT:g} s")


def lift_lockout(connection: Connection[Any], lockout: Lockout) -> None:
    """Give the rights back as they were; safe to repeat."""
    plain = [name for name in lockout.grantees if name not in lockout.grantable]
    _change(connection, "GRANT CONNECT ON DATABASE {} TO {}", plain)
    _change(connection, "GRANT CONNECT ON DATABASE {} TO {} WITH GRANT OPTION", lockout.grantable)
    if lockout.own is not None:
        _change(connection, "REVOKE CONNECT ON DATABASE {} FROM {}", (lockout.own,))


def _change(connection: Connection[Any], statement: LiteralString, grantees: Sequence[str | None]) -> None:
    if not grantees:
        return
    (name,) = only(connection.execute("SELECT pg_catalog.current_database()"))
    whom = [sql.SQL("PUBLIC") if name is None else sql.Identifier(name) for name in grantees]
    connection.execute(sql.SQL(statement).format(sql.Identifier(name), sql.SQL(", ").join(whom)))


def _others(connection: Connection[Any]) -> list[tuple[int, str]]:
    rows = connection.cursor(row_factory=tuple_row).execute(_OTHERS, _READER).fetchall()
    return [(row[0], row[1]) for row in rows]


def _starting(connection: Connection[Any]) -> set[int]:
    return {row[0] for row in connection.cursor(row_factory=tuple_row).execute(_STARTING).fetchall()}


def _end(connection: Connection[Any], pids: Sequence[int]) -> None:
    row = connection.execute("SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname = session_user").fetchone()
    # A member that doesn't inherit has the right only as that role, which ends with the transaction, however that ends.
    with connection.transaction():
        connection.execute("RESET ROLE" if row and row[0] else "SET LOCAL ROLE pg_signal_backend")
        connection.execute("SELECT pg_catalog.pg_terminate_backend(pid) FROM unnest(%s::int[]) pid", (list(pids),))
        connection.execute("RESET ROLE")
