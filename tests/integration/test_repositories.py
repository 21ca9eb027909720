"""Repositories: the same behaviour of a folder and of a bucket, and what each says when it can't."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiohttp import web

from integration.object_store import (
    IMPATIENT,
    Bucket,
    Front,
    ObjectStore,
    cut,
    free_port,
    silence,
    status,
)
from medianest_operator.backups.repository import (
    PART,
    RANGE,
    NotThereError,
    Repository,
    RepositoryError,
    open_folder,
    open_repository,
)


@pytest.fixture(params=["folder", "bucket"])
def repository(request: pytest.FixtureRequest, tmp_path: Path) -> Repository:
    if request.param == "folder":
        return open_repository(f"main=file://{tmp_path}/backups")
    made: Bucket = request.getfixturevalue("bucket")
    return made.open()


_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")


def chunks(size: int, piece: int = 1 << 20) -> Iterator[bytes]:
    block = os.urandom(piece)
    for start in range(0, size, piece):
        yield block[: min(piece, size - start)]


def paths(repository: Repository, prefix: str = "") -> list[str]:
    return [item.path for item in repository.list(prefix)]


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
            "from medianest_operator.backups.repository import open_folder\n"
            "def chunks():\n"
            "    while True:\n"
            "        yield bytes(1 << 20)\n"
            "        if list(pathlib.Path(sys.argv[1]).rglob('*#1')): os.kill(os.getpid(), 9)\n"
            "open_folder(pathlib.Path(sys.argv[1])).write('a/data.dump', chunks())\n"
        )
        killed = subprocess.run(_python(script, str(tmp_path)), check=False, env=_ENVIRONMENT)
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


class TestBucket:
    """What goes wrong with a server, and what is said of it."""

    def test_lies_below_its_prefix(self, bucket: Bucket) -> None:
        bucket.open().write("media/db/x", [b"1"])
        assert bucket.files == ["prod/backups/media/db/x"]

    def test_knows_its_server_by_nothing_but_the_authority(self, bucket: Bucket) -> None:
        with pytest.raises(RepositoryError, match="an authority that isn't trusted; give its certificate") as caught:
            bucket.open(IMPATIENT, ca="").list()
        assert not caught.value.transient

    def test_wrong_secret(self, bucket: Bucket, tmp_path: Path) -> None:
        (tmp_path / "AWS_ACCESS_KEY_ID").write_text((bucket.server.credentials / "AWS_ACCESS_KEY_ID").read_text())
        (tmp_path / "AWS_SECRET_ACCESS_KEY").write_text("no-such-secret")
        repository = bucket.open(IMPATIENT, credentials=str(tmp_path))
        with pytest.raises(RepositoryError, match="the secret key is wrong") as caught:
            repository.write("a", [b"1"])
        assert not caught.value.transient
        assert "no-such-secret" not in str(caught.value)

    def test_unknown_key(self, bucket: Bucket, tmp_path: Path) -> None:
        for name in _KEYS:
            (tmp_path / name).write_text("somebody")
        with pytest.raises(RepositoryError, match="the server doesn't know the access key"):
            bucket.open(IMPATIENT, credentials=str(tmp_path)).list()

    def test_credentials_of_the_environment(self, bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in _KEYS:
            monkeypatch.setenv(name, (bucket.server.credentials / name).read_text().strip())
        repository = bucket.open(credentials="")
        repository.write("a", [b"1"])
        assert paths(repository) == ["a"]

    def test_credentials_of_a_workload_identity(
        self, bucket: Bucket, front: Front, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        """The pod's token is exchanged for credentials, as the cloud's webhook for service accounts prepares it."""
        (tmp_path / "token").write_text("the-pods-token")
        asked: list[str] = []

        async def exchange(request: web.Request) -> web.StreamResponse | None:
            if request.method == "PUT":
                # The server knows no sessions; what it would be sent is what matters.
                asked.append(request.headers["x-amz-security-token"])
                return web.Response(headers={"ETag": '"1"'})
            asked.append(request.query["WebIdentityToken"])
            parts = {
                "AccessKeyId": "for-an-hour",
                "SecretAccessKey": "secret",
                "SessionToken": "session",
                "Expiration": "2999-01-01T00:00:00Z",
            }
            inner = "".join(f"<{name}>{value}</{name}>" for name, value in parts.items())
            result = f"<AssumeRoleWithWebIdentityResult><Credentials>{inner}</Credentials>"
            text = f"<AssumeRoleWithWebIdentityResponse>{result}</AssumeRoleWithWebIdentityResult>"
            return web.Response(text=f"{text}</AssumeRoleWithWebIdentityResponse>", content_type="text/xml")

        front.spoil(exchange)
        monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(tmp_path / "token"))
        monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/backups")
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", front.endpoint)
        bucket.open(IMPATIENT, endpoint=front.endpoint, credentials="").write("a", [b"1"])
        assert asked == ["the-pods-token", "session"]

    def test_credentials_of_a_folder_are_not_mixed_with_the_environments(
        self, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
            monkeypatch.setenv(name, "somebody-else")
        repository = bucket.open()
        repository.write("a", [b"1"])
        assert paths(repository) == ["a"]

    def test_a_missing_file_of_credentials_is_named(self, bucket: Bucket, tmp_path: Path) -> None:
        with pytest.raises(RepositoryError, match=f"{tmp_path}/AWS_ACCESS_KEY_ID: No such file"):
            bucket.open(credentials=str(tmp_path)).list()

    def test_no_such_bucket(self, object_store: ObjectStore) -> None:
        repository = Bucket(object_store, "nobody-made-it").open(IMPATIENT)
        with pytest.raises(RepositoryError, match="there is no such bucket; create it") as caught:
            repository.write("a", [b"1"])
        assert not caught.value.transient
        with pytest.raises(RepositoryError, match="there is no such bucket; create it"):
            repository.list()

    def test_nothing_listens(self, bucket: Bucket) -> None:
        repository = bucket.open(IMPATIENT, endpoint=f"https://127.0.0.1:{free_port()}")
        with pytest.raises(RepositoryError, match="nothing listens there") as caught:
            repository.list()
        assert caught.value.transient

    @pytest.mark.parametrize(
        ("code", "name", "words", "transient"),
        [
            (500, "InternalError", "the server fails", True),
            (503, "SlowDown", "the server is overloaded or down", True),
            (403, "AccessDenied", "access denied; the credentials need to", False),
            (403, "QuotaExceeded", "the bucket is full", False),
            (507, "XMinioStorageFull", "the bucket is full", False),
        ],
    )
    @pytest.mark.parametrize("query", ["", "partNumber=3", "uploadId"], ids=["all", "third part", "upload in parts"])
    def test_a_server_that_refuses(
        self, bucket: Bucket, front: Front, code: int, name: str, words: str, transient: bool, query: str
    ) -> None:
        repository = bucket.open(IMPATIENT, endpoint=front.endpoint)
        methods = {"": "", "partNumber=3": "PUT", "uploadId": "PUT"}
        front.spoil(status(code, name, methods[query], query))
        with pytest.raises(RepositoryError, match=f"^repository bucket .*can't write .*a/data.dump: {words}") as caught:
            repository.write("a/data.dump", chunks(4 * PART))
        assert caught.value.transient is transient
        assert bucket.files == []
        assert bucket.unfinished == []

    def test_a_completion_that_fails_leaves_nothing(self, bucket: Bucket, front: Front) -> None:
        repository = bucket.open(IMPATIENT, endpoint=front.endpoint)
        front.spoil(status(500, method="POST", query="uploadId"))
        with pytest.raises(RepositoryError, match="the server fails"):
            repository.write("a/data.dump", chunks(2 * PART))
        assert (bucket.files, bucket.unfinished) == ([], [])

    def test_a_server_that_never_answers(self, bucket: Bucket, front: Front) -> None:
        repository = bucket.open(IMPATIENT, endpoint=front.endpoint)
        repository.write("a/b", [b"1"])
        front.spoil(silence())
        for attempt in (
            lambda: repository.write("a/data.dump", chunks(2 * PART)),
            lambda: repository.list(),
            lambda: list(repository.read("a/b")),
            lambda: repository.delete("a/b"),
        ):
            with pytest.raises(RepositoryError, match="no answer came") as caught:
                attempt()
            assert caught.value.transient

    def test_an_upload_is_given_up_after_the_part_that_is_on_its_way(self, bucket: Bucket, front: Front) -> None:
        """The other way round the part would stay for ever."""
        given_up, under_way = asyncio.Event(), threading.Event()

        async def fault(request: web.Request) -> web.StreamResponse | None:
            if request.method == "DELETE":
                answer = await front.pass_on(request)
                given_up.set()
                return answer
            if request.query.get("partNumber") == "2":
                await request.read()
                under_way.set()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(given_up.wait(), 1)
            return None

        def failing() -> Iterator[bytes]:
            yield bytes(2 * PART)
            under_way.wait(30)
            raise KeyError("the dump")

        front.spoil(fault)
        with pytest.raises(KeyError, match="the dump"):
            bucket.open(endpoint=front.endpoint).write("a/data.dump", failing())
        assert [line.partition(" ")[0] for line in front.done] == ["POST", "PUT", "PUT", "DELETE"]
        assert bucket.unfinished == []

    def test_an_upload_survives_connections_that_break(self, bucket: Bucket, front: Front) -> None:
        repository = bucket.open(IMPATIENT, endpoint=front.endpoint)
        front.spoil(cut("PUT", times=1, after=2))
        content = b"".join(chunks(4 * PART))
        repository.write("a/data.dump", [content])
        front.spoil(cut("GET", times=1, after=1))
        assert b"".join(repository.read("a/data.dump")) == content

    def test_an_upload_whose_connections_always_break_leaves_nothing(self, bucket: Bucket, front: Front) -> None:
        repository = bucket.open(IMPATIENT, endpoint=front.endpoint)
        front.spoil(cut("PUT", after=2))
        with pytest.raises(RepositoryError, match="no answer came") as caught:
            repository.write("a/data.dump", chunks(4 * PART))
        assert caught.value.transient
        assert (bucket.files, bucket.unfinished) == ([], [])


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


_ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "operator")}


def _python(script: str, *arguments: str) -> list[str]:
    import sys

    return [sys.executable, "-c", script, *arguments]
