"""`spec.hardening`: a Job wherever the database isn't as the options want, and where each option stands.

It runs only on a schema that is up to date, and never beside a migration. What can't be had is told, and keeps the
database neither from serving nor from being Ready.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from medianest_operator.api import status as api
from medianest_operator.api.conditions import Condition, Reason
from medianest_operator.api.hardening import Option
from medianest_operator.errors import Permanent
from medianest_operator.hardening.objects import options_digest
from medianest_operator.hardening.plan import OptionPlan, make_plans
from medianest_operator.hardening.run import finished
from medianest_operator.hardening.state import State, read_state_async
from medianest_operator.postgres import logins
from medianest_operator.reconcile import attempts
from medianest_operator.reconcile.attempts import Attempt
from medianest_operator.reconcile.concern import Announcement, Concern, Needs, Outcome, Verdict
from medianest_operator.reconcile.contents.migration import MigrationState
from medianest_operator.reconcile.contents.reading import application_database
from medianest_operator.reconcile.contents.schema import Schema
from medianest_operator.reconcile.context import Run
from medianest_operator.reconcile.instances.servers import Servers
from medianest_operator.resources.hardening_job import hardening_job
from medianest_operator.results.hardening import OptionState
from medianest_operator.results.migration import Outcome as JobOutcome

_READ_EVERY = 60.0
_AGAIN_AFTER = timedelta(minutes=10)
"""How long until what was applied and is gone again is applied once more: somebody else may be at it."""

_PENDING = {OptionState.APPLYING, OptionState.REMOVING}


@dataclass(frozen=True)
class HardeningState:
    """Where the options stand.

    Attributes:
        options: how each option stands; all of them `Off`: there is nothing of ours, and nothing to tell.
        messages: what there is to say of an option that isn't as wanted.
        job: the Job that is at it, or that ended without success.
    """

    options: Mapping[Option, OptionState] = field(default_factory=dict)
    messages: Mapping[Option, str] = field(default_factory=dict)
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
        details = list(dict.fromkeys(self.messages.values()))
        if self.reason == Reason.HARDENING_APPLIED:
            return f"Hardening options applied: {self._of(OptionState.APPLIED)}."
        if self.reason == Reason.HARDENING_FAILED:
            again = f" To try the same options again, delete Job {self.job}." if self.job else ""
            return f"Not applied: {self._of(OptionState.FAILED)}. {' '.join(details)}{again}"
        if self.reason == Reason.HARDENING_WAITING:
            return " ".join(details)
        parts = {"applies": self._of(OptionState.APPLYING), "removes": self._of(OptionState.REMOVING)}
        doing = " and ".join(f"{verb} {names}" for verb, names in parts.items() if names)
        return " ".join([f"{f'Job {self.job}' if self.job else 'A Job'} {doing}.", *details])

    def as_status(self) -> api.Hardening | None:
        """`status.hardening`; absent while there is nothing to tell."""
        if self.is_off:
            return None
        message = " ".join(dict.fromkeys(self.messages.values()))
        options = {option.value: its.value for option, its in self.options.items()}
        return api.Hardening.model_validate({**options, "message": message or None, "job": self.job})

    def _of(self, state: OptionState) -> str:
        return ", ".join(option.value for option, its in self.options.items() if its == state)


async def reconcile(run: Run) -> Outcome:
    """Start a Job where one is needed, and report where the options stand.

    Only on a schema that is up to date, and never beside a migration or a restore, nor on a volume that is full.
    """
    migrated, schema = run.facts.get(MigrationState), run.facts.require(Schema)
    if migrated is None or not migrated.is_up_to_date or migrated.is_running:
        return Outcome()
    if run.facts.require(Servers).reads_only:
        # A volume is nearly full; an index or a column takes room.
        return Outcome()
    return outcome(await _follow(run, schema), run.database.get("status", {}).get("hardening") or {})


def outcome(state: HardeningState, before: Mapping[str, Any]) -> Outcome:
    """What follows for the status. It says nothing about Ready: the application works with or without.

    Args:
        before: `status.hardening` so far.
    """
    verdict = Verdict("True" if state.reason is Reason.HARDENING_APPLIED else "False", state.reason, state.message)
    status = state.as_status()
    return Outcome(
        conditions={Condition.HARDENING_APPLIED: None if state.is_off else verdict},
        status={"hardening": status},
        events=tuple(Announcement("HardeningRemoved", text) for text in removals(before, status)),
    )


async def _follow(run: Run, schema: Schema) -> HardeningState:
    app_role = logins.role_name(run.spec, logins.APP)
    digest = options_digest(run.spec.hardening, app_role, schema.history.version)
    attempt, others = attempts.named(run, run.hardening_jobs, run.names.hardening_job(digest))
    plans = make_plans(run.spec.hardening, app_role, await _observe(run, digest))
    for other in others:
        if other.is_running and not other.is_stranded:
            # One at a time: an earlier one ends first.
            return judge(plans, other.name)
    for other in others:
        await other.discard()
    if attempt is not None and attempt.is_stranded:
        await attempt.discard()
        attempt = None
    if attempt is None and any(plan.has_work for plan in plans):
        wanted = hardening_job(run.names, run.spec, run.job_image, digest, run.owner)
        try:
            attempt = await attempts.start(run, wanted)
        except Permanent as error:
            # The next run tries again; meanwhile nothing else waits for it.
            return judge(plans, result={"message": error.message}, ended={"type": "Failed"})
    if attempt is None:
        return judge(plans)
    state = judge(plans, attempt.name, attempt.result, ended=attempt.end)
    if set(state.options.values()) & _PENDING and _is_due(attempt):
        await attempt.discard()
    return state


async def _observe(run: Run, digest: str) -> State:
    """The operator's own objects, read again after a minute or when a Job ended."""
    primary = run.facts.require(Servers).primary
    if primary is None:
        raise LookupError("the schema was read, but there is no primary")
    ends = json.dumps([[job["metadata"]["uid"], attempts.ended(job) is not None] for job in run.hardening_jobs])
    token = (primary.uid, digest, ends)
    known = run.services.memory.recall(run.key, "hardening", token, _READ_EVERY)
    if isinstance(known, State):
        return known
    async with application_database(run, primary) as connection:
        found = await read_state_async(connection)
    run.services.memory.keep(run.key, "hardening", token, found)
    return found


