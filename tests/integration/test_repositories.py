"""Repositories: the same behaviour of a folder and of a bucket, and what each says when it can't."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from integration.backup_samples import (
    ENVIRONMENT,
    chunks,
    paths,
)
from medianest_operator.backups.repository.client import (
    PART,
    RANGE,
    NotThereError,
    Repository,
    RepositoryError,
    open_folder,
)


class TestObjects:
    @pytest.mark.parametrize("size", [0, 1, RANGE, RANGE + 1, PART - 1, PART, PART + 1, 3 * PART + 7])
    def test_what_is_written_is_what_is_read(self, repository: Repository, size: int) -> None:
        content = b"".join(chunks(size))
        assert repository.write("a/b/data.dump", iter([content[: size // 2], b"", content[size // 2 :]])) == size
        assert b"".join(repository.read("a/b/data.dump")) == content
        [found] = repository.list()
        assert (found.path, found.size) == ("a/b/data.dump", size)

    def test_lists_whole_names_of_folders_in_order(self, repository: Repository) -> None:
        for path in ("media/db/2/x", "media/db/10/x", "media/db2/1/x", "media/db/2/y"):
            repository.write(path, [b"1"])
        assert paths(repository) == ["media/db/10/x", "media/db/2/x", "media/db/2/y", "media/db2/1/x"]
        assert paths(repository, "media/db") == ["media/db/10/x", "media/db/2/x", "media/db/2/y"]
        assert paths(repository, "nobody") == []

    def test_a_view_sees_and_writes_what_is_below_it(self, repository: Repository) -> None:
        view = repository.below("media").below("db")
        view.write("1/x", [b"one"])
        assert paths(view) == ["1/x"]
        assert paths(view, "1") == ["1/x"]
        assert b"".join(view.read("1/x")) == b"one"
        assert paths(repository) == ["media/db/1/x"]
        view.delete("1/x")
        assert paths(repository) == []

    def test_writes_over_an_object(self, repository: Repository) -> None:
        repository.write("a/verification.json", [b"failed"])
        repository.write("a/verification.json", [b"ok"])
        assert b"".join(repository.read("a/verification.json")) == b"ok"

    def test_deleting_what_is_not_there_is_no_error(self, repository: Repository) -> None:
        repository.delete("a/b")
        repository.write("a/b", [b"1"])
        repository.delete("a/b")
        repository.delete("a/b")
        assert paths(repository) == []

    def test_reading_what_is_not_there_says_where(self, repository: Repository) -> None:
        repository.write("a/b", [b"1"])
        with pytest.raises(NotThereError, match=f"^repository {repository.name} .*: can't read .*a/c: it isn't there"):
            list(repository.read("a/c"))

    @pytest.mark.parametrize("path", ["", "/a", "a//b", "../a", "a/../b", "a/.hidden", "a/b c", "a/ü", "a/x#1", "a\\b"])
    def test_no_path_leads_out(self, repository: Repository, path: str) -> None:
        with pytest.raises(RepositoryError, match="can't be a part of a path"):
            repository.write(path, [b"1"])

    @pytest.mark.parametrize("size", [10, 4 * PART])
    def test_a_stream_that_fails_leaves_nothing(self, repository: Repository, tmp_path: Path, size: int) -> None:
        def failing() -> Iterator[bytes]:
            yield from chunks(size)
            raise KeyError("the dump")

        with pytest.raises(KeyError, match="the dump"):
            repository.write("a/data.dump", failing())
        assert repository.list() == []
        assert repository.unfinished() == []
        assert not [path for path in tmp_path.rglob("*") if path.is_file() and "a" in path.parts]

    def test_of_two_writers_at_once_one_is_whole(self, repository: Repository) -> None:
        both = threading.Barrier(2)

        def half(letter: bytes) -> Iterator[bytes]:
            for _ in range(4):
                yield letter * PART
                both.wait(60)

        writers = [
            threading.Thread(target=repository.write, args=("a/data.dump", half(letter))) for letter in (b"x", b"y")
        ]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join()
        content = b"".join(repository.read("a/data.dump"))
        assert content in (b"x" * 4 * PART, b"y" * 4 * PART)
        assert repository.unfinished() == []

    def test_a_reader_that_stops_early_costs_nothing(self, repository: Repository) -> None:
        repository.write("a/data.dump", chunks(4 * RANGE))
        reader = repository.read("a/data.dump")
        assert len(next(reader)) == RANGE
        reader.close()  # type: ignore[attr-defined]
        assert len(b"".join(repository.read("a/data.dump"))) == 4 * RANGE


class TestFolder:
    def test_what_a_killed_writer_leaves_is_seen_but_is_no_object(self, tmp_path: Path) -> None:
        repository = open_folder(tmp_path)
        script = (
            "import os, sys, pathlib\n"
            "from medianest_operator.backups.repository.client import open_folder\n"
            "def chunks():\n"
            "    while True:\n"
            "        yield bytes(1 << 20)\n"
            "        if list(pathlib.Path(sys.argv[1]).rglob('*#1')): os.kill(os.getpid(), 9)\n"
            "open_folder(pathlib.Path(sys.argv[1])).write('a/data.dump', chunks())\n"
        )
        killed = subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False, env=ENVIRONMENT)
        assert killed.returncode == -9
        assert repository.list() == []
        [left] = repository.unfinished("a")
        assert left.path == "a/data.dump#1"
        repository.discard(left)
        assert repository.unfinished() == []

    def test_a_folder_that_is_not_there_yet_is_empty_and_made_when_needed(self, tmp_path: Path) -> None:
        repository = open_folder(tmp_path / "not" / "yet")
        assert repository.list() == []
        repository.delete("a")
        assert not (tmp_path / "not").exists()
        repository.write("a", [b"1"])
        assert paths(repository) == ["a"]

    def test_the_file_systems_own_folder_is_nobodys(self, tmp_path: Path, unprivileged: None) -> None:
        (tmp_path / "lost+found").mkdir(mode=0o000)
        repository = open_folder(tmp_path)
        repository.write("a/b", [b"1"])
        assert paths(repository) == ["a/b"]

    def test_a_folder_without_rights_says_so(self, tmp_path: Path, unprivileged: None) -> None:
        folder = tmp_path / "closed"
        folder.mkdir(mode=0o555)
        with pytest.raises(RepositoryError, match="permission denied; the folder must belong to this user") as caught:
            open_folder(folder, "main").write("a/b", [b"1"])
        assert not caught.value.transient

    @pytest.mark.parametrize(
        ("options", "words"),
        [("size=8m", "no space is left; make room"), ("ro,size=1m", "the file system is read-only")],
    )
    def test_a_full_or_read_only_volume_says_so(self, tmp_path: Path, options: str, words: str) -> None:
        folder = tmp_path / "volume"
        folder.mkdir()
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, text=True, check=False
        )
        if mounted.returncode:
            pytest.skip(f"no mounting here: {mounted.stderr.strip()}")
        try:
            repository = open_folder(folder, "main")
            with pytest.raises(
                RepositoryError, match=rf"^repository main .*: can't write a/data.dump: {words}"
            ) as caught:
                repository.write("a/data.dump", chunks(20 << 20))
            assert not caught.value.transient
            assert [path for path in folder.rglob("*") if path.is_file()] == []
        finally:
            # Also where a writer that went wrong still holds a file open.
            subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.fixture
def unprivileged(tmp_path: Path) -> Iterator[None]:
    """Not as root, whom no rights keep out."""
    if os.geteuid() != 0:
        yield
        return
    for folder in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
        folder.chmod(folder.stat().st_mode | 0o055)
    os.chown(tmp_path, 65534, 65534)
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)
