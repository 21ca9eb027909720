"""What the backup Jobs came to, as the status tells it: pure, from their results and from what was known before.

The repositories are the truth, and only the Jobs see them: each ends with a summary of what it found there. A status
that was lost is whole again after the next Job.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError

from medianest_operator.api import status as api
from medianest_operator.api.conditions import Reason
from medianest_operator.api.database import DatabaseSpec
from medianest_operator.api.quantity import to_timedelta
from medianest_operator.backups.repository import layout
from medianest_operator.reconcile.backups.there import There
from medianest_operator.reconcile.concern import Truth
from medianest_operator.resources.backup_jobs import TIERS, can_verify, is_suspended, tier_of
from medianest_operator.timestamps import stamp, stamp_exactly

_WORDS = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
_SHOWN = 3
_KEPT = 20
_NEVER = datetime.min.replace(tzinfo=UTC)
_MOMENT = len("20261122T030000Z")
_LATE = timedelta(hours=1)
"""How much later than planned a backup may begin; the deadline comes on top."""


@dataclass(frozen=True)
class EndedJob:
    """A Job that took or verified a backup.

    Attributes:
        name: the Job's.
        tier: of its backup; `None`: it only verified one; `replaced`: that of a database that a restore has replaced.
        finished: when, as Kubernetes writes times.
        succeeded: as Kubernetes says.
        result: what its pod left; empty where it left nothing.
        started: when, as `finished`.
    """

    name: str
    tier: str | None
    finished: str
    succeeded: bool
    result: Mapping[str, Any] = field(default_factory=dict)
    started: str | None = None

    def looked_at(self, repository: str) -> datetime:
        """When it looked into a repository, which was while it ran: its clock may be another one."""
        ended = datetime.fromisoformat(self.finished)
        told = self.result.get("catalog", {}).get(repository, {}).get("asOf")
        if told is None or self.started is None:
            return ended
        # The API server leaves fractions of a second out.
        latest = ended + timedelta(seconds=1)
        return min(max(datetime.fromisoformat(told), datetime.fromisoformat(self.started)), latest)

    @property
    def is_of_present(self) -> bool:
        """Whether it is about the database that serves."""
        return self.tier != layout.Tier.REPLACED

    @property
    def message(self) -> str:
        """What it says, or what is to say of one that said nothing."""
        ended = "ended" if self.succeeded else "failed"
        return str(self.result.get("message") or f"Job {self.name} {ended} without a result: see its pod's log")


@dataclass
class State:
    """Where the backups stand.

    Attributes:
        backups: for the status.
        problem: why no backup can be taken at all, in words.
        overdue: series whose time has passed without one.
        never: schedules that no moment fits, with their fields, in words.
        missing: repositories that no Job can reach, each with what is missing, in words.
        replaced: databases that a restore has replaced.
        waiting: which Job can't begin, and why, as a sentence.
        suspended: why no backup is scheduled, where they are suspended, as a clause.
    """

    backups: api.Backups
    problem: str | None = None
    overdue: tuple[str, ...] = ()
    never: tuple[str, ...] = ()
    missing: Mapping[str, str] = field(default_factory=dict)
    replaced: tuple[api.ReplacedDatabase, ...] = ()
    waiting: str | None = None
    suspended: str = "spec.backup.suspend is true"


def next_run(schedule: str, time_zone: str, after: datetime) -> datetime:
    """When a CronJob starts next, in UTC.

    Raises:
        ValueError: it isn't a schedule, or the time zone isn't known.
    """
    try:
        zone = ZoneInfo(time_zone)
        found: datetime = next(CronSim(_WORDS.get(schedule, schedule), after.astimezone(zone)))
    except ZoneInfoNotFoundError as error:
        raise ValueError(f"backup.timeZone: {time_zone} is not a time zone of the IANA database") from error
    except (CronSimError, StopIteration) as error:
        raise ValueError(f"{schedule} is not a schedule: {error}") from error
    return found.astimezone(UTC)


def collect(spec: DatabaseSpec, known: api.Backups | None, ended: Sequence[EndedJob], now: datetime) -> api.Backups:
    """The status after these Jobs; what no Job tells any more is taken over from `known`."""
    before = known or api.Backups()
    jobs = sorted(ended, key=lambda job: job.finished)
    present = [job for job in jobs if job.is_of_present]
    backups = [job for job in present if job.tier is not None]
    good = [job for job in backups if _is_in(spec, job)]
    last, holders = (_last(good[-1]), _holders(good[-1])) if good else (None, frozenset[str]())
    summaries = _summaries(spec, before, jobs)
    repositories, newest = _repositories(spec, before, jobs), _newest(spec, before, summaries)
    there = There(newest, before.newest, repositories)
    if before.last and (last is None or before.last.at >= last.at):
        holders = holders if last and before.last.id == last.id else frozenset()
        last = before.last
    checks = [job for job in present if "verification" in job.result or job.tier is None]
    return api.Backups(
        last=_still_there(last, holders, repositories, there),
        tiers=_tiers(spec, before, good, now),
        repositories=repositories,
        newest=newest,
        verified=_verified(spec, before, summaries, there),
        failed=_failure(before.failed, [(job, job.succeeded, job.message) for job in backups]),
        verification_failed=_failure(before.verification_failed, [_check(job) for job in checks]),
        next_verification=_next_verification(spec, now),
    )


def _is_in(spec: DatabaseSpec, job: EndedJob) -> bool:
    """Whether its backup reached a repository of the spec: where others failed, the Job did. A person's copy of such a
    Job may have done anything else."""
    if not job.result.get("backup"):
        return False
    told = job.result.get("repositories")
    return not told or any(told.get(item.name, {}).get("ok") for item in spec.backup.repositories)


def _holders(job: EndedJob) -> frozenset[str]:
    """The repositories that its backup reached; none where it doesn't say."""
    return frozenset(name for name, told in job.result.get("repositories", {}).items() if told.get("ok"))


