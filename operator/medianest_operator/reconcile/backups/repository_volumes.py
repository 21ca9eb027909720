"""The volumes of repositories: how full the backup Jobs found those that the operator makes, and how large they
are to be.

Nothing but a Job mounts them, so that what is known of one is as old as the last Job that looked there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, Final

from medianest_operator import naming
from medianest_operator.api import status as api
from medianest_operator.api.backup import Repository
from medianest_operator.api.conditions import Reason
from medianest_operator.api.quantity import from_bytes, to_bytes, to_timedelta
from medianest_operator.errors import Permanent
from medianest_operator.health import growing, storage
from medianest_operator.health.findings import Finding
from medianest_operator.kubernetes.kinds import CLAIM, Manifest
from medianest_operator.reconcile.context import Run
from medianest_operator.reconcile.instances.volumes import grown_at
from medianest_operator.timestamps import stamp

_REFUSED = "refused repositories"
_REFUSED_FOR: Final = 60.0
"""Seconds after which a size is asked for again that was refused."""


def own(run: Run) -> Iterator[tuple[Repository, Manifest | None]]:
    """The repositories whose volume the operator makes, each with its claim."""
    for repository in run.spec.backup.repositories:
        if repository.volume is not None and repository.volume.claim_name is None:
            name = run.names.backup_claim(repository.name)
            yield repository, run.services.cache.get(CLAIM, run.names.namespace, name)


def sized(run: Run, wanted: Manifest, *, grows: bool = True) -> Manifest:
    """A claim with the size that it has grown to, and by its next step where its volume is full enough.

    Args:
        wanted: as the spec says.
        grows: false: no further than it is.
    """
    name = wanted["metadata"]["name"]
    found = next(((item, live) for item, live in own(run) if run.names.backup_claim(item.name) == name), None)
    repository, live = found or (None, None)
    if repository is None or live is None:
        return wanted
    size, noted = _size(live), grown_at(live)
    if to_bytes(wanted["spec"]["resources"]["requests"]["storage"]) >= to_bytes(size):
        size = str(wanted["spec"]["resources"]["requests"]["storage"])
    if grows and (larger := _next_size(run, repository, to_bytes(size), noted)) is not None:
        size, noted = from_bytes(larger), datetime.now(UTC)
    resources = {"requests": {"storage": size}}
    notes = {"annotations": {naming.ANNOTATION_GROWN_AT: stamp(noted)}} if noted else {}
    return wanted | {"metadata": wanted["metadata"] | notes, "spec": wanted["spec"] | {"resources": resources}}


def note_refusal(run: Run, claim: Manifest, error: Permanent | None) -> None:
    """Remember why a volume doesn't grow, for `findings`; `None`: it does."""
    name = claim["metadata"]["name"]
    refused: dict[str, Permanent] = dict(run.services.memory.recall(run.key, _REFUSED, run.uid, math.inf) or {})
    if refused.pop(name, None) is None and error is None:
        return
    if error is not None:
        refused[name] = error
        run.services.memory.keep(run.key, f"refusal of {name}", _size(claim), True)
    run.services.memory.keep(run.key, _REFUSED, run.uid, refused)


def was_just_refused(run: Run, claim: Manifest) -> bool:
    """Whether a claim's size was refused within the last minute."""
    topic = f"refusal of {claim['metadata']['name']}"
    return run.services.memory.recall(run.key, topic, _size(claim), _REFUSED_FOR) is not None


def _size(live: Manifest) -> str:
    return str(live["spec"]["resources"]["requests"]["storage"])


def _known(run: Run, repository: Repository) -> Mapping[str, Any]:
    """What the status says of a repository."""
    told = (run.database.get("status") or {}).get("backup", {}).get("repositories") or []
    return next((item for item in told if item.get("name") == repository.name), {})


def _next_size(run: Run, repository: Repository, size: int, noted: datetime | None) -> int | None:
    wanted = repository.volume.auto_grow if repository.volume else None
    known = _known(run, repository)
    percent, seen = known.get("usedPercent"), known.get("seen")
    if wanted is None or percent is None or seen is None:
        return None
    if noted is not None and datetime.fromisoformat(seen) <= noted:
        # The Job looked at the smaller one.
        return None
    since = (datetime.now(UTC) - noted).total_seconds() if noted else None
    situation = growing.Growth(size=size, share=percent / 100, since_last=since, wanted=wanted)
    return growing.grown(situation, to_timedelta(wanted.minimum_interval).total_seconds())


def findings(run: Run) -> list[Finding]:
    """What is wrong with these volumes."""
    found = []
    refused: Mapping[str, Permanent] = run.services.memory.recall(run.key, _REFUSED, run.uid, math.inf) or {}
    for repository, live in own(run):
        percent = _known(run, repository).get("usedPercent")
        if percent is None or live is None:
            continue
        why = refused.get(live["metadata"]["name"])
        if why is not None:
            message = f"The volume of the backup repository {repository.name} can't grow: {why.message.rstrip('.')}."
            reason = why.reason if why.reason is Reason.QUOTA_EXCEEDED else Reason.VOLUME_CANNOT_GROW
            found.append(Finding(reason, _object(repository), message, at_once=True))
        then, warning = _what_next(repository, _size(live)), run.spec.monitoring.storage_warning
        bad = storage.repository_finding(repository.name, percent, warning, then)
        if bad is not None:
            found.append(bad)
    return found


def _what_next(repository: Repository, size: str) -> str:
    wanted = repository.volume.auto_grow if repository.volume else None
    if wanted is None or wanted.maximum is None:
        return "It does not grow automatically (autoGrow.maximum is not set)."
    if to_bytes(size) >= to_bytes(wanted.maximum):
        return "It has reached autoGrow.maximum."
    return "It grows automatically."


def _object(repository: Repository) -> str:
    return f"volume backup/{repository.name}"


def status(run: Run, told: Mapping[str, str]) -> list[api.Volume]:
    """These volumes for the status.

    Args:
        told: the range that was told of each before, by its name there.
    """
    volumes = []
    for repository, live in own(run):
        name, percent = f"backup/{repository.name}", _known(run, repository).get("usedPercent")
        if live is None:
            continue
        used = None if percent is None else storage.in_use(percent / 100, told.get(name))
        noted = grown_at(live)
        volumes.append(
            api.Volume(name=name, size=_size(live), used=used, grown_at=stamp(noted) if noted is not None else None)
        )
    return volumes
