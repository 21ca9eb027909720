"""Where a repository is, as a command line says it, and the store that reaches it.

NAME=URL or URL, where URL is one of
file:///repositories/main
s3://bucket/prefix?endpoint=https://...&region=...&path_style=true&credentials=/folder&ca=/folder/ca.crt
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, unquote, urlsplit

from obstore.store import LocalStore, S3Store

from medianest_operator.backups.repository.failures import RepositoryError

if TYPE_CHECKING:
    from obstore.store import ClientConfig, S3Config, S3Credential

_NAMED = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]{0,62})=(.*)", re.DOTALL)
_OPTIONS = ("endpoint", "region", "path_style", "credentials", "ca")
# So often are the files read anew, which a Secret's mount replaces.
_CREDENTIALS_GOOD = timedelta(minutes=5)


@dataclass(frozen=True)
class Patience:
    """How long a bucket's server may take; together they bound every call to a few minutes.

    Attributes:
        connect: until a connection stands, seconds.
        silence: until the next byte of an answer, seconds.
        request: a whole request, seconds: one part of an object goes in each.
        retries: how often a request that failed is sent again, with growing pauses.
        retry_for: after that time, seconds, it isn't sent again.
    """

    connect: float = 10
    silence: float = 30
    request: float = 120
    retries: int = 10
    retry_for: float = 120


@dataclass(frozen=True)
class Location:
    """What the text says.

    Attributes:
        name: what results call the repository.
        url: for people, without query and secrets.
        folder: of a folder.
        bucket: and all that follow: of a bucket.
    """

    name: str
    url: str
    folder: Path | None = None
    bucket: str = ""
    prefix: str = ""
    endpoint: str | None = None
    region: str = "us-east-1"
    path_style: bool = True
    credentials: Path | None = None
    ca: Path | None = None
    patience: Patience = Patience()


def parse(text: str) -> Location:
    """A repository's location.

    The addresses `s3://` take these options: `endpoint` (Amazon's own without it), `region`, `path_style` (default:
    true with an endpoint), `ca` (a file with the certificates of the CAs to trust beside the system's),
    `credentials` (a folder with the files AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and perhaps AWS_SESSION_TOKEN;
    without it the environment's variables of these names, or a workload identity's token file).

    Raises:
        RepositoryError: the text is none.
    """
    named = _NAMED.fullmatch(text)
    name, address = (named[1], named[2]) if named else (None, text)
    try:
        url = urlsplit(address)
        options = dict(parse_qsl(url.query, keep_blank_values=True, strict_parsing=bool(url.query)))
    except ValueError as error:
        raise RepositoryError(f"repository {name or address!r}: not a URL: {error}") from error
    if url.username or url.password:
        raise RepositoryError(f"repository {name or url.hostname!r}: no user or password in the URL; use `credentials`")
    shown = f"{url.scheme}://{url.netloc}{url.path}".rstrip("/")
    location = Location(name or shown, shown)
    if url.scheme == "file":
        if url.netloc or not url.path.startswith("/") or options:
            raise RepositoryError(f"repository {text!r}: a folder is written file:///absolute/path")
        return replace(location, folder=Path(unquote(url.path)))
    if url.scheme != "s3" or not url.netloc:
        raise RepositoryError(f"repository {text.partition('?')[0]!r}: write file:///folder or s3://bucket/prefix")
    unknown = sorted(set(options) - set(_OPTIONS))
    if unknown:
        raise RepositoryError(
            f"repository {location.name}: unknown option {unknown[0]!r}; known: {', '.join(_OPTIONS)}"
        )
    endpoint = options.get("endpoint")
    if endpoint is not None and urlsplit(endpoint).scheme not in ("https", "http"):
        raise RepositoryError(f"repository {location.name}: `endpoint` is not a URL with https: {endpoint!r}")
    return replace(
        location,
        bucket=url.netloc,
        prefix=unquote(url.path).strip("/"),
        endpoint=endpoint,
        region=options.get("region") or "us-east-1",
        path_style=_truth(location.name, options["path_style"]) if "path_style" in options else endpoint is not None,
        credentials=Path(options["credentials"]) if "credentials" in options else None,
        ca=Path(options["ca"]) if "ca" in options else None,
    )


def folder_store(folder: Path) -> LocalStore:
    """The store of a folder that is there; empty folders go with their last file."""
    return LocalStore(str(folder), automatic_cleanup=True)


def s3_store(location: Location) -> S3Store:
    """The store of a bucket; nothing is asked of its server yet.

    Raises:
        RepositoryError: the credentials' or the CA's file can't be read.
    """
    patience = location.patience
    client: ClientConfig = {
        "connect_timeout": timedelta(seconds=patience.connect),
        "read_timeout": timedelta(seconds=patience.silence),
        "timeout": timedelta(seconds=patience.request),
        "user_agent": "medianest-operator",
    }
    if location.ca is not None:
        client["root_certificate"] = _contents(location, location.ca)
    config: S3Config = {
        "region": location.region,
        "virtual_hosted_style_request": not location.path_style,
        # Not all servers know how to delete several objects at once.
        "disable_bulk_delete": True,
    }
    if location.endpoint is not None:
        url = urlsplit(location.endpoint)
        client["allow_http"] = url.scheme == "http"
        host = url.netloc if location.path_style else f"{location.bucket}.{url.netloc}"
        config["endpoint"] = f"{url.scheme}://{host}{url.path.rstrip('/')}"
    provider = _provider(location, location.credentials) if location.credentials is not None else None
    return S3Store(
        location.bucket,
        config=config,
        client_options=client,
        retry_config={
            "max_retries": patience.retries,
            "retry_timeout": timedelta(seconds=patience.retry_for),
            "backoff": {"init_backoff": timedelta(seconds=0.2), "max_backoff": timedelta(seconds=15), "base": 2},
        },
        credential_provider=provider,
    )


def _provider(location: Location, folder: Path) -> Callable[[], S3Credential]:
    """Credentials out of files, so that what the environment has of another identity doesn't mix in."""

    def read() -> S3Credential:
        token = folder / "AWS_SESSION_TOKEN"
        return {
            "access_key_id": _text(location, folder / "AWS_ACCESS_KEY_ID"),
            "secret_access_key": _text(location, folder / "AWS_SECRET_ACCESS_KEY"),
            "token": _text(location, token) if token.exists() else None,
            "expires_at": datetime.now(UTC) + _CREDENTIALS_GOOD,
        }

    read()
    return read


def _text(location: Location, path: Path) -> str:
    text = _contents(location, path).decode("ascii", "replace").strip()
    if not text:
        raise RepositoryError(f"repository {location.name}: {path} is empty")
    return text


def _contents(location: Location, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise RepositoryError(
            f"repository {location.name}: {path}: No such file or directory; in a Job it is the key {path.name} of the"
            " Secret that spec.backup.repositories names"
        ) from error
    except OSError as error:
        raise RepositoryError(f"repository {location.name}: {path}: {os.strerror(error.errno or 0)}") from error


def _truth(name: str, text: str) -> bool:
    if text not in ("true", "false"):
        raise RepositoryError(f"repository {name}: path_style is true or false, not {text!r}")
    return text == "true"
