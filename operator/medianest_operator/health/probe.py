"""What one probe of an instance over SQL tells."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import LiteralString

from psycopg.rows import dict_row

from medianest_operator import naming
from medianest_operator.postgres import read_only, timelines
from medianest_operator.postgres.parameters import MARKER
from medianest_operator.postgres.read_only import Mark
from medianest_operator.postgres.sessions import Connection


@dataclass(frozen=True)
class Replica:
    """A replica as its primary sees it. How far it is behind makes it no other one."""

    name: str
    state: str
    sync_state: str
    lag_bytes: int = field(compare=False)

    @property
    def is_streaming(self) -> bool:
        return self.state == "streaming"

    @property
    def is_synchronous(self) -> bool:
        """Whether commits wait for it, or for one of several like it."""
        return self.is_streaming and self.sync_state in {"sync", "quorum"}


@dataclass(frozen=True)
class InstanceFacts:
    """One instance, asked over SQL. How many are connected doesn't make it another answer."""

    in_recovery: bool
    connections: int = field(compare=False)
    max_connections: int
    reserved_connections: int
    """Those that only superusers get."""
    certificate_newer: bool
    """The certificate's file is newer than the configuration that PostgreSQL runs with: a reload is due."""
    configuration: str | None
    """Which configuration the server has read, by its marker."""
    pending_restart: bool
    """PostgreSQL says that a changed parameter takes effect only after a restart."""
    refused_parameters: list[str]
    """Lines of the configuration files that PostgreSQL could not apply."""
    synchronous_standbys: str
    """`synchronous_standby_names`: whom a commit waits for; nobody where it is empty."""
    databases: str
    """Another text whenever one of the server's databases is made, changed, renamed or dropped."""
    roles: str
    """Another text whenever a role, or its password, does."""
    read_only: Mark | None = None
    """What says that the operator let the application only read."""
    replicas: tuple[Replica, ...] = ()
    """Those that stream from it, where it is a primary."""
    replayed: int | None = field(default=None, compare=False)
    """How far a replica has replayed the log, in bytes."""
    written: int = field(default=0, compare=False)
    """How many rows were written on the server, definitions among them, since its statistics began: while it stays the
    same, nothing has changed there (PostgreSQL manual, pg_stat_database)."""

    @property
    def reads_only(self) -> bool:
        """Whether the application can only read, because the operator made it so."""
        return self.read_only is not None and self.read_only.is_on

    @property
    def is_full(self) -> bool:
        """Whether nobody but a superuser can connect."""
        return self.connections >= self.max_connections - self.reserved_connections


_FACTS: LiteralString = """
SELECT pg_is_in_recovery() AS in_recovery,
       pg_wal_lsn_diff(pg_last_wal_replay_lsn(), '0/0')::bigint AS replayed,
       (SELECT sum(tup_inserted + tup_updated + tup_deleted)::bigint FROM pg_stat_database) AS written,
       (SELECT count(*)::int FROM pg_stat_activity WHERE backend_type = 'client backend') AS connections,
       current_setting('max_connections')::int AS max_connections,
       current_setting('superuser_reserved_connections')::int AS reserved_connections,
       coalesce((pg_stat_file(%(certificate)s, true)).modification > pg_conf_load_time(), false) AS certificate_newer,
       coalesce((SELECT array_agg(format('%%s = %%s: %%s', name, setting, error) ORDER BY name)
                 FROM pg_file_settings WHERE error IS NOT NULL AND error <> 'setting could not be applied'), '{}')
         AS refused_parameters,
       current_setting('synchronous_standby_names') AS synchronous_standbys,
       current_setting(%(marker)s, true) AS configuration,
       EXISTS (SELECT FROM pg_settings WHERE pending_restart) AS pending_restart,
       (SELECT md5(string_agg(concat_ws(':', oid, xmin), ',' ORDER BY oid)) FROM pg_database) AS databases,
       (SELECT md5(string_agg(concat_ws(':', oid, xmin), ',' ORDER BY oid)) FROM pg_authid) AS roles,
       (SELECT json_build_array(left(split_part(mark, '=', 2), 64),
                                'default_transaction_read_only=on' = ANY (s.setconfig))
          FROM pg_db_role_setting s JOIN pg_database d ON d.oid = s.setdatabase, unnest(s.setconfig) mark
         WHERE d.datname = %(database)s AND s.setrole = 0 AND split_part(mark, '=', 1) = %(since)s) AS read_only,
       coalesce((SELECT json_agg(r) FROM (
           SELECT application_name AS name, state, sync_state,
                  coalesce(pg_wal_lsn_diff(pg_current_wal_lsn(), replay_lsn), 0)::bigint AS lag_bytes
             FROM pg_stat_replication WHERE NOT pg_is_in_recovery()
       ) r), '[]') AS replicas
"""