def _last(job: EndedJob) -> api.LastBackup:
    told = job.result
    return api.LastBackup(
        id=str(told.get("backup", "")),
        tier=str(job.tier),
        at=str(told.get("finishedAt") or job.finished),
        started_at=told.get("startedAt"),
        bytes=told.get("bytes"),
        seconds=told.get("seconds"),
        source=told.get("source"),
    )


def _still_there(
    last: api.LastBackup | None,
    holders: Collection[str],
    repositories: Sequence[api.RepositoryStatus],
    there: There,
) -> api.LastBackup | None:
    """The last one that there is, where somebody removed the last one that was taken, or the repository that had it.

    Args:
        holders: the repositories that it reached, where that is known.
    """
    if last is None or there.get(last.id) is not None:
        return last
    where = [item for item in repositories if not holders or item.name in holders]
    lost = there.has_lost(last.id)
    if not lost and any(_seen(item) < datetime.fromisoformat(last.at) for item in where):
        return last
    if there.newest is not None:
        # How large its dump is was not said: `newest` counts all its files.
        return api.LastBackup(id=there.newest.id, tier=there.newest.tier, at=there.newest.taken_at)
    return None if lost or all(item.count == 0 for item in repositories) else last


def _check(job: EndedJob) -> tuple[EndedJob, bool, str]:
    """A Job, whether its verification went well, and what it said."""
    if job.tier is None:
        return job, job.succeeded, job.message
    told = job.result["verification"]
    return job, bool(told.get("ok")), str(told.get("message", ""))


def _failure(known: api.FailedJob | None, ends: Sequence[tuple[EndedJob, bool, str]]) -> api.FailedJob | None:
    """The newest end, if it is a failure."""
    if not ends or (known is not None and known.at > ends[-1][0].finished):
        return known
    job, succeeded, message = ends[-1]
    return None if succeeded else api.FailedJob(job=job.name, at=job.finished, message=message)


