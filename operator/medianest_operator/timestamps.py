"""Moments as Kubernetes writes them: RFC 3339, UTC, whole seconds, `Z` (apimachinery, metav1.Time)."""

from datetime import UTC, datetime, timedelta


def stamp(moment: datetime, *, up: bool = False) -> str:
    """An aware moment, for instance `2026-11-22T03:00:00Z`.

    Args:
        up: the second that has begun counts: what had happened at the moment had happened by the one that is written.
    """
    if up and moment.microsecond:
        moment += timedelta(seconds=1)
    return f"{moment.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"


def stamp_exactly(moment: datetime) -> str:
    """The same to the millisecond: `2026-11-22T03:00:00.125Z`."""
    return f"{moment.astimezone(UTC):%Y-%m-%dT%H:%M:%S}.{moment.microsecond // 1000:03}Z"


def stamp_now() -> str:
    """This moment."""
    return stamp(datetime.now(UTC))


def seconds_since(text: str) -> float:
    """Seconds since such a moment; negative where it is still to come."""
    return (datetime.now(UTC) - datetime.fromisoformat(text)).total_seconds()
