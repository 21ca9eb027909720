"""`spec.hardening`: a Job wherever the database isn't as the options want, and where each option stands.

It runs only on a schema that is up to date, and never beside a migration. What can't be had is told, and keeps the
database neither from serving nor from being Ready.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from medianest_operator.api import status as api
from medianest_operator.api.conditions import Reason
from medianest_operator.api.hardening import Option
from medianest_operator.errors import Permanent
from medianest_operator.hardening.naming import is_own
from medianest_operator.hardening.objects import options_digest
from medianest_operator.hardening.plan import OptionPlan, make_plans
from medianest_operator.hardening.run import finished
from medianest_operator.hardening.state import State as Found
from medianest_operator.hardening.state import read_state_async
from medianest_operator.health.indexes import IndexHealth
from medianest_operator.kubernetes.kinds import JOB, Manifest
from medianest_operator.migrations.history import History
from medianest_operator.postgres import logins
from medianest_operator.reconcile import jobs, migration
from medianest_operator.reconcile.context import Pod, Run
from medianest_operator.reconcile.reading import application_database
from medianest_operator.resources.hardening_job import hardening_job
from medianest_operator.results.hardening import OptionState
from medianest_operator.results.migration import Outcome

_LOOK_EVERY = 60.0
_AGAIN_AFTER = timedelta(minutes=10)
"""How long until what was applied and is gone again is applied once more: somebody else may be at it."""

_PENDING = {OptionState.APPLYING, OptionState.REMOVING}


@dataclass
class State:
    """Where the options stand.

    Attributes:
        options: how each option stands; all of them `Off`: there is nothing of ours, and nothing to tell.
        messages: what there is to say of an option that isn't as wanted.
        job: the Job that is at it, or that ended without success.
    """

    options: dict[Option, OptionState] = field(default_factory=dict)
    messages: dict[Option, str] = field(default_factory=dict)
    job: str | None = None

    @property
    def is_off(self) -> bool:
        return set(self.options.values()) <= {OptionState.OFF}

    @property
    def reason(self) -> Reason:
        """The condition's: the worst of the options'."""
        states = set(self.options.values())
        if OptionState.FAILED in states:
            return Reason.HARDENING_FAILED
        if states & _PENDING:
            return Reason.HARDENING_APPLYING
        return Reason.HARDENING_WAITING if OptionState.WAITING in states else Reason.HARDENING_APPLIED

    @property
    def message(self) -> str:
        told = list(dict.fromkeys(self.messages.values()))
        if self.reason == Reason.HARDENING_APPLIED:
            return f"As spec.hardening wants: {self._of(OptionState.APPLIED)}."
        if self.reason == Reason.HARDENING_FAILED:
            again = f" To try the same options again, delete Job {self.job}." if self.job else ""
            return f"Not applied: {self._of(OptionState.FAILED)}. {' '.join(told)}{again}"
        if self.reason == Reason.HARDENING_WAITING:
            return " ".join(told)
        parts = {"applies": self._of(OptionState.APPLYING), "removes": self._of(OptionState.REMOVING)}
        doing = " and ".join(f"{verb} {names}" for verb, names in parts.items() if names)
        return " ".join([f"{f'Job {self.job}' if self.job else 'A Job'} {doing}.", *told])

    def as_status(self) -> api.Hardening | None:
        """`status.hardening`; absent while there is nothing to tell."""
        if self.is_off:
            return None
        told = " ".join(dict.fromkeys(self.messages.values()))
        options = {option.value: its.value for option, its in self.options.items()}
        return api.Hardening.model_validate({**options, "message": told or None, "job": self.job})

    def _of(self, state: OptionState) -> str:
        return ", ".join(option.value for option, its in self.options.items() if its == state)


async def reconcile(run: Run, primary: Pod, history: History, migrated: migration.State | None) -> State | None:
    """Start a Job where one is needed, and tell where the options stand; None where that can't be told now."""
    if migrated is None or not migrated.up_to_date or migrated.is_running:
        return None
    app_role = logins.role_name(run.spec, logins.APP)
    digest = options_digest(run.spec.hardening, app_role, history.version)
    name = run.names.hardening_job(digest)
    job = next((job for job in run.hardening_jobs if job["metadata"]["name"] == name), None)
    others = [job for job in run.hardening_jobs if job["metadata"]["name"] != name]
    plans = make_plans(run.spec.hardening, app_role, await _look(run, primary, digest))
    if any(jobs.ended(other) is None for other in others):
        # One at a time: an earlier one ends first.
        return judge(plans, others[0]["metadata"]["name"])
    for other in others:
        await run.services.applier.delete(JOB, other)
    if job is None and any(plan.has_work for plan in plans):
        image = run.spec.image or run.services.settings.postgres_image
        wanted = hardening_job(run.names, run.spec, image, digest, run.owner)
        try:
            job = await run.services.applier.apply(JOB, wanted)
        except Permanent as error:
            # The next run tries again; meanwhile nothing else waits for it.
            return judge(plans, result={"message": error.message}, ended={"type": "Failed"})
    if job is None:
        return judge(plans)
    result = jobs.result(run, job)
    state = judge(plans, job["metadata"]["name"], result, ended=jobs.ended(job))
    if set(state.options.values()) & _PENDING and _is_due(job, result):
        await run.services.applier.delete(JOB, job)
    return state


