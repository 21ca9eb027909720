"""Volumes that grow automatically: when, by how much, and what stands in the way."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from typing import Final

from medianest_operator import naming
from medianest_operator.api.auto_grow import AutoGrow
from medianest_operator.api.conditions import Reason
from medianest_operator.api.quantity import from_bytes, to_bytes, to_timedelta
from medianest_operator.errors import Permanent
from medianest_operator.health import growing
from medianest_operator.health.findings import Finding
from medianest_operator.reconcile.concern import Announcement
from medianest_operator.reconcile.context import Run
from medianest_operator.reconcile.instances import volumes

_FIELDS: Final = {naming.VOLUME_DATA: "storage", naming.VOLUME_WAL: "walStorage"}


def settings(run: Run, volume: str) -> AutoGrow | None:
    """How a volume is to grow; `None` where it isn't."""
    wal = run.spec.wal_storage
    wanted = run.spec.storage.auto_grow if volume == naming.VOLUME_DATA else wal.auto_grow if wal else None
    return wanted if wanted is not None and wanted.maximum is not None else None


async def grow(
    run: Run,
    fullest: Mapping[str, float],
    holds_log: Collection[str],
    events: list[Announcement],
    problems: list[Finding],
) -> None:
    """Make larger what is full enough.

    Args:
        fullest: how much of each volume is in use.
        holds_log: volumes that hold log back which a person can let go.
        events: what people should hear of is added here, also where an exception ends this.
        problems: what keeps a volume from growing, likewise.

    Raises:
        ApiError: the API server can't be asked.
    """
    sizes = volumes.wanted_sizes(run)
    for volume, size in sizes.items():
        wanted = settings(run, volume)
        if wanted is None or volumes.is_growing(run, volume):
            continue
        noted = last(run, volume)
        situation = growing.Growth(
            size=to_bytes(size),
            share=fullest.get(volume, 0.0),
            since_last=(datetime.now(UTC) - noted).total_seconds() if noted else None,
            only_buys_time=volume in holds_log,
            wanted=wanted,
        )
        larger = growing.grown(situation, to_timedelta(wanted.minimum_interval).total_seconds())
        if larger is None:
            continue
        try:
            await volumes.grow_to(run, volume, from_bytes(larger))
        except Permanent as error:
            problems.append(_problem(volume, error))
            continue
        message = f"Volume {volume} grows from {size} to {from_bytes(larger)} (spec.{_FIELDS[volume]}.autoGrow)."
        events.append(Announcement("VolumeGrown", message))
    if not problems and (stuck := await problem(run)):
        problems.append(stuck)


async def problem(run: Run) -> Finding | None:
    """What keeps a volume that was asked to grow from it."""
    error = await volumes.obstacle(run)
    return None if error is None else _problem("", error)


def _problem(volume: str, error: Permanent) -> Finding:
    subject = f"volume {volume}" if volume else "volumes"
    reason = Reason.VOLUME_CANNOT_GROW if error.reason is not Reason.QUOTA_EXCEEDED else error.reason
    return Finding(reason, subject, f"{error.message.rstrip('.')}.", at_once=True)


def last(run: Run, volume: str) -> datetime | None:
    """When the operator asked for a larger volume last, of any instance."""
    noted = [
        moment for claim, name in volumes.of_instances(run) if name == volume and (moment := volumes.grown_at(claim))
    ]
    return max(noted, default=None)


def what_next(run: Run, volume: str) -> str:
    """What becomes of a volume that fills, as a sentence."""
    field, wanted = _FIELDS[volume], settings(run, volume)
    if wanted is None:
        return f"It doesn't grow automatically: spec.{field}.autoGrow.maximum is not set."
    if to_bytes(volumes.wanted_sizes(run)[volume]) >= to_bytes(str(wanted.maximum)):
        return f"It has reached spec.{field}.autoGrow.maximum."
    return f"It grows automatically from {wanted.trigger} % on, once in {wanted.minimum_interval}."


def command(run: Run, volume: str) -> str:
    """How the admin makes a volume larger."""
    size = from_bytes(growing.larger(to_bytes(volumes.wanted_sizes(run)[volume]), "50%"))
    wanted, more = settings(run, volume), ""
    if wanted is not None and to_bytes(str(wanted.maximum)) < to_bytes(size):
        # No size may exceed it.
        more = f',"autoGrow":{{"maximum":"{size}"}}'
    patch = f'{{"spec":{{"{_FIELDS[volume]}":{{"size":"{size}"{more}}}}}}}'
    return f"kubectl -n {run.names.namespace} patch mndb {run.names.database} --type merge -p '{patch}'"
