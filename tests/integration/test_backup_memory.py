"""The Jobs around backups stay small, however large the database is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from integration.backup_runs import WHOSE, Bench, add_backup_role, candidate
from integration.memory import Watch
from integration.object_store import Bucket
from integration.postgres_server import Database, PostgresServer

LIMIT = 128 << 20
# Some 300 MB, of which two thirds stay when they are packed.
_MUCH = """
INSERT INTO users (id, email) VALUES ('u1', 'u1@example.org');
INSERT INTO error_logs (id, correlation_id, user_id, error_code, error_message, stack_trace, request_path,
                        request_method)
SELECT 'big' || n, md5(n::text), 'u1', 'E', 'failed',
       (SELECT string_agg(md5(n || ' ' || l), '') FROM generate_series(1, 60) l), '/', 'GET'
  FROM generate_series(1, 150000) n
"""


@pytest.fixture
def large(server: PostgresServer, template: Database) -> Iterator[Database]:
    add_backup_role(server)
    made = server.create_database(template.name)
    made.execute(_MUCH)
    assert made.execute("SELECT pg_database_size(current_database()) > 290000000") == [(True,)]
    yield made
    server.drop_database(made)


def test_jobs_stay_small(large: Database, bucket: Bucket, room: Path) -> None:
    (room / "work").mkdir()
    (room / "work").chmod(0o777)
    bench = Bench(large, room, [f"main=file://{room}/main", bucket.text()])
    target = candidate(large.server)
    work = ("--work-dir", str(bench.work))
    runs = {
        "backup": (large, "medianest_backup", ["backup", *bench.places, *WHOSE, "--tier", "daily"]),
        "restore": (target, "medianest_migrator", ["restore", *bench.places[2:], *WHOSE, *work]),
        "verify": (large, "medianest_backup", ["verify", *bench.places, *WHOSE, *work]),
    }
    peaks = {}
    try:
        for name, (database, user, arguments) in runs.items():
            run = bench.start(*arguments, database=database, user=user, measured=True)
            watch = Watch(run.process.pid)
            try:
                answer = run.end()
            finally:
                peaks[name] = watch.stop()
            assert answer.code == 0, answer.text
    finally:
        large.server.drop_database(target)
    assert {name: peak >> 20 for name, peak in peaks.items() if peak > LIMIT} == {}
