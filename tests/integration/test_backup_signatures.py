"""Whose a backup is: with a key, what others have put into a repository is neither restored nor counted."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from backup_documents import edit_document
from integration.backup_runs import Bench, candidate, contents, new_bench
from integration.postgres_server import Database
from medianest_operator.backups.repository.manifest import Manifest


@pytest.fixture
def bench(medianest: Database, room: Path) -> Bench:
    return new_bench(medianest, room, "main")


@pytest.fixture
def sign(room: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Path]:
    """From now on there is a folder with a key, as a Secret is mounted."""

    def begin() -> Path:
        folder = room / "keys"
        folder.mkdir()
        (folder / "key").write_text("k" * 64)
        monkeypatch.setenv("MEDIANEST_SIGNING_KEYS", str(folder))
        return folder

    return begin


@pytest.fixture
def keys(sign: Callable[[], Path]) -> Path:
    """Such a folder from the beginning."""
    return sign()


def files(bench: Bench, name: str) -> list[Path]:
    """Of all backups, the oldest first."""
    return sorted(bench.folder.joinpath("main").rglob(name), key=lambda path: path.parent.name)


def test_what_is_signed_comes_back(bench: Bench, keys: Path, target: Database) -> None:
    taken = bench.backup("--verify", "--work-dir", str(bench.work))
    assert taken.told == (0, "Succeeded", "Succeeded"), taken.text
    answer = bench.restore(target, "--backup", "latest-verified")
    assert answer.told == (0, "Succeeded", "Succeeded"), answer.text
    assert contents(target) == contents(bench.source)
    for document in (*files(bench, "manifest.json"), *files(bench, "verification.json")):
        assert "k" * 64 not in document.read_text()


def test_what_is_not_signed_is_refused_until_it_is_accepted_by_name(
    bench: Bench, target: Database, sign: Callable[[], Path]
) -> None:
    """An older one, or a stranger's who has the public key that backups are encrypted for."""
    name = bench.backup().result["backup"]
    sign()
    for which, words in (
        ("latest", "1 of them is not signed by the present key"),
        (name, "accept that it is unsigned"),
    ):
        answer = bench.restore(target, "--backup", which)
        assert answer.told == (1, "Failed", "NoSuchBackup"), answer.text
        assert words in answer.text
        assert bench.verify("--backup", which).told == (1, "Failed", "NoSuchBackup")
    assert "is not signed by the key that backups are signed with" in answer.text
    answer = bench.restore(target, "--backup", name, "--accept-unsigned")
    assert answer.told == (0, "Succeeded", "Succeeded"), answer.text
    assert contents(target) == contents(bench.source)


