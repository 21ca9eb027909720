"""Backups in several repositories at once: whole or not there, with a real dump, and in bounded memory."""

from __future__ import annotations

import gzip
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pyrage
import pytest
from aiohttp import web

from integration.backup_samples import (
    ENVIRONMENT,
    MEBIBYTE,
    ORIGIN,
    back_up,
    manifest_of,
    noise,
    one,
    paths,
)
from integration.object_store import IMPATIENT, Bucket, Front, ObjectStore, silence, status
from integration.postgres_server import Database
from medianest_operator.backups.logical import premigration
from medianest_operator.backups.logical.dump import dump
from medianest_operator.backups.repository import facts, layout
from medianest_operator.backups.repository.catalog import Catalog, State, ids_ahead
from medianest_operator.backups.repository.client import Repository, RepositoryError, open_folder
from medianest_operator.backups.repository.layout import Format, Origin, Place, Tier
from medianest_operator.backups.repository.manifest import File, Manifest
from medianest_operator.backups.repository.store import Content, fetch, store
from medianest_operator.migrations.bundled import bundled_migrations
from medianest_operator.migrations.run.evidence import application_catalog


class TestStoring:
    def test_one_stream_reaches_every_repository(self, tmp_path: Path, bucket: Bucket) -> None:
        repositories = [open_folder(tmp_path / "one", "one"), open_folder(tmp_path / "two", "two"), bucket.open()]
        place, results = back_up(repositories, noise(20))
        assert {name: result.ok for name, result in results.items()} == {"one": True, "two": True, "bucket": True}
        contents = set()
        for repository in repositories:
            backup = one(repository, place)
            assert (backup.state, backup.manifest is not None) == (State.COMPLETE, True)
            assert backup.manifest
            [file] = [file for file in backup.manifest.files if file.format is Format.CUSTOM]
            contents.add(b"".join(fetch(repository, place, file)))
            assert paths(repository) == [place.file(n) for n in ("data.dump", "manifest.json", "schema.sql.gz")]
        assert len(contents) == 1

    def test_a_repository_that_fails_keeps_nothing_and_leaves_the_others_alone(
        self, tmp_path: Path, bucket: Bucket, front: Front
    ) -> None:
        folder = open_folder(tmp_path / "backups", "folder")
        failing = bucket.open(IMPATIENT, endpoint=front.endpoint)
        front.spoil(status(503, "SlowDown", "PUT", "partNumber=2"))
        place, results = back_up([failing, folder], noise(20))
        assert results["folder"].ok
        assert not results["bucket"].ok
        assert results["bucket"].transient
        assert "the server is overloaded or down" in results["bucket"].message
        assert one(folder, place).state is State.COMPLETE
        assert bucket.files == []
        assert bucket.unfinished == []

    @pytest.mark.parametrize("name", ["schema.sql.gz", "manifest.json", "writing-"])
    def test_a_repository_that_fails_late_keeps_nothing(
        self, tmp_path: Path, bucket: Bucket, front: Front, name: str
    ) -> None:
        async def fault(request: web.Request) -> web.StreamResponse | None:
            if name in request.path and request.method == "PUT":
                return await status(500)(request)
            return None

        front.spoil(fault)
        folder = open_folder(tmp_path / "backups", "folder")
        _, results = back_up([bucket.open(IMPATIENT, endpoint=front.endpoint), folder])
        assert (results["bucket"].ok, results["folder"].ok) == (False, True)
        assert bucket.files == []

    def test_a_manifest_that_nobody_can_read_stops_no_backup(self, bucket: Bucket, front: Front) -> None:
        """Such as one in an archive class; its id is of a year to come."""
        repository = bucket.open(IMPATIENT, endpoint=front.endpoint)
        origin = Origin("media", "nest", "1")
        far = Place(origin, Tier.DAILY, "21981231T235959Z-daily-aaaa")
        repository.write(far.file("manifest.json"), [b"{}"])
        front.spoil(status(403, "InvalidObjectState", "GET", "21981231"))
        assert ids_ahead(repository, origin, datetime.now(UTC)) == []

    def test_where_all_fail_the_stream_is_not_read_to_its_end(self, bucket: Bucket, front: Front) -> None:
        read = 0

        def endless() -> Iterator[bytes]:
            nonlocal read
            while True:
                read += 1
                yield bytes(MEBIBYTE)

        front.spoil(silence("PUT"))
        _, results = back_up([bucket.open(IMPATIENT, endpoint=front.endpoint)], endless())
        assert "no answer came" in results["bucket"].message
        assert read < 10
        assert bucket.files == []

    @pytest.mark.parametrize("after", [1, 30])
    def test_a_dump_that_fails_leaves_nothing(self, tmp_path: Path, bucket: Bucket, after: int) -> None:
        repositories = [open_folder(tmp_path / "backups", "folder"), bucket.open()]

        def failing() -> Iterator[bytes]:
            yield from noise(after)
            raise KeyError("the dump")

        with pytest.raises(KeyError, match="the dump"):
            back_up(repositories, failing())
        assert [paths(repository) for repository in repositories] == [[], []]
        assert bucket.unfinished == []
        assert [path for path in (tmp_path / "backups").rglob("*") if path.is_file()] == []

    def test_a_manifest_that_can_not_be_made_leaves_nothing(self, repository: Repository) -> None:
        place = Place(ORIGIN, Tier.DAILY, layout.new_id(Tier.DAILY, datetime.now(UTC)))

        def refuse(files: tuple[File, ...]) -> Manifest:
            raise KeyError("the row counts")

        with pytest.raises(KeyError, match="the row counts"):
            store([repository], place, [Content(Format.CUSTOM, noise(1))], refuse)
        assert paths(repository) == []

    def test_two_at_once_do_not_mix(self, repository: Repository) -> None:
        inner: list[Place] = []

        def while_another_runs() -> Iterator[bytes]:
            yield from noise(1)
            inner.append(back_up([repository])[0])
            yield from noise(1)

        outer, _ = back_up([repository], while_another_runs())
        assert [one(repository, place).state for place in (outer, *inner)] == [State.COMPLETE] * 2
        for place in (outer, *inner):
            for file in manifest_of(repository, place).files:
                assert b"".join(fetch(repository, place, file))

    def test_a_signal_is_heard_while_a_repository_hangs(self, bucket: Bucket, front: Front) -> None:
        """A pod that is to go has half a minute."""
        front.spoil(silence("PUT"))
        script = (
            "import signal, sys\n"
            "from datetime import UTC, datetime\n"
            "from medianest_operator.backups.repository.layout import *\n"
            "from medianest_operator.backups.repository.locations import Patience\n"
            "from medianest_operator.backups.repository.client import open_repository\n"
            "from medianest_operator.backups.repository.store import Content, store\n"
            "def stop(number, frame):\n"
            "    raise SystemExit('stopped')\n"
            "def chunks():\n"
            "    print('begun', flush=True)\n"
            "    while True:\n"
            "        yield bytes(1 << 20)\n"
            "signal.signal(signal.SIGTERM, stop)\n"
            "place = Place(Origin('a', 'b', '1'), Tier.DAILY, new_id(Tier.DAILY, datetime.now(UTC)))\n"
            "patience = Patience(connect=1, silence=5, request=5, retries=0, retry_for=1)\n"
            "store([open_repository(sys.argv[1], patience)], place, [Content(Format.CUSTOM, chunks())], None)\n"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", script, bucket.text(endpoint=front.endpoint)],
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdout
        assert process.stdout.readline() == "begun\n"
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=180)
        assert (process.returncode, errors.strip()) == (1, "stopped")
        assert bucket.files == []


