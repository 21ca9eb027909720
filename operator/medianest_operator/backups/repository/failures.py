"""What a store's errors mean, in words that say what to do."""

from __future__ import annotations

import re
from dataclasses import dataclass

from obstore import exceptions


class RepositoryError(Exception):
    """A repository can't be used so; the text says which one, what, and what to do.

    Attributes:
        transient: trying again may help, without anybody doing anything.
    """

    def __init__(self, text: str, transient: bool = False) -> None:
        super().__init__(text)
        self.transient = transient


class NotThereError(RepositoryError):
    """There is no such object."""


@dataclass(frozen=True)
class Told:
    """An error in words, whether trying again may help, and whether an object is missing and nothing else."""

    text: str
    transient: bool = False
    missing: bool = False


# By what the error says, first match; the words are object_store's, S3's or the operating system's.
_KNOWN: tuple[tuple[str, str, bool], ...] = (
    (r"NoSuchBucket", "there is no such bucket; create it, or correct the name", False),
    (r"UnknownIssuer|unable to get local issuer|self.signed certificate",
     "the server's certificate comes from a CA that isn't trusted; give the CA's certificate as `ca`", False),
    (r"No certificates found|root_certificate", "there is no certificate (PEM) in the file of `ca` (caSecret)", False),
    (r"NotValidForName", "the server's certificate is for another name; correct `endpoint`, or the certificate", False),
    (r"invalid peer certificate|CertificateExpired|CertNotValidYet",
     "the server's certificate is not good (expired, or not yet valid?)", False),
    (r"InvalidAccessKeyId|XAdminUserNotFound",
     "the server doesn't know the access key; correct the credentials", False),
    (r"SignatureDoesNotMatch", "the secret key is wrong (or the clocks differ); correct the credentials", False),
    (r"RequestTimeTooSkewed", "this machine's clock and the server's differ too much", False),
    (r"ExpiredToken|TokenRefreshRequired", "the credentials have expired", True),
    (r"AccessDenied", "access denied; the credentials need to read, write, list and delete under the prefix", False),
    (r"QuotaExceeded|XMinioStorageFull|InsufficientCapacity|507 Insufficient",
     "the bucket is full; make room or raise its quota", False),
    (r"os error 28\b|No space left", "no space is left; make room or grow the volume", False),
    (r"os error 122\b|Disk quota exceeded", "the disk quota is used up; make room or raise it", False),
    (r"os error 30\b|Read-only file system", "the file system is read-only; mount it writable", False),
    (r"os error 13\b|os error 1\b|Permission denied|Operation not permitted",
     "permission denied; the folder must belong to this user or its group", False),
    (r"dns error|failed to lookup address", "the server's name can't be resolved; correct `endpoint`, or name lookup",
     True),
    (r"503 Service Unavailable|SlowDown|429 Too Many", "the server is overloaded or down", True),
    (r"50[024] |InternalError", "the server fails", True),
    (r"Connection refused|os error 111\b|tcp connect error", "nothing listens there, or it can't be reached", True),
    (r"timed out|deadline has elapsed|TimedOut", "no answer came in time", True),
    (r"error sending request|connection closed|Connection reset|IncompleteMessage|HTTP error",
     "no answer came: the connection broke, or it took too long", True),
    (r"NoSuchUpload", "the upload was given up by the server", True),
)  # fmt: skip


def explain(error: Exception, seconds: float) -> Told:
    """What a store's error means.

    Args:
        seconds: how long the store tried, which is told where trying again is up to the caller.
    """
    text = str(error)
    told = re.search(r"<Code>([^<]*)</Code>(?:\s*<Message>([^<]*)</Message>)?", text)
    if isinstance(error, FileNotFoundError) and (told is None or told[1] == "NoSuchKey"):
        return Told("it isn't there", missing=True)
    for pattern, words, transient in _KNOWN:
        if re.search(pattern, text):
            tried = f" (tried for {seconds:.0f} s)" if transient and seconds >= 1 else ""
            return Told(f"{words}{tried}", transient)
    if isinstance(error, exceptions.PermissionDeniedError | exceptions.UnauthenticatedError):
        return Told("access denied; correct the credentials or their rights")
    if told is not None:
        return Told(f"the server says {told[1]}" + (f": {told[2]}" if told[2] else ""))
    # The rest of obstore's texts are the same once more, as Rust prints a value.
    first = text.partition("\n")[0].strip() or type(error).__name__
    return Told(first[:300], transient=isinstance(error, exceptions.GenericError | TimeoutError | ConnectionError))