def test_what_a_lost_key_has_signed_comes_back_by_name(
    bench: Bench, keys: Path, target: Database, room: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As docs/runbooks/DataLost.md says: there is a new key by now, and the former is gone."""
    name = bench.backup("--verify", "--work-dir", str(bench.work)).result["backup"]
    (keys / "key").write_text("n" * 64)
    answer = bench.restore(target, "--backup", name)
    assert answer.told == (1, "Failed", "NoSuchBackup"), answer.text
    assert "accept that it is unsigned (acceptUnsigned, --accept-unsigned)" in answer.text
    answer = bench.restore(target, "--backup", name, "--accept-unsigned")
    assert answer.told == (0, "Succeeded", "Succeeded"), answer.text
    assert contents(target) == contents(bench.source)


def test_what_another_key_has_signed_is_told_beside_what_none_has(
    bench: Bench, target: Database, sign: Callable[[], Path]
) -> None:
    """The newest ones are whole: nobody who has lost the key is to restore an older one for want of a word."""
    unsigned = bench.backup().result["backup"]
    keys = sign()
    lost = [bench.backup().result["backup"] for _ in range(2)]
    (keys / "key").write_text("n" * 64)
    answer = bench.restore(target)
    assert answer.told == (1, "Failed", "NoSuchBackup"), answer.text
    assert f"it has 3, the newest {lost[1]}, {lost[0]}, {unsigned}; 3 of them are not signed" in answer.text
    # By hand, where all there are have the other key.
    shutil.rmtree(next(bench.folder.joinpath("main").rglob(unsigned)))
    for which in ("latest", "20200101T000000Z-daily-aaaa"):
        answer = bench.restore(target, "--backup", which)
        assert f"it has 2, the newest {lost[1]}, {lost[0]}" in answer.text
    # The present key is an older one: what is taken is not the newest.
    (keys / "key").write_text("k" * 64)
    answer = bench.restore(target, "--backup", "latest")
    assert "not signed" not in answer.text
    (keys / "key").write_text("n" * 64)
    fresh = bench.backup().result["backup"]
    (keys / "key").write_text("k" * 64)
    other = candidate(target.server)
    answer = bench.restore(other, "--backup", "latest")
    assert answer.result["backup"] == lost[1]
    assert f"Note: a newer one is not signed by the present key ({fresh})." in answer.result["message"]


def test_a_signed_copy_goes_before_a_forged_one(medianest: Database, keys: Path, target: Database, room: Path) -> None:
    bench = new_bench(medianest, room, "forged", "signed")
    name = bench.backup().result["backup"]
    (manifest,) = bench.folder.joinpath("forged").rglob("manifest.json")
    signature = json.loads(manifest.read_text())["signature"]
    edit_document(manifest, lambda document: document["rows"].update({"public.users": 7}))
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"signature": signature}))
    answer = bench.restore(target, "--backup", name, "--accept-unsigned")
    assert answer.told == (0, "Succeeded", "Succeeded"), answer.text
    assert answer.result["repository"] == "signed"


@pytest.mark.parametrize(("key", "words"), [("abc", "less than 32 bytes"), (None, "No such file or directory")])
def test_a_key_that_can_not_be_used_is_told_in_the_last_line(
    bench: Bench, room: Path, monkeypatch: pytest.MonkeyPatch, key: str | None, words: str
) -> None:
    (room / "keys").mkdir()
    if key is not None:
        (room / "keys" / "key").write_text(key)
    monkeypatch.setenv("MEDIANEST_SIGNING_KEYS", str(room / "keys"))
    answer = bench.backup()
    assert answer.code == 1
    last = answer.text.splitlines()[-1]
    assert "spec.backup.encryption.signingSecret" in last
    assert words in last


def test_a_changed_manifest_is_noticed_whatever_its_checksum(bench: Bench, keys: Path, target: Database) -> None:
    name = bench.backup().result["backup"]
    [manifest] = files(bench, "manifest.json")
    signature = json.loads(manifest.read_text())["signature"]
    edit_document(manifest, lambda document: document.update(dbname="other"))
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"signature": signature}))
    assert [item["state"] for item in bench.listed()] == ["Damaged"]
    for which in ("latest", name):
        answer = bench.restore(target, "--backup", which)
        assert answer.told == (1, "Failed", "NoSuchBackup"), answer.text
    assert "its signature is by another key, or it was changed" in answer.text
    # Whoever changed it could have left the signature out: accepted by name, both are compared with their manifest.
    (manifest.parent / "data.dump.zst").write_bytes(b"")
    answer = bench.restore(target, "--backup", name, "--accept-unsigned")
    assert answer.told[:2] == (1, "Failed"), answer.text


def test_a_key_takes_anothers_place(bench: Bench, keys: Path, target: Database) -> None:
    name = bench.backup().result["backup"]
    (keys / "key").rename(keys / "before-2027")
    (keys / "key").write_text("n" * 64)
    assert bench.restore(target, "--backup", name).code == 0
    (keys / "before-2027").unlink()
    assert [item["state"] for item in bench.listed()] == ["Damaged"]


def test_a_verification_speaks_of_its_own_backup_alone(bench: Bench, keys: Path) -> None:
    """Copied beside another backup, or made up, it verifies nothing."""
    assert bench.backup("--verify", "--work-dir", str(bench.work)).code == 0
    assert bench.backup().code == 0
    [verification] = files(bench, "verification.json")
    newer = files(bench, "manifest.json")[-1].with_name("verification.json")
    shutil.copy(verification, newer)
    assert [item["verification"] is not None for item in bench.listed()] == [True, False]
    document = json.loads(verification.read_text())
    newer.write_text(json.dumps({"outcome": "ok", "at": document["at"], "seconds": 1}))
    assert [item["verification"] is not None for item in bench.listed()] == [True, False]
    edit_document(verification, lambda document: document.update(message="changed"))
    assert [item["verification"] for item in bench.listed()] == [None, None]


def test_strangers_backups_push_no_signed_one_out(bench: Bench, keys: Path) -> None:
    """However many newer ones somebody puts there, the last signed and verified one stays."""
    assert bench.backup("--verify", "--work-dir", str(bench.work)).code == 0
    [manifest] = files(bench, "manifest.json")
    good = manifest.parent.name
    for number in range(3):
        forged = manifest.parent.with_name(f"20990101T00000{number}Z-daily-aaaa")
        shutil.copytree(manifest.parent, forged)
        edit_document(
            forged / "manifest.json",
            lambda document, name=forged.name: document.update(id=name),  # type: ignore[misc]
        )
        (forged / "verification.json").unlink()
    assert bench.backup("--keep", "daily=0d").code == 0
    assert good in [item["id"] for item in bench.listed()]


def test_what_does_not_count_moves_no_id(bench: Bench, keys: Path) -> None:
    """An id is later than those of all backups; a stranger's folder of the year 2198 is none."""
    signed = bench.backup().result["backup"]
    [manifest] = files(bench, "manifest.json")
    for name in ("21981231T235959Z-daily-aaaa", "21981231T235958Z-daily-aaaa"):
        shutil.copytree(manifest.parent, manifest.parent.with_name(name))
    manifest.parent.with_name("21981231T235959Z-daily-aaaa").joinpath("manifest.json").unlink()
    unsigned = manifest.parent.with_name("21981231T235958Z-daily-aaaa").joinpath("manifest.json")
    edit_document(unsigned, lambda document: document.update(id="21981231T235958Z-daily-aaaa"))
    taken = [bench.backup().result["backup"] for _ in range(2)]
    assert [signed, *taken] == sorted([signed, *taken])
    assert {name[:2] for name in taken} == {"20"}
    # A signed one may be of a clock that was ahead: it stays older than what comes after it.
    ahead = manifest.parent.with_name(unsigned.parent.name)
    ahead.joinpath("manifest.json").write_text(of_another_id(manifest, ahead.name, keys))
    assert bench.backup().result["backup"].startswith("21981231T235959Z-daily-")


def of_another_id(manifest: Path, name: str, keys: Path) -> str:
    """A signed manifest, as if the clock had been another."""
    found = Manifest.parse(manifest.read_bytes())
    return found.model_copy(update={"id": name}).to_bytes([(keys / "key").read_bytes()]).decode()


def test_a_short_key_keeps_nobody_out(bench: Bench, keys: Path) -> None:
    (keys / "key").write_text("short")
    answer = bench.backup()
    assert answer.code != 0
    assert "has less than 32 bytes" in " ".join(answer.text.replace("│", " ").split())