async def instance_facts(connection: Connection, database: str) -> InstanceFacts:
    """Ask one instance, in one round trip.

    Args:
        database: the application's.
    """
    async with connection.cursor(row_factory=dict_row) as cursor:
        certificate = f"{naming.SERVER_TLS_MOUNT}/{naming.TLS_CERT}"
        values = {"certificate": certificate, "marker": MARKER, "database": database, "since": read_only.SINCE}
        await cursor.execute(_FACTS, values)
        row = await cursor.fetchone()
    if row is None:
        raise RuntimeError("a SELECT without FROM returned no row")
    marked = row["read_only"]
    made = {
        "replicas": tuple(Replica(**replica) for replica in row["replicas"]),
        "read_only": Mark.parse(marked[0], is_on=marked[1]) if marked is not None else None,
    }
    return InstanceFacts(**row | made)


async def database_size(connection: Connection) -> int:
    """Bytes of the connected database."""
    cursor = await connection.execute("SELECT pg_database_size(current_database())")
    row = await cursor.fetchone()
    return int(row[0]) if row else 0


@dataclass(frozen=True)
class History:
    """Which way a server's data has come.

    Attributes:
        promotions: the server's history files by their names; each holds all promotions before its timeline.
        position: how far its log goes, in bytes.
        begun: the first bytes of its timelines, in hex, as far as the log has them, by the names of the history files.
        started: when the server was started.
    """

    promotions: Mapping[str, str]
    position: int
    begun: Mapping[str, str] = field(default_factory=dict)
    started: str = ""

    def continues(self, other: History) -> bool:
        """Whether the other's data is an earlier state of these, as far as can be seen.

        PostgreSQL itself compares nothing where both are on one timeline: it overwrites what is different in the log.
        Two servers that were promoted from the same end have the same history files; what they wrote first is
        different.
        """
        return (
            all(self._knows(name, text) for name, text in other.promotions.items())
            and self.position >= other.position
            and all(self._began_as(other, name) for name in self.begun.keys() & other.begun.keys())
        )

    def _knows(self, name: str, text: str) -> bool:
        """Whether a promotion is in these data's past, too. A copy has no history file that is older than itself; a
        newer one holds what was in those."""
        if name in self.promotions:
            return self.promotions[name] == text
        if not self.promotions:
            return False
        try:
            past = timelines.promotions(self.promotions[max(self.promotions)])
            return int(name[:8], 16) in past and timelines.promotions(text).items() <= past.items()
        except ValueError:
            return False

    def _began_as(self, other: History, name: str) -> bool:
        here, there = self.begun[name], other.begun[name]
        return here.startswith(there) or there.startswith(here)


_POSITION: LiteralString = """
SELECT pg_wal_lsn_diff(CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_flush_lsn() END,
                       '0/0')::bigint,
       pg_size_bytes(current_setting('wal_segment_size')), pg_postmaster_start_time()::text
"""


async def history(connection: Connection) -> History:
    """The history of a server, a primary or a replica."""
    cursor = await connection.execute(
        "SELECT name, pg_read_file('pg_wal/' || name) FROM pg_ls_waldir() WHERE name ~ '^[0-9A-F]{8}[.]history$'"
    )
    promotions = {str(name): str(text) for name, text in await cursor.fetchall()}
    row = await (await connection.execute(_POSITION)).fetchone()
    if row is None:
        raise RuntimeError("a SELECT without FROM returned no row")
    position = int(row[0] or 0)
    begun = await _begun(connection, promotions, position, int(row[1]))
    return History(promotions, position, begun, str(row[2]))


async def _begun(connection: Connection, promotions: Mapping[str, str], position: int, size: int) -> dict[str, str]:
    names, files, places, lengths = [], [], [], []
    for name, text in promotions.items():
        try:
            promoted = max(timelines.promotions(text).values())
        except ValueError:
            # Its text is compared all the same.
            continue
        # What follows the end of the log is from a file's earlier use.
        if position > promoted:
            file, place = timelines.segment(int(name[:8], 16), promoted, size)
            names.append(name)
            files.append(f"pg_wal/{file}")
            places.append(place)
            lengths.append(min(timelines.FIRST_BYTES, position - promoted))
    cursor = await connection.execute(
        "SELECT name, encode(pg_read_binary_file(file, place, length, true), 'hex')"
        " FROM unnest(%s::text[], %s::text[], %s::bigint[], %s::bigint[]) AS p (name, file, place, length)",
        (names, files, places, lengths),
    )
    return {str(name): str(found) for name, found in await cursor.fetchall() if found}
