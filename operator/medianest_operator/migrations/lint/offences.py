"""Why a statement is refused: what it does, why no rollback of it could be verified, and what to do instead."""

from __future__ import annotations

from typing import NamedTuple

from medianest_operator.postgres import run_lock


class Offence(NamedTuple):
    """A rule's name, and what is wrong, why and what to do."""

    rule: str
    message: str


OUTSIDE = "a rollback of this database does not bring that back"
TAKE_OUT = "take the statement out of the migration"

DATABASE = Offence(
    "other-database",
    f"creates, drops, renames or moves a whole database, and {OUTSIDE}; {TAKE_OUT}: the operator makes the database"
    " that spec.database names.",
)
ROLE = Offence(
    "role",
    "changes roles or who belongs to them. Roles belong to the whole server, so"
    f" {OUTSIDE}; {TAKE_OUT}: the operator makes the roles, and a migration may GRANT them rights on its tables.",
)
OWNED = Offence(
    "owned",
    "changes everything that a role owns, also outside of this database, so what it touches can't be known beforehand;"
    " name the objects instead, with ALTER ... OWNER TO, REVOKE or DROP.",
)
TABLESPACE = Offence(
    "tablespace",
    f"places data in a tablespace, a folder on the server that only this node has, and {OUTSIDE}; leave the tablespace"
    " out: the operator's volumes are set in spec.storage.",
)
SUBSCRIPTION = Offence(
    "subscription",
    f"starts, changes or ends replication from another server, which leaves a slot there, and {OUTSIDE}; {TAKE_OUT}"
    " and set it up by hand.",
)
FOREIGN = Offence(
    "foreign-server",
    f"gives access to another server or to files. What is then written there is outside, and {OUTSIDE}; {TAKE_OUT}"
    " and set it up by hand.",
)
SYSTEM = Offence(
    "alter-system",
    f"ALTER SYSTEM writes the configuration file of the whole server, and {OUTSIDE}; use spec.postgresql.parameters,"
    " or ALTER DATABASE ... SET for this database alone.",
)
LOAD = Offence(
    "load",
    f"LOAD puts a library's code into the server, where it can do anything; {TAKE_OUT}, or use"
    " shared_preload_libraries in spec.postgresql.parameters.",
)
LANGUAGE = Offence(
    "untrusted-language",
    f"CREATE LANGUAGE puts a library's code into the server, where it can do anything; {TAKE_OUT}, or use CREATE"
    " EXTENSION for a trusted language.",
)
TWO_PHASE = Offence(
    "two-phase",
    "ends the transaction for somebody else to commit, so the run could neither commit it nor revert it; take the"
    " statement out: the run commits on its own.",
)
AUTHORIZATION = Offence(
    "session-authorization",
    "SET SESSION AUTHORIZATION makes the rest of the run somebody else's, whose objects the operator would not know;"
    " take it out, or use SET ROLE.",
)
DISCARD = Offence(
    "discard-all",
    "DISCARD ALL gives up the lock that keeps a second run away; use RESET ALL, DISCARD PLANS or DISCARD TEMP.",
)
UNLOCK = Offence(
    "advisory-unlock",
    f"gives up the lock {run_lock.LOCK_KEY} that keeps a second run away (pg_advisory_unlock_all gives up every lock);"
    " name another key, or use pg_advisory_xact_lock, which ends with the transaction.",
)
SHARED_COMMENT = Offence(
    "shared-comment",
    "is about an object of the whole server, which the comparison before and after doesn't look at; take it out.",
)
DATABASE_RIGHTS = Offence(
    "database-grant",
    "gives or takes rights on the database. Who may connect is the operator's to say: a run takes exactly these rights"
    f" while it locks writers out and gives them back after, so what is granted here would get lost; {TAKE_OUT}.",
)
PARAMETER = Offence(
    "parameter-grant",
    f"gives rights on a setting of the whole server, and {OUTSIDE}; {TAKE_OUT}.",
)