def _tiers(spec: DatabaseSpec, before: api.Backups, good: Iterable[EndedJob], now: datetime) -> list[api.TierStatus]:
    newest: dict[str, str | None] = {tier.name: tier.last_success for tier in before.tiers}
    for job in good:
        at = str(job.result.get("finishedAt") or job.finished)
        newest[str(job.tier)] = max(newest.get(str(job.tier)) or "", at)
        for summary in job.result.get("catalog", {}).values():
            for tier, told in summary.get("tiers", {}).items():
                newest[tier] = max(newest.get(tier) or "", str(told.get("last") or ""))
    coming: dict[str, str | None] = {
        tier: _stamp_next(tier_of(spec, tier).schedule, spec, now)
        for tier in TIERS
        if tier_of(spec, tier).enabled and not is_suspended(spec)
    }
    told = [*TIERS, *sorted(set(newest) - set(TIERS))]
    return [
        api.TierStatus(name=name, last_success=newest.get(name) or None, next=coming.get(name))
        for name in told
        if newest.get(name) or name in coming
    ]


def _stamp_next(schedule: str, spec: DatabaseSpec, now: datetime) -> str | None:
    try:
        return stamp(next_run(schedule, spec.backup.time_zone, now))
    except ValueError:
        return None


def _next_verification(spec: DatabaseSpec, now: datetime) -> str | None:
    if is_suspended(spec) or not spec.backup.verification.enabled or not can_verify(spec):
        return None
    return _stamp_next(spec.backup.verification.schedule, spec, now)


def _repositories(spec: DatabaseSpec, before: api.Backups, jobs: Sequence[EndedJob]) -> list[api.RepositoryStatus]:
    found = {item.name: item for item in before.repositories}
    for job in jobs:
        told = job.result.get("repositories", {})
        summaries = job.result.get("catalog", {})
        for name in {*told, *summaries}:
            known = found.get(name) or api.RepositoryStatus(name=name)
            update: dict[str, Any] = {}
            # That a replaced database was stored says nothing of the series.
            if name in told and job.is_of_present and job.finished >= (known.last_success or ""):
                good = bool(told[name].get("ok"))
                update["message"] = None if good else told[name].get("message")
                if good:
                    update["last_success"] = job.finished
            # Only who has looked there has something to say of what is there.
            if (summary := summaries.get(name)) is not None and _seen(known) <= (looked := job.looked_at(name)):
                update |= {field: summary[field] for field in ("count", "signed") if field in summary}
                update |= {"used_percent": summary["usedPercent"]} if "usedPercent" in summary else {}
                update["seen"] = stamp_exactly(looked)
            found[name] = known.model_copy(update=update)
    return [found.get(item.name) or api.RepositoryStatus(name=item.name) for item in spec.backup.repositories]


def _seen(repository: api.RepositoryStatus | None) -> datetime:
    if repository is None or repository.seen is None:
        return _NEVER
    return datetime.fromisoformat(repository.seen)


def _summaries(
    spec: DatabaseSpec, before: api.Backups, jobs: Sequence[EndedJob]
) -> list[tuple[str, Mapping[str, Any]]]:
    """What the Jobs tell of each repository of the spec, without what was seen before the status, the newest last."""
    seen = {item.name: _seen(item) for item in before.repositories}
    there = {item.name for item in spec.backup.repositories}
    told = [
        (looked, repository, summary)
        for job in jobs
        for repository, summary in job.result.get("catalog", {}).items()
        if repository in there and seen.get(repository, _NEVER) <= (looked := job.looked_at(repository))
    ]
    return [(repository, summary) for _, repository, summary in sorted(told, key=lambda item: item[0])]