async def _look(run: Run, primary: Pod, digest: str) -> Found:
    """Our objects, looked at again after a minute or when a Job changed."""
    ends = json.dumps([[job["metadata"]["uid"], jobs.ended(job) is not None] for job in run.hardening_jobs])
    token = (primary.uid, digest, ends)
    known = run.services.memory.recall(run.key, "hardening", token, _LOOK_EVERY)
    if isinstance(known, Found):
        return known
    async with application_database(run, primary) as connection:
        found = await read_state_async(connection)
    run.services.memory.keep(run.key, "hardening", token, found)
    return found


def _is_due(job: Manifest, result: Mapping[str, Any]) -> bool:
    """Whether an ended Job makes room for another try: at once where it was the moment's fault, which took the Job
    itself minutes to give up on; later where what it applied is gone."""
    end = jobs.ended(job)
    if end is None or result.get("outcome") == Outcome.TRANSIENT:
        return end is not None
    since = datetime.now(UTC) - datetime.fromisoformat(end["lastTransitionTime"].replace("Z", "+00:00"))
    return since > _AGAIN_AFTER


def judge(
    plans: tuple[OptionPlan, ...],
    job: str | None = None,
    result: Mapping[str, Any] | None = None,
    *,
    ended: Mapping[str, Any] | None = None,
) -> State:
    """Where the options stand, by what the database needs and what the Job said: pure."""
    state = State()
    told = result or {}
    failed = ended is not None and ended["type"] == "Failed" and told.get("outcome") != Outcome.TRANSIENT
    for plan in plans:
        said = told.get("options", {}).get(plan.option.value, {})
        if not plan.has_work:
            end = finished(plan)
            state.options[plan.option] = end.state
            message = end.message
        elif failed and (not told.get("options") or said.get("state") == OptionState.FAILED):
            state.options[plan.option] = OptionState.FAILED
            state.job = job
            message = said.get("message") or told.get("message") or f"Job {job} failed: {_why(ended)}."
        else:
            state.options[plan.option] = OptionState.APPLYING if plan.wanted else OptionState.REMOVING
            state.job = job
            message = said.get("message")
        if message:
            state.messages[plan.option] = message
    return state


def _why(ended: Mapping[str, Any] | None) -> str:
    return str((ended or {}).get("message") or (ended or {}).get("reason") or "without a result")


def application_indexes(health: IndexHealth) -> IndexHealth:
    """Without our own indexes that aren't complete: the option tells of them, and mends them."""
    return health.model_copy(update={"invalid": tuple(name for name in health.invalid if not is_own(name))})


def removals(before: Mapping[str, Any], after: api.Hardening | None) -> Iterable[str]:
    """In words, the options of an earlier `status.hardening` of which nothing is left."""
    now = after.model_dump(by_alias=True) if after else {}
    for option in Option:
        if before.get(option.value, "Off") != "Off" and now.get(option.value, "Off") == "Off":
            data = ", its columns with what they held" if option == Option.AUDIT_COLUMNS else ""
            yield f"spec.hardening.{option} is off: its objects were removed from the database{data}."
