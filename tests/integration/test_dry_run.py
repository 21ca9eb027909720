"""What `medianest-dbctl restore` is told by an operation: which backup, what may differ, whether it fits, a dry run."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyrage
import pytest

from integration.backup_runs import WHOSE, Answer, Bench, contents, new_bench, until
from integration.postgres_server import Database
from medianest_operator.backups.logical.dry_run import read_live
from medianest_operator.backups.repository.catalog import Catalog

GIBIBYTE = 1 << 30


@pytest.fixture
def bench(medianest: Database, room: Path) -> Bench:
    return new_bench(medianest, room, "main")


def look(bench: Bench, *arguments: str) -> Answer:
    """A dry run, as the operator's Job makes it."""
    told = ["restore", *bench.places, *WHOSE, "--work-dir", str(bench.work), "--dry-run", *arguments]
    return bench.start(*told).end()


def analyze(bench: Bench) -> None:
    """So that the statistics are there at once."""
    bench.source.execute("ANALYZE")


def test_it_says_what_would_be_lost_and_what_would_come_back(bench: Bench) -> None:
    stored = bench.backup().result
    taken = stored["backup"]
    bench.verify("--backup", taken)
    bench.source.execute(
        "INSERT INTO users (id, email) SELECT 'n' || n, n || '@new' FROM generate_series(1, 30) n;"
        " DELETE FROM error_logs WHERE id < 'e2'; CREATE TABLE extra AS SELECT n FROM generate_series(1, 7) n;"
        ' CREATE SCHEMA more; CREATE TABLE more."Odd ""Name" AS SELECT n FROM generate_series(1, 3) n'
    )
    analyze(bench)
    before = contents(bench.source)
    answer = look(bench, "--backup", "latest-verified", "--volume-size", str(GIBIBYTE))
    assert answer.told == (0, "Succeeded", "Succeeded"), answer.text
    estimate = answer.result["estimate"]
    assert estimate["lost"] == [
        {"table": "users", "rows": 30}, {"table": "extra", "rows": 7}, {"table": 'more."Odd ""Name"', "rows": 3}
    ]  # fmt: skip
    assert (estimate["backup"], estimate["verified"], estimate["fits"]) == (taken, True, True)
    assert estimate["seconds"] > 0
    assert datetime.now(UTC) - datetime.fromisoformat(estimate["takenAt"]) < timedelta(minutes=5)
    assert estimate["bytes"] == stored["bytes"]
    message = answer.result["message"]
    assert re.match(
        rf"It would take backup {taken} of [-0-9]+ [:0-9]+ UTC \((just now|[0-9] minutes ago)\), [0-9.]+ KiB,", message
    )
    assert "40 rows added since (30 of users, 7 of extra, 3 of more." in message
    assert "would come back: 111 of error_logs." in message
    assert "It fits into the volume." in message
    assert contents(bench.source) == before


def test_of_the_last_backup_nothing_is_lost(bench: Bench) -> None:
    bench.backup()
    analyze(bench)
    answer = look(bench, "--backup", "latest")
    estimate = answer.result["estimate"]
    assert (estimate["lost"], estimate["verified"], estimate.get("seconds"), estimate.get("fits")) == (
        [],
        False,
        None,
        None,
    )
    assert "no table has more rows than the backup" in answer.result["message"]
    assert "not verified so far" in answer.result["message"]
    assert "How long it takes is not known" in answer.result["message"]
    assert "Whether it fits into the volume is not known." in answer.result["message"]


def test_time_is_that_of_the_newest_verification_where_this_one_has_none(bench: Bench) -> None:
    bench.backup("--verify", "--work-dir", str(bench.work))
    bench.backup()
    assert look(bench, "--backup", "latest").result["estimate"]["seconds"] > 0


def test_many_tables_make_a_result_that_is_read(bench: Bench) -> None:
    """The kubelet reads 4096 bytes."""
    bench.backup()
    name = "t" * 58
    bench.source.execute(
        "DO $$ BEGIN FOR n IN 1..60 LOOP"
        f" EXECUTE format('CREATE TABLE %I AS SELECT g FROM generate_series(1, %s) g', '{name}' || n, n);"
        " END LOOP; END $$"
    )
    analyze(bench)
    estimate = look(bench, "--backup", "latest").result["estimate"]
    lost = [item for item in estimate["lost"] if isinstance(item, dict)]
    assert lost[0] == {"table": f"{name}60", "rows": 60}
    assert len(lost) >= 10


def test_a_table_that_was_emptied_is_empty_whatever_was_analyzed_before(bench: Bench) -> None:
    """What would come back is why one restores."""
    bench.backup()
    analyze(bench)
    bench.source.execute("DELETE FROM media_requests")
    with bench.source.connect() as connection:
        connection.execute("SELECT pg_stat_force_next_flush()")
    answer = look(bench, "--backup", "latest")
    assert "would come back: 2000 of media_requests." in answer.result["message"]
    assert "of the 2000 updates and deletions that it has counted so far" in answer.result["message"]


