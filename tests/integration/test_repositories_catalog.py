"""What a repository has: backups listed, chosen, read, damaged, left over and removed."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from aiohttp import web

from integration.backup_samples import (
    ORIGIN,
    OTHER,
    age_files,
    back_up,
    manifest_of,
    one,
    paths,
)
from integration.object_store import IMPATIENT, Bucket, Front, status
from medianest_operator.backups.repository import layout
from medianest_operator.backups.repository.catalog import (
    Catalog,
    CatalogError,
    State,
    reading,
    remove,
    write_verification,
)
from medianest_operator.backups.repository.client import Repository, RepositoryError, open_folder
from medianest_operator.backups.repository.layout import Place, Tier
from medianest_operator.backups.repository.manifest import Verification
from medianest_operator.backups.repository.store import DamagedError, cleanup, fetch


class TestCatalog:
    def test_tells_what_there_is_and_ignores_what_is_not_ours(self, repository: Repository) -> None:
        first, _ = back_up([repository])
        second, _ = back_up([repository], tier=Tier.WEEKLY)
        strange, _ = back_up([repository], origin=OTHER)
        repository.write("README.md", [b"hands off"])
        repository.write(f"{first.folder}/notes.txt", [b"mine"])
        catalog = Catalog.read(repository, ORIGIN)
        assert [backup.place for backup in catalog.backups] == [first, second]
        assert catalog.choose("latest").place == second
        assert catalog.choose(first.id).place == first
        assert catalog.summary()["tiers"]["daily"]["backup"] == first.id
        assert len(json.dumps(catalog.summary())) < 600
        assert Catalog.read(repository).origins == (ORIGIN, OTHER)
        with pytest.raises(CatalogError, match="backups of several databases, say which: media/medianest/"):
            Catalog.read(repository).choose("latest")
        assert Catalog.read(repository).of(OTHER).choose("latest").place == strange

    def test_what_a_verification_showed_decides_what_is_latest(self, repository: Repository) -> None:
        first, second, third = (back_up([repository])[0] for _ in range(3))
        with pytest.raises(CatalogError, match="has no verified backup that could be restored; it has 3, the newest"):
            Catalog.read(repository, ORIGIN).choose("latest-verified")
        now = datetime.now(UTC)
        write_verification(repository, first, Verification.of(True, now, 2.5))
        write_verification(repository, third, Verification.of(False, now, 2.5, "3 rows are missing"))
        catalog = Catalog.read(repository, ORIGIN)
        assert catalog.choose("latest-verified").place == first
        assert catalog.choose("latest").place == second
        noted = catalog.choose(third.id).verification
        assert noted is not None
        # It says of which manifest it is.
        assert noted.manifest is not None
        assert noted.model_copy(update={"manifest": None}) == Verification.of(False, now, 2.5, "3 rows are missing")
        assert catalog.summary()["lastVerified"]["backup"] == first.id

    def test_a_reader_is_seen_and_holds_removal_off(self, repository: Repository) -> None:
        place, _ = back_up([repository])
        with reading(repository, place) as held:
            assert held
            assert one(repository, place).read
            assert remove(repository, place) == []
        assert not one(repository, place).read
        removed = remove(repository, place)
        assert removed[0].endswith("/manifest.json")
        assert paths(repository) == []
        with pytest.raises(RepositoryError, match="is not there any more"), reading(repository, place):
            pass
        assert paths(repository) == []

    def test_what_is_only_readable_can_be_read(self, bucket: Bucket, front: Front) -> None:
        place, _ = back_up([bucket.open()])
        front.spoil(status(403, "AccessDenied", "PUT"))
        with reading(bucket.open(IMPATIENT, endpoint=front.endpoint), place) as held:
            assert not held

    def test_a_repository_that_fails_is_no_damage(self, bucket: Bucket, front: Front) -> None:
        back_up([bucket.open()])

        async def fault(request: web.Request) -> web.StreamResponse | None:
            return await status(503, "SlowDown")(request) if "manifest" in request.path else None

        front.spoil(fault)
        with pytest.raises(RepositoryError, match="the server is overloaded or down"):
            Catalog.read(bucket.open(IMPATIENT, endpoint=front.endpoint), ORIGIN)


class TestDamage:
    @pytest.mark.parametrize(
        ("damage", "state", "words"),
        [
            ("no manifest", State.INCOMPLETE, "it has no manifest"),
            ("empty manifest", State.DAMAGED, "the manifest can't be read"),
            ("cut manifest", State.DAMAGED, "the manifest can't be read"),
            ("another's manifest", State.DAMAGED, "the manifest is that of another backup"),
            ("newer manifest", State.NEWER, "of a newer version of the operator"),
            ("no data", State.DAMAGED, "data.dump is missing"),
            ("cut data", State.DAMAGED, "bytes, and had"),
            ("longer data", State.DAMAGED, "bytes, and had"),
        ],
    )
    def test_is_seen_without_reading_the_data(
        self, repository: Repository, damage: str, state: State, words: str
    ) -> None:
        good, _ = back_up([repository])
        place, _ = back_up([repository])
        manifest, data = place.file("manifest.json"), place.file("data.dump")
        text, content = (b"".join(repository.read(path)) for path in (manifest, data))
        match damage:
            case "no manifest":
                repository.delete(manifest)
            case "empty manifest":
                repository.write(manifest, [])
            case "cut manifest":
                repository.write(manifest, [text[: len(text) // 2]])
            case "another's manifest":
                repository.write(manifest, repository.read(good.file("manifest.json")))
            case "newer manifest":
                repository.write(manifest, [text.replace(b'"format_version": 2', b'"format_version": 9')])
            case "no data":
                repository.delete(data)
            case "cut data":
                repository.write(data, [content[:-1]])
            case "longer data":
                repository.write(data, [content, b"x"])
        backup = one(repository, place)
        assert (backup.state, words in backup.reason) == (state, True), backup.reason
        catalog = Catalog.read(repository, ORIGIN)
        assert catalog.choose("latest").place == good
        why = {State.INCOMPLETE: "is no backup", State.DAMAGED: "is damaged", State.NEWER: "by this version"}
        with pytest.raises(CatalogError, match=why[state]):
            catalog.choose(place.id)

    @pytest.mark.parametrize("tenth", range(10))
    def test_a_changed_byte_is_found_by_reading(self, repository: Repository, tenth: int) -> None:
        place, _ = back_up([repository])
        data = place.file("data.dump")
        content = bytearray(b"".join(repository.read(data)))
        content[len(content) * tenth // 10] ^= 1
        repository.write(data, [bytes(content)])
        with pytest.raises(DamagedError, match=r"data.dump is damaged: its SHA-256 is not the manifest's"):
            for _ in fetch(repository, place, manifest_of(repository, place).files[0]):
                pass


class TestCleanup:
    def test_what_was_left_an_hour_ago_goes_and_nothing_else(self, tmp_path: Path) -> None:
        repository = open_folder(tmp_path)
        whole, _ = back_up([repository])
        abandoned, fresh, strange = (
            Place(origin, Tier.DAILY, layout.new_id(Tier.DAILY, datetime.now(UTC)))
            for origin in (ORIGIN, ORIGIN, OTHER)
        )
        left = [
            abandoned.file("data.dump"),
            abandoned.file("data.sql.gz#1"),
            abandoned.file("writing-abcdefgh.json"),
            whole.file("writing-abcdefgh.json"),
        ]
        kept = [
            f"{abandoned.folder}/notes.txt",
            strange.file("data.dump"),
            strange.file("data.dump#1"),
            whole.file("reading-abcdefgh.json"),
        ]
        young = [fresh.file("data.dump"), fresh.file("data.sql.gz#1")]
        for path in [*left, *kept, *young]:
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_bytes(b"1")
        age_files(tmp_path, [*left, *kept, *(item.path for item in repository.list(whole.folder))], timedelta(hours=2))
        assert sorted(cleanup(repository, ORIGIN)) == sorted(left)
        for path in [*kept, *young]:
            assert (tmp_path / path).exists()
        assert one(repository, whole).state is State.COMPLETE

    def test_what_lies_behind_a_link_is_another_repositorys(self, tmp_path: Path) -> None:
        """Whoever can write to one repository must not be able to have another one's backups removed."""
        good, bad = open_folder(tmp_path / "good"), open_folder(tmp_path / "bad")
        place, _ = back_up([good])
        there = tmp_path / "bad" / place.origin.prefix
        there.parent.mkdir(parents=True)
        there.symlink_to(tmp_path / "good" / place.origin.prefix)
        left = Place(ORIGIN, Tier.DAILY, layout.new_id(Tier.DAILY, datetime.now(UTC))).file("data.dump")
        (tmp_path / "good" / left).parent.mkdir(parents=True)
        (tmp_path / "good" / left).write_bytes(b"1")
        age_files(tmp_path / "good", [left], timedelta(hours=2))
        assert (bad.list(), Catalog.read(bad).backups, cleanup(bad, ORIGIN)) == ([], (), [])
        with pytest.raises(RepositoryError, match="symbolic link"):
            bad.delete(place.file("data.dump"))
        assert one(good, place).state is State.COMPLETE
        # The repository itself may be one.
        (tmp_path / "linked").symlink_to(tmp_path / "good")
        linked = open_folder(tmp_path / "linked")
        assert one(linked, place).state is State.COMPLETE
        linked.delete(left)
        assert not (tmp_path / "good" / left).exists()

    def test_a_writer_that_says_that_it_is_at_work_is_left_alone(self, tmp_path: Path) -> None:
        repository = open_folder(tmp_path)
        place = Place(ORIGIN, Tier.DAILY, layout.new_id(Tier.DAILY, datetime.now(UTC)))
        repository.write(place.file("data.dump"), [b"1"])
        repository.write(place.file("writing-abcdefgh.json"), [b"{}"])
        age_files(tmp_path, [place.file("data.dump")], timedelta(hours=5))
        assert cleanup(repository, ORIGIN) == []
        assert one(repository, place).reason == "being written"

    def test_a_copy_that_comes_back_with_its_manifest_last_is_left_alone(self, tmp_path: Path) -> None:
        """As rclone and `cp -a` bring it: the files' times are those of the original."""
        repository = open_folder(tmp_path)
        place, _ = back_up([repository])
        manifest = b"".join(repository.read(place.file("manifest.json")))
        repository.delete(place.file("manifest.json"))
        age_files(tmp_path, [item.path for item in repository.list(place.folder)], timedelta(days=40))
        back_up([repository])
        assert cleanup(repository, ORIGIN) == []
        repository.write(place.file("manifest.json"), [manifest])
        assert one(repository, place).state is State.COMPLETE

    def test_the_rest_of_a_removal_goes(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Cut off once the manifest was gone."""
        repository = open_folder(tmp_path)
        place, _ = back_up([repository])
        delete, deleted = repository.delete, list[str]()

        def cut_off(path: str) -> None:
            if deleted:
                raise KeyboardInterrupt
            deleted.append(path)
            delete(path)

        monkeypatch.setattr(repository, "delete", cut_off)
        with pytest.raises(KeyboardInterrupt):
            remove(repository, place)
        monkeypatch.undo()
        assert deleted == [place.file("manifest.json")]
        age_files(tmp_path, [item.path for item in repository.list(place.folder)], timedelta(hours=2))
        back_up([repository])
        cleanup(repository, ORIGIN)
        assert repository.list(place.folder) == []

    def test_a_reader_that_was_killed_holds_nothing_off_for_longer_than_a_day(self, tmp_path: Path) -> None:
        repository = open_folder(tmp_path)
        place, _ = back_up([repository])
        marker = place.file("reading-abcdefgh.json")
        repository.write(marker, [b"{}"])
        assert one(repository, place).read
        age_files(tmp_path, [marker], timedelta(hours=25))
        assert not one(repository, place).read
        assert cleanup(repository, ORIGIN) == [marker]

    def test_an_upload_that_was_killed_is_no_backup(self, repository: Repository) -> None:
        """Killed without a chance to say anything, in the middle of the second file."""
        place = Place(ORIGIN, Tier.DAILY, layout.new_id(Tier.DAILY, datetime.now(UTC)))
        reached = [place.file("data.dump"), place.file("writing-abcdefgh.json")]
        for path in reached:
            repository.write(path, [b"1"])
        assert one(repository, place).state is State.INCOMPLETE
        found = {"count": 0, "bytes": 0, "tiers": {}, "newest": [], "signed": 0, "incomplete": 1}
        summary = Catalog.read(repository).summary()
        assert datetime.fromisoformat(summary.pop("asOf")) <= datetime.now(UTC)
        # Of a folder: how much of its volume is in use.
        assert 0 <= summary.pop("usedPercent", 0) <= 100
        assert summary == found
        with pytest.raises(CatalogError, match="it has no complete backup of this database"):
            Catalog.read(repository).choose("latest")
        assert cleanup(repository, ORIGIN) == []