class TestDatabase:
    """With a real dump."""

    def test_a_migrations_backup_is_one_of_the_common_kind(
        self, people: Database, tmp_path: Path, bucket: Bucket
    ) -> None:
        repositories = [open_folder(tmp_path / "backups", "folder"), bucket.open()]
        with people.connect() as connection:
            found = facts.read_facts(connection)
            catalog = application_catalog(connection)
        observed = premigration.Observed(found, catalog, {"users": 3}, {}, "20250905150611_x")
        origin = Origin("media", "medianest", found.system_identifier)
        taken = premigration.take(repositories, origin, dump(people.environment()), observed)
        assert taken.repositories == tuple(repository.name for repository in repositories)
        path = taken.path
        for repository in repositories:
            backup = Catalog.read(repository, origin).choose("latest")
            assert backup.place.file("data.dump.zst") == path
            manifest = backup.manifest
            assert manifest is not None
            assert (manifest.owner, manifest.dbname, manifest.encoding) == ("medianest", people.name, "UTF8")
            assert {"medianest", "medianest_app", "medianest_readonly"} <= {role.name for role in manifest.roles}
            dumped = manifest.file(Format.CUSTOM)
            assert dumped is not None
            assert dumped.bytes == taken.size
            stored = manifest.file(Format.CATALOG)
            assert stored is not None
            text = gzip.decompress(b"".join(fetch(repository, backup.place, stored))).decode()
            assert text == catalog.to_json()
            assert b"".join(premigration.read([repository], path)).startswith(b"PGDMP")
        # One that is gone is made up for by the other.
        repositories[0].delete(backup.place.file("manifest.json"))
        assert b"".join(premigration.read(repositories, path)).startswith(b"PGDMP")

    def test_a_migration_backs_up_where_its_command_line_says(
        self, people: Database, tmp_path: Path, bucket: Bucket
    ) -> None:
        (tmp_path / "source").mkdir()
        for migration in bundled_migrations():
            (tmp_path / "source" / f"{migration.name}.sql").write_text(migration.sql)
        (tmp_path / "source" / "20260101120000_next.sql").write_text("CREATE TABLE notes (id text)")
        result = tmp_path / "result.json"
        command = [
            *(sys.executable, "-m", "medianest_operator.agent", "migrate", "--source", str(tmp_path / "source")),
            *("--rehearse", "Never", "--repository", f"main=file://{tmp_path}/backups", "--repository", bucket.text()),
            *("--result-file", str(result), "--namespace", "media"),
        ]
        environment = ENVIRONMENT | people.environment()
        wrong = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert (wrong.returncode, "give --namespace and --name together" in wrong.stderr) == (1, True), wrong.stderr
        done = subprocess.run(
            [*command, "--name", "medianest"], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        told = json.loads(result.read_text())
        assert told["stored_backup"]["repositories"] == ["main", bucket.open().name]
        assert told["stored_backup"]["restored"] is False
        for repository in (open_folder(tmp_path / "backups"), bucket.open()):
            backup = Catalog.read(repository).choose("latest")
            assert (backup.place.origin.namespace, backup.place.origin.name) == ("media", "medianest")
            assert backup.place.file("data.dump.zst") == told["backup"]
            assert backup.manifest is not None
            assert backup.manifest.rows["users"] == 3
            assert backup.manifest.file(Format.CUSTOM).bytes == told["stored_backup"]["bytes"]  # type: ignore[union-attr]

    def test_no_repository_no_backup(self, people: Database, bucket: Bucket, front: Front, tmp_path: Path) -> None:
        failing = bucket.open(IMPATIENT, endpoint=front.endpoint)
        front.spoil(status(503, "SlowDown"))
        with people.connect() as connection:
            observed = premigration.Observed(facts.read_facts(connection), application_catalog(connection), {}, {})
        with pytest.raises(RepositoryError, match="the server is overloaded or down") as caught:
            premigration.take([failing], ORIGIN, dump(people.environment()), observed)
        assert caught.value.transient
        told: list[str] = []
        folder = open_folder(tmp_path / "backups", "folder")
        premigration.take([failing, folder], ORIGIN, dump(people.environment()), observed, told.append)
        assert told
        assert told[0].startswith("warning: not backed up there: repository bucket")


MEMORY = """
import hashlib, os, re, sys
from datetime import UTC, datetime
from medianest_operator.backups.repository.encryption import decrypt, encrypt
from medianest_operator.backups.repository.layout import *
from medianest_operator.backups.repository.manifest import Manifest
from medianest_operator.backups.repository.client import open_repository
from medianest_operator.backups.repository.store import Content, fetch, store
from backup_documents import sample_manifest

# Not ru_maxrss, which a child has from its parent.
def peak():
    with open('/proc/self/status') as status:
        return re.search(r'VmHWM:\\s+(\\d+)', status.read())[1]

key, public, *texts = sys.argv[1:]
repositories = [open_repository(text) for text in texts]
place = Place(Origin('a', 'b', '1'), Tier.DAILY, new_id(Tier.DAILY, datetime.now(UTC)))
before = peak()
plain = hashlib.sha256()
def chunks():
    for _ in range(300):
        block = os.urandom(1 << 20)
        plain.update(block)
        yield block
source = encrypt(chunks(), [public]) if key else chunks()
def manifest(files):
    return sample_manifest(place, datetime.now(UTC), files)
made, results = store(repositories, place, [Content(Format.CUSTOM, source, bool(key))], manifest)
assert all(result.ok for result in results.values()), results
for repository in repositories:
    digest, stored = hashlib.sha256(), fetch(repository, place, made.files[0])
    for chunk in decrypt(stored, [key]) if key else stored:
        digest.update(chunk)
    assert digest.digest() == plain.digest()
print(before, peak())
"""


@pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "encrypted"])
def test_memory_is_bounded(bucket: Bucket, object_store: ObjectStore, tmp_path: Path, encrypted: bool) -> None:
    """300 MB through a folder and two buckets and back again."""
    key = pyrage.x25519.Identity.generate()
    second = object_store.bucket().text().replace("bucket=", "second=", 1)
    texts = [f"folder=file://{tmp_path}/backups", bucket.text(), second]
    environment = ENVIRONMENT | {"PYTHONPATH": ENVIRONMENT["PYTHONPATH"] + f":{Path(__file__).parents[1]}"}
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(key) if encrypted else "", str(key.to_public()), *texts],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    before, after = (int(number) // 1024 for number in done.stdout.split())
    print(f"{before} MiB before, at most {after} MiB")
    # Three repositories with up to 18 MiB of parts each, and the stream's own pieces.
    assert after - before < 100