def test_statistics_that_a_crash_has_taken_are_made_up_for(bench: Bench) -> None:
    analyze(bench)
    bench.source.execute("SELECT pg_stat_reset()")
    with bench.source.connect() as connection:
        assert read_live(connection).rows["users"] == 500


def test_a_key_that_does_not_fit_is_said_before(bench: Bench, tmp_path: Path) -> None:
    right, wrong = pyrage.x25519.Identity.generate(), pyrage.x25519.Identity.generate()
    bench.backup("--recipient", str(right.to_public()))
    for name, key, expected in (("right", right, (0, "Succeeded")), ("wrong", wrong, (1, "Failed"))):
        file = bench.folder / name
        file.write_text(str(key))
        file.chmod(0o644)
        answer = look(bench, "--backup", "latest", "--identity-file", str(file))
        assert answer.told[:2] == expected, answer.text
    assert answer.told[2] == "DecryptionFailed"
    assert look(bench, "--backup", "latest").told[2] == "DecryptionFailed"


def test_the_last_backup_before_a_moment(bench: Bench, target: Database) -> None:
    bench.backup()
    bench.source.execute("DELETE FROM media_requests")
    bench.backup()
    first, second = Catalog.read(bench.open()).backups
    exact = look(bench, "--backup", "latest", "--target-time", second.moment.isoformat())
    assert exact.result["backup"] == second.id
    told = (second.moment - timedelta(microseconds=1)).isoformat()
    assert look(bench, "--backup", "latest", "--target-time", told).result["backup"] == first.id
    answer = bench.restore(target, "--backup", "latest", "--target-time", told)
    assert (answer.code, answer.result["backup"]) == (0, first.id), answer.text
    assert contents(target)["public.media_requests"] != contents(bench.source)["public.media_requests"]
    early = look(bench, "--backup", "latest", "--target-time", "2020-01-01T00:00:00Z")
    assert early.told == (1, "Failed", "NoSuchBackup")


def test_what_was_written_while_a_backup_waited_is_later_than_when_it_began(bench: Bench) -> None:
    """It has the row, so it isn't one of before the row."""
    with bench.source.connect() as blocker:
        with blocker.transaction():
            blocker.execute("LOCK TABLE users")
            run = bench.start("backup", *bench.places, *WHOSE, "--tier", "daily")
            until(lambda: bool(blocker.execute("SELECT 1 FROM pg_locks WHERE NOT granted").fetchall()))
            moment = datetime.now(UTC)
            blocker.execute("INSERT INTO users (id, email) VALUES ('late', 'late@example.org')")
        taken = run.end()
    assert taken.code == 0, taken.text
    answer = look(bench, "--backup", "latest", "--target-time", moment.isoformat())
    assert answer.told == (1, "Failed", "NoSuchBackup"), answer.text
    assert f"or earlier: the oldest, {taken.result['backup']}, is of 20" in answer.result["message"]
    assert datetime.fromisoformat(taken.result["startedAt"]) < moment < Catalog.read(bench.open()).backups[0].moment
    ended = look(bench, "--backup", "latest", "--target-time", taken.result["finishedAt"])
    assert ended.result["backup"] == taken.result["backup"]


def test_what_does_not_fit_is_refused(bench: Bench, target: Database) -> None:
    bench.backup()
    answer = bench.restore(target, "--backup", "latest", "--volume-size", str(16 << 20))
    assert answer.told == (1, "Failed", "NoRoom")
    assert "There is not enough space: the server's databases take" in answer.result["message"]
    assert "Raise spec.storage.size first." in answer.result["message"]
    assert contents(target) == {}
    dry = look(bench, "--backup", "latest", "--volume-size", str(16 << 20))
    assert dry.told == (0, "Succeeded", "Succeeded")
    assert dry.result["estimate"]["fits"] is False
    assert "There is not enough space" in dry.result["message"]
    assert bench.restore(target, "--backup", "latest", "--volume-size", str(100 * GIBIBYTE)).code == 0


def test_what_a_restore_would_refuse_is_said_unless_it_is_accepted(bench: Bench) -> None:
    bench.source.execute("CREATE PUBLICATION everything FOR ALL TABLES")
    bench.backup()
    assert bench.verify().code == 0
    words = "A restore in place can't bring back publication everything as it was, and is refused unless"
    assert words in look(bench, "--backup", "latest").result["message"]
    accepted = look(bench, "--backup", "latest", "--accept-difference", "publication everything")
    assert "can't bring back" not in accepted.result["message"]
