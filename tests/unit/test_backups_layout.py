"""Names and paths of backups, and the documents beside them."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backup_documents import resealed, sample_manifest
from medianest_operator.backups.repository import layout
from medianest_operator.backups.repository.failures import RepositoryError
from medianest_operator.backups.repository.layout import (
    Compression,
    Format,
    Origin,
    Place,
    Tier,
    id_moment,
    id_tier,
    new_id,
)
from medianest_operator.backups.repository.locations import parse
from medianest_operator.backups.repository.manifest import File, Manifest, ManifestError, RoleNeed, Verification
from medianest_operator.backups.repository.seals import Signature

NOW = datetime(2026, 11, 22, 3, tzinfo=UTC)
ORIGIN = Origin("media", "medianest", "7300000000000000001")
moments = st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC))
tiers = st.sampled_from(Tier)


@given(st.lists(moments, min_size=1, max_size=8), tiers)
def test_ids_are_newer_than_all_before_whatever_the_clock_does(clock: list[datetime], tier: Tier) -> None:
    ids: list[str] = []
    for moment in clock:
        ids.append(new_id(tier, moment, ids))
    assert ids == sorted(ids)
    assert len(set(ids)) == len(ids)
    assert all(id_tier(text) is tier for text in ids)


@given(moments, tiers)
def test_an_id_tells_its_moment(now: datetime, tier: Tier) -> None:
    assert id_moment(new_id(tier, now)) == now.replace(microsecond=0)


@pytest.mark.parametrize(
    "last", ["21700101T000000Z-daily-aaaa", "21981231T235959Z-daily-aaaa", "21991231T235959Z-daily-aaaa"]
)
def test_an_id_is_one_whatever_was_there(last: str) -> None:
    assert id_moment(new_id(Tier.DAILY, NOW, [last])) is not None


def test_ids_of_the_same_second_differ() -> None:
    assert len({new_id(Tier.ON_DEMAND, NOW) for _ in range(20)}) == 20


@pytest.mark.parametrize(
    "text",
    [
        "",
        "20261122T030000Z",
        "20261122T030000Z-hourly",
        "20261322T030000Z-daily",
        "x20261122T030000Z-daily",
        # Whoever made that, no clock did.
        "99991231T235959Z-daily-aaaa",
    ],
)
def test_what_is_no_id_is_nobodys(text: str) -> None:
    assert id_moment(text) is None
    assert new_id(Tier.DAILY, NOW, [text]).startswith("20261122T030000Z-daily-")


@given(tiers, st.sampled_from(Format), st.sampled_from(Compression), st.booleans())
def test_a_path_leads_back_to_its_backup(tier: Tier, format: Format, compression: Compression, encrypted: bool) -> None:
    place = Place(ORIGIN, tier, new_id(tier, NOW))
    file = layout.file_name(format, compression, encrypted)
    assert file is not None or (format, compression) == (Format.CATALOG, Compression.ZSTD)
    for name in filter(None, (file, layout.MANIFEST, layout.VERIFICATION, "reading-abcd.json")):
        assert layout.parse(place.file(name)) == (place, name)


@pytest.mark.parametrize(
    "path",
    [
        "media/medianest/73/daily/20261122T030000Z-daily/notes.txt",
        "media/medianest/73/daily/20261122T030000Z-daily/data.dump.bak",
        "media/medianest/73/daily/20261122T030000Z-daily/deeper/data.dump",
        "media/medianest/73/daily/20261122T030000Z-weekly/data.dump",
        "media/medianest/abc/daily/20261122T030000Z-daily/data.dump",
        "media/medianest/73/hourly/20261122T030000Z-hourly/data.dump",
        "media/-x/73/daily/20261122T030000Z-daily/data.dump",
        "README.md",
    ],
)
def test_what_is_not_ours_is_not_taken_for_a_backup(path: str) -> None:
    assert layout.parse(path) is None


@pytest.mark.parametrize("name", ["", "..", "a/b", "../x", "a b", "-a", "a\n", "ä"])
def test_no_name_leads_out_of_its_folder(name: str) -> None:
    with pytest.raises(ValueError, match="can't be a"):
        Origin("media", name, "1")
    with pytest.raises(ValueError, match="can't be a"):
        Origin(name, "medianest", "1")
    with pytest.raises(ValueError, match="no system identifier"):
        Origin("media", "medianest", name)


@given(
    st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=63), st.text(min_size=1, max_size=9)
)
def test_databases_of_a_laptop_get_names_of_their_own(one: str, other: str) -> None:
    assert Origin.local(one, "1").prefix.startswith("local/")
    assert (Origin.local(one, "1") == Origin.local(other, "1")) == (one == other)


def manifest(**changed: object) -> Manifest:
    """One that says all that a manifest can."""
    place = Place(ORIGIN, Tier.DAILY, "20261122T030000Z-daily-k3v9")
    file = File(
        name="data.dump.zst.age",
        format=Format.CUSTOM,
        bytes=10,
        sha256="a" * 64,
        encrypted=True,
        compression=Compression.ZSTD,
        unpacked_bytes=100,
    )
    more: dict[str, object] = {
        "finished_at": NOW + timedelta(seconds=4),
        "sequences": {"public.error_logs_id_seq": (7, True)},
        "roles": (RoleNeed(name="medianest", attributes={"rolcanlogin": False}, member_of=("pg_monitor",)),),
        "extensions": {"pgcrypto": "1.3"},
    }
    return sample_manifest(place, NOW, (file,), **more | changed)


class TestManifest:
    def test_survives_its_file(self) -> None:
        one = manifest(keep_until=NOW, schema_version="20250905150611_x", source="replica medianest-1")
        assert Manifest.parse(one.to_bytes()) == one
        assert one.place.folder == "media/medianest/7300000000000000001/daily/20261122T030000Z-daily-k3v9"

    def test_what_a_later_version_adds_is_passed_over(self) -> None:
        text = resealed(json.loads(manifest().to_bytes()) | {"novelty": 1})
        assert Manifest.parse(text.encode()) == manifest()

    @given(st.data())
    def test_a_part_of_it_is_none(self, data: st.DataObject) -> None:
        text = manifest().to_bytes().rstrip()
        with pytest.raises(ManifestError):
            Manifest.parse(text[: data.draw(st.integers(0, len(text) - 1))])

    @pytest.mark.parametrize(
        ("old", "new", "words"),
        [
            (b'"format_version": 2', b'"format_version": 3', "of a newer version of the operator"),
            (b'"tier": "daily"', b'"tier": "weekly"', "is no id of the tier weekly"),
            (b'"media"', b'"../media"', "can't be a namespace"),
            (b"data.dump.zst.age", b"data.dump.zst", "not the name of a file of format custom"),
            (b"data.dump.zst.age", b"data.dump.age", "not the name of a file of format custom"),
            (b'"zstd"', b'"none"', "not the name of a file of format custom"),
            (b'"zstd"', b'"lz4"', "files.0.compression"),
            (b'"unpacked_bytes"', b'"x"', "how large data.dump.zst.age is without its compression isn't said"),
            (b'"bytes": 10', b'"bytes": -1', "files.0.bytes"),
            (b"a" * 64, b"A" * 64, "files.0.sha256"),
            (b"2026-11-22T03:00:00Z", b"2026-11-22T03:00:00", "taken_at"),
        ],
    )
    def test_what_is_wrong_in_it_is_said(self, old: bytes, new: bytes, words: str) -> None:
        text = manifest().to_bytes()
        assert old in text
        with pytest.raises(ManifestError, match=words):
            Manifest.parse(resealed(json.loads(text.replace(old, new))).encode())

    @given(st.data())
    def test_a_flipped_bit_is_noticed(self, data: st.DataObject) -> None:
        """White space says nothing, and is the only thing that may be another one."""
        text = bytearray(manifest().to_bytes())
        place = data.draw(st.integers(0, len(text) - 1))
        text[place] ^= 1 << data.draw(st.integers(0, 7))
        try:
            found = Manifest.parse(bytes(text))
        except ManifestError:
            return
        assert found == manifest()

    def test_what_is_named_twice_is_refused(self) -> None:
        text = manifest().to_bytes().replace(b'"dbname"', b'"dbname": "other", "dbname"')
        with pytest.raises(ManifestError, match="names something twice"):
            Manifest.parse(text)

    def test_one_of_this_format_without_a_checksum_is_refused(self) -> None:
        document = json.loads(manifest().to_bytes())
        del document["checksum"]
        with pytest.raises(ManifestError, match="it has no checksum"):
            Manifest.parse(json.dumps(document).encode())

    def test_whoever_has_no_key_signs_nothing(self) -> None:
        old, new = b"o" * 32, b"n" * 32
        signed = manifest().to_bytes([old])
        assert Manifest.parse(signed, [new, old]).signature is Signature.GOOD
        assert Manifest.parse(signed, [new]).signature is Signature.WRONG
        assert Manifest.parse(manifest().to_bytes(), [new]).signature is Signature.MISSING
        assert Manifest.parse(signed).signature is Signature.UNCHECKED
        changed = resealed(json.loads(signed) | {"dbname": "other"})
        changed = json.dumps(json.loads(changed) | {"signature": json.loads(signed)["signature"]})
        assert Manifest.parse(changed.encode(), [old]).signature is Signature.WRONG

    def test_a_verification_survives_its_file(self) -> None:
        one = Verification.of(False, NOW, 12.3456, "index users_pkey is damaged", {"restore": 3.14159})
        assert Verification.parse(one.to_bytes()) == one
        assert (one.ok, one.seconds, one.stages) == (False, 12.346, {"restore": 3.142})


class TestLocations:
    def test_a_folder(self) -> None:
        location = parse("main=file:///repositories/main")
        assert (location.name, location.url) == ("main", "file:///repositories/main")
        assert str(location.folder) == "/repositories/main"

    def test_a_bucket(self) -> None:
        location = parse(
            "offsite=s3://media/pg/prod?endpoint=https://s3.example.org:7070&region=eu-1&path_style=false&credentials=/c"
            "&ca=/ca.crt"
        )
        assert (location.name, location.bucket, location.prefix) == ("offsite", "media", "pg/prod")
        assert (location.endpoint, location.region, location.path_style) == (
            "https://s3.example.org:7070",
            "eu-1",
            False,
        )
        assert (str(location.credentials), str(location.ca)) == ("/c", "/ca.crt")
        assert location.url == "s3://media/pg/prod"

    def test_amazons_own_are_reached_by_the_buckets_name(self) -> None:
        assert not parse("s3://media").path_style
        assert parse("s3://media?endpoint=https://minio").path_style

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("", "write file:///folder or s3://bucket/prefix"),
            ("/backups", "write file:///folder or s3://bucket/prefix"),
            ("main=", "write file:///folder or s3://bucket/prefix"),
            ("file://backups", "a folder is written file:///absolute/path"),
            ("gs://bucket", "write file:///folder or s3://bucket/prefix"),
            ("s3://", "write file:///folder or s3://bucket/prefix"),
            ("s3://b?secret=x", "unknown option 'secret'"),
            ("s3://b?endpoint=minio:9000", "`endpoint` is not a URL"),
            ("s3://b?path_style=yes", "path_style is true or false"),
            ("s3://b?region", "not a URL"),
        ],
    )
    def test_what_is_none_is_refused_with_the_reason(self, text: str, words: str) -> None:
        with pytest.raises(RepositoryError, match=words):
            parse(text)

    def test_a_password_in_it_is_refused_and_not_repeated(self) -> None:
        with pytest.raises(RepositoryError, match="use `credentials`") as caught:
            parse("s3://key:hunter2@bucket/prefix")
        assert "hunter2" not in str(caught.value)


def test_a_path_of_another_database_is_not_ours() -> None:
    """The journal, from which a rollback takes its backup's path, is the migrator's to write."""
    ours = Origin("media", "nest", "7711")
    place = Place(ours, Tier.PRE_MIGRATION, "20260101T000000Z-pre-migration-abcd")
    assert layout.is_of(place.file("data.dump"), ours, Tier.PRE_MIGRATION)
    for origin in (Origin("other", "nest", "7711"), Origin("media", "other", "7711"), Origin("media", "nest", "1")):
        foreign = Place(origin, Tier.PRE_MIGRATION, place.id).file("data.dump")
        assert not layout.is_of(foreign, ours, Tier.PRE_MIGRATION)
    for text in ("", "/", "data.dump", f"../{place.file('data.dump')}", "media/nest/7711/daily/x/data.dump"):
        assert not layout.is_of(text, ours, Tier.PRE_MIGRATION)
