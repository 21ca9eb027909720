"""Buckets: what goes wrong with a server, and what is said of it."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiohttp import web

from integration.backup_samples import (
    chunks,
    paths,
)
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
from medianest_operator.backups.repository.client import PART, RepositoryError

_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")


class TestBucket:
    """What goes wrong with a server, and what is said of it."""

    def test_lies_below_its_prefix(self, bucket: Bucket) -> None:
        bucket.open().write("media/db/x", [b"1"])
        assert bucket.files == ["prod/backups/media/db/x"]

    def test_knows_its_server_by_nothing_but_the_authority(self, bucket: Bucket) -> None:
        with pytest.raises(RepositoryError, match="a CA that isn't trusted; give the CA's certificate") as caught:
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
        """The other way round the part would stay indefinitely."""
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