def _newest(
    spec: DatabaseSpec, before: api.Backups, summaries: Iterable[tuple[str, Mapping[str, Any]]]
) -> list[api.KeptBackup]:
    """What there is to go back to: of each repository as the last Job saw it that looked there."""
    there = {item.name for item in spec.backup.repositories}
    found = {item.id: item for item in before.newest}
    # Where each is, and whether its copy there is known to be good.
    holding = {item.id: {name: item.verified for name in item.repositories if name in there} for item in before.newest}
    for repository, summary in summaries:
        if (newest := summary.get("newest")) is None:
            continue
        for places in holding.values():
            places.pop(repository, None)
        for id_, size, verified, later in newest:
            if (kept := _kept(id_, size, verified, later)) is not None:
                found[id_] = kept
                holding.setdefault(id_, {})[repository] = verified
    there_are = (id_ for id_, places in holding.items() if places)
    # Of several of the same moment the letters at the end say nothing.
    ids = sorted(there_are, key=lambda id_: (id_[:_MOMENT], found[id_].taken_at, id_), reverse=True)[:_KEPT]
    return [
        found[id_].model_copy(update={"repositories": sorted(holding[id_]), "verified": _any(holding[id_].values())})
        for id_ in ids
    ]


def _any(verified: Collection[bool | None]) -> bool | None:
    """One good copy is enough; `None` where none was restored."""
    known = [item for item in verified if item is not None]
    return any(known) if known else None


def _kept(id_: str, size: int, verified: bool | None, later: int) -> api.KeptBackup | None:
    began, tier = layout.id_moment(id_), layout.id_tier(id_)
    if began is None or tier is None:
        return None
    taken = stamp(began + timedelta(seconds=later))
    return api.KeptBackup(id=id_, tier=tier.value, taken_at=taken, bytes=size, verified=verified)


def _verified(
    spec: DatabaseSpec, before: api.Backups, summaries: Iterable[tuple[str, Mapping[str, Any]]], there: There
) -> api.Verified | None:
    """The newest of all that any repository of the spec tells, and that is still there."""
    latest = dict(summaries)
    best = before.verified
    if best and not there.may_be_verified(best.backup):
        best = None
    is_told = best is not None and there.get(best.backup) is not None
    if best and not is_told and all(_denies(latest.get(item.name), best.backup) for item in spec.backup.repositories):
        best = None
    if best and best.repository not in {item.name for item in spec.backup.repositories}:
        # The others' copies were read back, and had the same bytes.
        copy = there.get(best.backup)
        best = best.model_copy(update={"repository": copy.repositories[0]}) if copy else None
    for repository, summary in latest.items():
        told = summary.get("lastVerified")
        if told is None or not there.may_be_verified(told["backup"]):
            continue
        if best is None or str(told["at"]) > best.at:
            best = api.Verified(
                backup=told["backup"],
                repository=repository,
                at=told["at"],
                seconds=told.get("seconds"),
                not_in_place=list(told.get("lost", [])),
            )
    return best


def _denies(summary: Mapping[str, Any] | None, id_: str) -> bool:
    """Whether a repository says that a backup isn't verified there: none is, or none as new. One that nobody could look
    into says nothing."""
    if summary is None or "count" not in summary:
        return False
    told = summary.get("lastVerified")
    return told is None or str(told["backup"]) < id_


def overdue(spec: DatabaseSpec, backups: api.Backups, since: Mapping[str, datetime], now: datetime) -> tuple[str, ...]:
    """Series whose time has passed without a backup.

    Args:
        since: since when each series is on: none is late for what was due before.
    """
    if is_suspended(spec):
        return ()
    grace = _LATE + to_timedelta(spec.backup.deadline)
    late = []
    known = {tier.name: tier.last_success for tier in backups.tiers}
    for name in TIERS:
        if not tier_of(spec, name).enabled or name not in since:
            continue
        success = known.get(name)
        begin = max(since[name], datetime.fromisoformat(success)) if success else since[name]
        try:
            due = next_run(tier_of(spec, name).schedule, spec.backup.time_zone, begin)
        except ValueError:
            continue
        if due + grace < now:
            late.append(name)
    return tuple(late)


def never(spec: DatabaseSpec, now: datetime) -> tuple[str, ...]:
    """Schedules that never come, such as the 30th of February. The API server refuses the plain ones, and a CronJob
    takes all of them."""
    schedules = {f"logical.{tier}": tier_of(spec, tier).schedule for tier in TIERS if tier_of(spec, tier).enabled}
    if spec.backup.verification.enabled and can_verify(spec):
        schedules["verification"] = spec.backup.verification.schedule
    return tuple(
        f"backup.{field}.schedule {schedule!r} never comes"
        for field, schedule in schedules.items()
        if _stamp_next(schedule, spec, now) is None
    )