def _is_due(attempt: Attempt) -> bool:
    """Whether an ended Job makes room for another try: at once where it was the moment's fault, which took the Job
    itself minutes to give up on; later where what it applied is gone."""
    if attempt.is_running or attempt.result.get("outcome") == JobOutcome.TRANSIENT:
        return not attempt.is_running
    return attempt.age > _AGAIN_AFTER


def judge(
    plans: tuple[OptionPlan, ...],
    job: str | None = None,
    result: Mapping[str, Any] | None = None,
    *,
    ended: Mapping[str, Any] | None = None,
) -> HardeningState:
    """Where the options stand, by what the database needs and what the Job said: pure."""
    found = result or {}
    failed = ended is not None and ended["type"] == "Failed" and found.get("outcome") != JobOutcome.TRANSIENT
    options: dict[Option, OptionState] = {}
    messages: dict[Option, str] = {}
    at_it: str | None = None
    for plan in plans:
        said = found.get("options", {}).get(plan.option.value, {})
        if not plan.has_work:
            end = finished(plan)
            options[plan.option] = end.state
            message = end.message
        elif failed and (not found.get("options") or said.get("state") == OptionState.FAILED):
            options[plan.option] = OptionState.FAILED
            at_it = job
            message = said.get("message") or found.get("message") or f"Job {job} failed: {_why(ended)}."
        else:
            options[plan.option] = OptionState.APPLYING if plan.wanted else OptionState.REMOVING
            at_it = job
            message = said.get("message")
        if message:
            messages[plan.option] = message
    return HardeningState(options, messages, at_it)


def _why(ended: Mapping[str, Any] | None) -> str:
    return str((ended or {}).get("message") or (ended or {}).get("reason") or "without a result")


def removals(before: Mapping[str, Any], after: api.Hardening | None) -> Iterable[str]:
    """In words, the options of an earlier `status.hardening` of which nothing is left."""
    now = after.model_dump(by_alias=True) if after else {}
    for option in Option:
        if before.get(option.value, "Off") != "Off" and now.get(option.value, "Off") == "Off":
            data = ", its columns with what they held" if option == Option.AUDIT_COLUMNS else ""
            yield f"spec.hardening.{option} is off: its objects were removed from the database{data}."


CONCERN = Concern("hardening", Needs.SCHEMA, reconcile, conditions=(Condition.HARDENING_APPLIED,), calm=True)
