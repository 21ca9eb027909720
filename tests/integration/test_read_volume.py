"""How far the data of a stopped server go, against what the server itself said while it ran."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from integration.commands import dbctl
from integration.postgres_server import PostgresServer, binary, running_server, wait_until
from medianest_operator.agent.volume import UnreadableVolume, read_volume
from medianest_operator.health import probe
from medianest_operator.health.probe import History
from medianest_operator.results.volume import VolumeState

PROGRAMS = Path(binary("pg_waldump")).parent
POSITION = "SELECT pg_wal_lsn_diff(pg_current_wal_flush_lsn(), '0/0')::bigint"


@pytest.fixture
def primary() -> Iterator[PostgresServer]:
    with running_server("wal_keep_size=64MB") as server:
        server.maintenance.execute("CREATE TABLE ledger (n int PRIMARY KEY)")
        yield server


@pytest.fixture
def replica(primary: PostgresServer) -> Iterator[PostgresServer]:
    with running_server(copy_of=(primary, "replica")) as server:
        yield server


def write(server: PostgresServer, rows: int = 100) -> int:
    """Write some rows. Returns how far the log goes then."""
    server.maintenance.execute(
        f"INSERT INTO ledger SELECT (SELECT coalesce(max(n), 0) FROM ledger) + i FROM generate_series(1, {rows}) i"
    )
    return int(server.maintenance.execute(POSITION)[0][0])


def follow(replica: PostgresServer, position: int) -> None:
    """Wait until a replica has the log up to there."""
    with replica.maintenance.connect() as connection:
        wait_until(connection, "SELECT pg_wal_lsn_diff(pg_last_wal_replay_lsn(), '0/0') >= %s", position)


def stop(server: PostgresServer, how: signal.Signals = signal.SIGQUIT) -> VolumeState:
    """Stop a server, by default as a crash does, and read what it left."""
    server.process.send_signal(how)
    server.process.wait()
    return read_volume(server.folder / "data", PROGRAMS)


def test_a_crashed_primary_is_read_to_its_last_record(primary: PostgresServer) -> None:
    """Its control file is of long before."""
    position = write(primary)
    identity = primary.maintenance.execute("SELECT system_identifier::text FROM pg_control_system()")[0][0]
    state = stop(primary)
    assert (state.ends_at, state.timeline, dict(state.promotions)) == (position, 1, {})
    assert state.system_identifier == identity


def test_a_log_may_end_together_with_a_segment(primary: PostgresServer) -> None:
    write(primary)
    primary.maintenance.execute("SELECT pg_switch_wal()")
    position = int(primary.maintenance.execute(POSITION)[0][0])
    assert position % (16 << 20) == 0
    assert stop(primary).ends_at == position


def test_the_primary_has_what_its_replica_has_not_yet(primary: PostgresServer, replica: PostgresServer) -> None:
    follow(replica, write(primary))
    behind = stop(replica)
    write(primary)
    ahead = stop(primary)
    assert ahead.continues(behind)
    assert not behind.continues(ahead)


def test_after_a_switchover_the_new_primary_leads(primary: PostgresServer, replica: PostgresServer) -> None:
    """Whoever stopped in order has given the replica all; the replica was promoted a moment before the end of all."""
    write(primary)
    before = stop(primary, signal.SIGINT)
    replica.maintenance.execute("SELECT pg_promote()")
    end = replica.maintenance.execute("SELECT pg_walfile_name(pg_current_wal_flush_lsn())")[0][0]
    assert end.startswith("00000002")
    after = stop(replica)
    assert after.timeline == 2
    assert after.promotions[1] >= before.ends_at
    assert after.continues(before)
    assert not before.continues(after)


def test_what_was_written_beside_a_promotion_is_noticed(primary: PostgresServer, replica: PostgresServer) -> None:
    follow(replica, write(primary))
    replica.maintenance.execute("SELECT pg_promote()")
    write(replica)
    write(primary)
    here, there = stop(primary), stop(replica)
    assert (here.timeline, there.timeline) == (1, 2)
    assert not here.continues(there)
    assert not there.continues(here)


def test_two_promotions_to_the_same_timeline_are_told_apart(primary: PostgresServer, replica: PostgresServer) -> None:
    follow(replica, write(primary))
    with running_server(copy_of=(primary, "second")) as second:
        follow(replica, write(primary))
        follow(second, int(primary.maintenance.execute(POSITION)[0][0]))
        replica.maintenance.execute("SELECT pg_promote()")
        follow(second, write(primary))
        second.maintenance.execute("SELECT pg_promote()")
        states = [stop(replica), stop(second)]
    assert [state.timeline for state in states] == [2, 2]
    assert not states[0].continues(states[1])
    assert not states[1].continues(states[0])


def promote_both(primary: PostgresServer, *replicas: PostgresServer) -> None:
    """Stop the primary in order and promote its replicas, each by itself; the last one is written to."""
    write(primary)
    end = stop(primary, signal.SIGINT).ends_at
    for server in replicas:
        follow(server, end)
        server.maintenance.execute("SELECT pg_promote()")
    write(replicas[-1])


def test_two_promotions_at_the_same_position_are_told_apart(primary: PostgresServer, replica: PostgresServer) -> None:
    """Both had all that the primary wrote: number and position of the promotion are the same."""
    with running_server(copy_of=(primary, "second")) as second:
        promote_both(primary, replica, second)
        states = [stop(replica), stop(second)]
    assert states[0].promotions == states[1].promotions
    assert not states[1].continues(states[0])
    assert not states[0].continues(states[1])


async def history(server: PostgresServer) -> History:
    connection = await psycopg.AsyncConnection.connect(
        host=str(server.folder), user="postgres", dbname="postgres", autocommit=True
    )
    async with connection:
        return await probe.history(connection)


async def test_servers_promoted_at_the_same_position_are_told_apart_while_they_run(
    primary: PostgresServer, replica: PostgresServer
) -> None:
    with running_server("wal_keep_size=128MB", copy_of=(primary, "second")) as second:
        promote_both(primary, replica, second)
        with running_server(copy_of=(second, "third")) as third:
            follow(third, write(second))
            twins, its_own = [await history(replica), await history(second)], await history(third)
    assert twins[0].promotions == twins[1].promotions
    assert not twins[1].continues(twins[0])
    assert twins[1].continues(its_own)


def test_another_clusters_data_are_nobodys_earlier_state(primary: PostgresServer) -> None:
    with running_server(own_identifier=True) as other:
        states = [stop(other), stop(primary)]
    assert not states[0].continues(states[1])
    assert not states[1].continues(states[0])


def test_a_folder_without_a_database_is_empty(tmp_path: Path) -> None:
    assert read_volume(tmp_path, PROGRAMS).is_empty


def test_damage_is_told(primary: PostgresServer, replica: PostgresServer) -> None:
    replica.maintenance.execute("SELECT pg_promote()")
    write(replica)
    assert stop(replica).timeline == 2
    data = replica.folder / "data"
    control, log, history = (
        data / "global" / "pg_control",
        next((data / "pg_wal").glob("00000002????????????????")),
        data / "pg_wal" / "00000002.history",
    )
    for file, says in [(control, "pg_controldata"), (log, "pg_waldump"), (history, "history of timeline 2")]:
        whole = file.read_bytes()
        file.write_bytes(bytes(300) + whole[300:])
        with pytest.raises(UnreadableVolume, match=says):
            read_volume(data, PROGRAMS)
        file.write_bytes(whole)


def test_the_command_tells_it_to_people_and_to_the_operator(primary: PostgresServer, tmp_path: Path) -> None:
    position = write(primary)
    stop(primary)
    result = tmp_path / "result.json"
    arguments = ("read-volume", str(primary.folder / "data"), "--programs", str(PROGRAMS), "--result-file", str(result))
    done = dbctl({}, *arguments)
    assert done.returncode == 0
    assert f"log up to {position >> 32:X}/{position & 0xFFFFFFFF:X}" in done.stdout
    assert json.loads(result.read_text())["ends_at"] == position
    (primary.folder / "data" / "global" / "pg_control").write_bytes(b"nothing")
    done = dbctl({}, *arguments)
    assert done.returncode == 1
    assert "can't be read" in json.loads(result.read_text())["message"]