def verdict(spec: DatabaseSpec, state: State) -> tuple[Truth, Reason, str]:
    """Whether the backups are healthy, why not, and a sentence for people."""
    backups = state.backups
    if state.problem:
        return "False", Reason.BACKUP_MISCONFIGURED, f"No backup can be taken: {state.problem}."
    if state.never:
        message = f"{'; '.join(state.never)}: no month that it names has such a day. {_fallback(backups)}"
        return "False", Reason.BACKUP_MISCONFIGURED, message
    if backups.verification_failed:
        failed = backups.verification_failed
        return (
            "False",
            Reason.VERIFICATION_FAILED,
            f"{_sentence(failed.message)} See Job {failed.job}. {_fallback(backups)}",
        )
    if backups.failed:
        failed = backups.failed
        told = [_sentence(failed.message), f"See Job {failed.job}.", _unreached(state), _fallback(backups)]
        return "False", Reason.BACKUP_FAILED, " ".join(filter(None, told))
    if kept := [item for item in state.replaced if item.problem]:
        more = f" So do {len(kept) - 1} more (status.replaced)." if len(kept) > 1 else ""
        return "False", Reason.BACKUP_FAILED, f"{_sentence(str(kept[0].problem))}{more} {_fallback(backups)}"
    if state.waiting:
        return "False", Reason.BACKUP_MISCONFIGURED, f"{state.waiting} {_fallback(backups)}"
    if state.overdue:
        series = ", ".join(state.overdue)
        return "False", Reason.BACKUP_OVERDUE, f"No {series} backup when it was due. {_fallback(backups)}"
    if spec.backup.suspend:
        message = f"{state.suspended}: no backup is scheduled. {_fallback(backups)}"
        return "False", Reason.BACKUPS_SUSPENDED, message
    if state.missing:
        return "False", Reason.BACKUP_MISCONFIGURED, f"{_unreached(state)} {_fallback(backups)}"
    if backups.last is None:
        coming = min((tier.next for tier in backups.tiers if tier.next), default=None)
        when = f"The first is taken at {coming}." if coming else "None is scheduled."
        return "Unknown", Reason.NO_BACKUP_YET, f"There is no backup yet. {when}"
    signed = [item.signed for item in backups.repositories if item.signed is not None]
    if spec.backup.signing_secret and signed and not any(signed):
        coming = min((tier.next for tier in backups.tiers if tier.next), default=None)
        message = (
            "No backup has been taken since spec.backup.encryption.signingSecret was set, and one without a signature"
            " can only be restored by id, with acceptUnsigned."
            f" {f'The next one is taken at {coming}; take' if coming else 'Take'} one now with a MediaNestBackup."
        )
        return "Unknown", Reason.NO_BACKUP_YET, message
    return "True", Reason.BACKUPS_HEALTHY, _fallback(backups)


def _unreached(state: State) -> str:
    """Which repositories no backup gets into, and why; empty where there is none."""
    return " ".join(f"No backup gets into repository {name}: {why}." for name, why in sorted(state.missing.items()))


def _sentence(text: str) -> str:
    return text.rstrip(".") + "."


def _fallback(backups: api.Backups) -> str:
    """What there is to go back to."""
    if backups.last is None:
        return "There is no backup."
    words = f"Last backup {backups.last.id}"
    if backups.verified is None:
        return f"{words}; no backup has been verified by a test restore yet."
    lost = backups.verified.not_in_place
    shown = f"{', '.join(lost[:_SHOWN])}{f' and {len(lost) - _SHOWN} more' if len(lost) > _SHOWN else ''}"
    but = f" A restore in place can't bring back {shown}." if lost else ""
    if backups.verified.backup == backups.last.id:
        return f"{words}, verified by a test restore.{but}"
    return f"{words}; the latest verified one is {backups.verified.backup}.{but}"
