"""`spec.hardening` without a server: what the options want, where they stand, what the status tells."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medianest_operator.api.database import DatabaseSpec
from medianest_operator.api.hardening import Hardening, Option
from medianest_operator.hardening.fingerprint import without_hardening
from medianest_operator.hardening.naming import MARK, PREFIX
from medianest_operator.hardening.objects import BODIES, RECOMMENDED_INDEXES, options_digest, own_objects
from medianest_operator.hardening.plan import OptionPlan, make_plans
from medianest_operator.hardening.state import LiveObject, State
from medianest_operator.naming import Names
from medianest_operator.postgres.catalog import Catalog, CatalogObject
from medianest_operator.reconcile.conditions import Report
from medianest_operator.reconcile.contents import hardening
from medianest_operator.resources.hardening_job import hardening_job
from medianest_operator.results.hardening import HardeningResult, OptionResult, OptionState, Reason
from medianest_operator.results.migration import Outcome
from unit.reports import CONCERNS, MIGRATED, SERVING, announced, announcements, build, conditions

ALL = Hardening.model_validate(
    {
        "recommendedIndexes": True,
        "checkConstraints": {"enabled": True},
        "auditColumns": True,
        "rowLevelSecurity": True,
    }
)
NOTHING = State(frozenset(), {})
COLUMNS = frozenset(need for item in own_objects(ALL, "app") for need in item.needs)


def plans(options: Hardening, state: State) -> dict[Option, OptionPlan]:
    return {plan.option: plan for plan in make_plans(options, "app", state)}


# What the options want.


def test_everything_is_off_by_default() -> None:
    assert own_objects(DatabaseSpec().hardening, "app") == ()
    assert not any(plan.has_work or plan.waiting for plan in make_plans(Hardening(), "app", NOTHING))


def test_the_nine_indexes_are_new_ones() -> None:
    assert len(RECOMMENDED_INDEXES) == len(set(RECOMMENDED_INDEXES)) == 9
    names = [item.name for item in own_objects(ALL, "app") if item.kind == "index"]
    assert all(name.startswith(PREFIX) and len(name) <= 63 for name in names)


def test_nothing_is_done_before_the_tables_are_there() -> None:
    for plan in make_plans(ALL, "app", NOTHING):
        assert plan.waiting
        assert not plan.has_work


def test_values_are_quoted() -> None:
    options = Hardening.model_validate({"checkConstraints": {"enabled": True, "userRoles": ["o'neill", "a\\b", "ü"]}})
    role = next(item for item in own_objects(options, "app") if item.name == "hardening_users_role_check")
    text = role.create[0].as_string()
    assert "'o''neill'" in text
    assert "E'a\\\\b'" in text
    assert "'ü'" in text


def test_a_changed_value_changes_the_comment_and_the_job() -> None:
    other = Hardening.model_validate({"checkConstraints": {"enabled": True, "userRoles": ["user"]}})
    comments = [
        {item.comment for item in own_objects(options, "app") if item.kind == "constraint"} for options in (ALL, other)
    ]
    assert len(comments[0] & comments[1]) == 3
    assert options_digest(ALL, "app", "v1") != options_digest(other, "app", "v1")
    assert options_digest(ALL, "app", "v1") != options_digest(ALL, "app", "v2")
    assert options_digest(ALL, "app", "v1") == options_digest(ALL, "app", "v1")


def test_an_invalid_index_is_dropped_and_built_again() -> None:
    name = "hardening_users_role_idx"
    left = LiveObject("index", "users", name, None, complete=False, detail="role")
    steps = plans(ALL, State(COLUMNS, {left.key: left}))[Option.RECOMMENDED_INDEXES].steps
    statements = [statement.as_string() for step in steps for statement in step.statements if name in step.words]
    assert statements[0] == f'DROP INDEX CONCURRENTLY IF EXISTS "public"."{name}"'
    assert statements[1] == f'CREATE INDEX CONCURRENTLY "{name}" ON "public"."users" ("role")'
    assert "IF NOT EXISTS" not in "".join(statements)


def test_an_index_that_only_lacks_its_comment_is_kept() -> None:
    whole = LiveObject("index", "users", "hardening_users_role_idx", None, complete=True, detail="role")
    steps = plans(ALL, State(COLUMNS, {whole.key: whole}))[Option.RECOMMENDED_INDEXES].steps
    assert [step.words for step in steps if whole.name in step.words] == [f"comment on index {whole.name}"]


def test_a_run_is_planned_until_nothing_is_left_and_reverted_when_off() -> None:
    objects = {}
    for item in own_objects(ALL, "app"):
        detail = next(iter(item.needs))[1] if item.kind == "index" else None
        if item.kind == "function":
            detail = BODIES[item.name]
        objects[item.key] = LiveObject(item.kind, item.table, item.name, item.comment, True, detail)
    tables = frozenset(item.table for item in objects.values() if item.kind == "policy")
    state = State(COLUMNS, objects, tables)
    assert not any(plan.has_work for plan in make_plans(ALL, "app", state))
    gone = " ".join(
        statement.as_string()
        for plan in make_plans(Hardening(), "app", state)
        for step in plan.steps
        for statement in step.statements
    )
    assert gone.count("DROP ") == len(objects)
    assert gone.count("DISABLE ROW LEVEL SECURITY") == len(tables)


# The Job.


def test_a_value_is_never_taken_for_a_variable_of_kubernetes() -> None:
    wanted = Hardening.model_validate({"checkConstraints": {"enabled": True, "userRoles": ["$(PGPASSWORD)", "$$"]}})
    job = hardening_job(Names("ns", "db"), DatabaseSpec(hardening=wanted), "image", "0123456789", {})
    (command,) = [container["command"] for container in job["spec"]["template"]["spec"]["containers"]]
    text = command[command.index("--options") + 1]
    assert "$(" not in text.replace("$$", "")
    assert Hardening.model_validate_json(text.replace("$$", "$")) == wanted
    assert job["metadata"]["name"] == "db-harden-01234567"


def test_the_job_leaves_a_lost_node_after_ten_seconds() -> None:
    own = {"key": "disk", "operator": "Equal", "value": "fast", "effect": "NoSchedule"}
    spec = DatabaseSpec.model_validate({"scheduling": {"tolerations": [own]}})
    job = hardening_job(Names("ns", "db"), spec, "image", "0123456789", {})
    tolerations = job["spec"]["template"]["spec"]["tolerations"]
    assert own in tolerations
    seconds = {item["key"]: item["tolerationSeconds"] for item in tolerations if item["effect"] == "NoExecute"}
    assert seconds == {"node.kubernetes.io/unreachable": 10, "node.kubernetes.io/not-ready": 10}


@given(st.text(max_size=4000), st.text(max_size=4000))
def test_a_result_fits_a_termination_message(message: str, other: str) -> None:
    option = OptionResult(state=OptionState.FAILED, reason=Reason.STATEMENT_FAILED, message=other)
    whole = HardeningResult.of(Reason.STATEMENT_FAILED, message, options=dict.fromkeys(Option, option))
    text = whole.to_json()
    assert len(text.encode()) <= 4096
    read = HardeningResult.model_validate_json(text)
    assert (read.outcome, {item.state for item in read.options.values()}) == (Outcome.FAILED, {OptionState.FAILED})


@pytest.mark.parametrize(
    "bad",
    [
        {"userRoles": []},
        {"userRoles": ["x" * 51]},
        {"mediaTypes": [""]},
        {"userStatuses": ["a\nb"]},
        {"enabled": "maybe"},
    ],
)
def test_values_that_are_none_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(pydantic.ValidationError):
        Hardening.model_validate({"checkConstraints": bad})


# Where the options stand.

WORK = {"type": "Complete"}
ENDED_BADLY = {"type": "Failed", "message": "Job has reached the specified backoff limit"}
ROWS = "1 row breaks hardening_users_role_check: users.role holds 'root' (1)."


def only_constraints() -> tuple[OptionPlan, ...]:
    return make_plans(Hardening.model_validate({"checkConstraints": {"enabled": True}}), "app", State(COLUMNS, {}))


def failed_job() -> dict[str, Any]:
    result = OptionResult(state=OptionState.FAILED, reason=Reason.ROWS_BREAK_CONSTRAINTS, message=ROWS)
    whole = HardeningResult.of(Reason.ROWS_BREAK_CONSTRAINTS, ROWS, options={Option.CHECK_CONSTRAINTS: result})
    parsed: dict[str, Any] = json.loads(whole.to_json())
    return parsed


def reported(state: hardening.HardeningState, before: dict[str, Any] | None = None) -> Report:
    return Report(CONCERNS["hardening"], hardening.outcome(state, (before or {}).get("hardening", {})))


def test_a_running_job_applies() -> None:
    state = hardening.judge(only_constraints(), "db-harden-1")
    assert (state.reason, state.message) == ("HardeningApplying", "Job db-harden-1 applies checkConstraints.")


def test_rows_that_break_a_constraint_are_told_and_how_to_try_again() -> None:
    state = hardening.judge(only_constraints(), "db-harden-1", failed_job(), ended=ENDED_BADLY)
    assert state.reason == "HardeningFailed"
    assert state.message == (
        f"Not applied: checkConstraints. {ROWS} To try the same options again, delete Job db-harden-1."
    )


def test_a_job_that_says_nothing_failed_too() -> None:
    state = hardening.judge(only_constraints(), "db-harden-1", {}, ended=ENDED_BADLY)
    assert state.options[Option.CHECK_CONSTRAINTS] == "Failed"
    assert "Job has reached the specified backoff limit" in state.message


def test_a_job_that_is_refused_is_told_and_names_no_job() -> None:
    refused = {"message": "Job db-harden-1: exceeded quota: pods=0"}
    state = hardening.judge(only_constraints(), result=refused, ended={"type": "Failed"})
    assert (state.reason, state.job) == ("HardeningFailed", None)
    assert state.message == "Not applied: checkConstraints. Job db-harden-1: exceeded quota: pods=0"


def test_the_moments_fault_is_no_failure() -> None:
    locked = json.loads(HardeningResult.of(Reason.LOCK_NOT_GRANTED, "A migration run holds the lock.").to_json())
    state = hardening.judge(only_constraints(), "db-harden-1", locked, ended=ENDED_BADLY)
    assert state.reason == "HardeningApplying"


def test_ready_stays_true_while_hardening_fails() -> None:
    failed = hardening.judge(only_constraints(), "db-harden-1", failed_job(), ended=ENDED_BADLY)
    built = build(SERVING, MIGRATED, reported(failed))
    assert conditions(built)["Ready"] == ("True", "Ready")
    assert conditions(built)["HardeningApplied"] == ("False", "HardeningFailed")
    assert built["hardening"]["checkConstraints"] == "Failed"
    assert built["hardening"]["auditColumns"] == "Off"
    assert ROWS in built["hardening"]["message"]
    assert ("Warning", "HardeningFailed") in announced(build(SERVING, MIGRATED), SERVING, MIGRATED, reported(failed))


def test_what_is_off_is_not_told_and_its_removal_is_once() -> None:
    columns = Hardening(audit_columns=True)
    state = State(
        COLUMNS, {item.key: LiveObject(item.kind, item.table, item.name) for item in own_objects(columns, "app")}
    )
    removing = hardening.judge(make_plans(Hardening(), "app", state), "db-harden-2")
    assert removing.message == "Job db-harden-2 removes auditColumns."
    off = hardening.judge(make_plans(Hardening(), "app", NOTHING))
    before = build(SERVING, MIGRATED, reported(removing))
    gone = (SERVING, MIGRATED, reported(off, before))
    after = build(*gone, previous=before)
    assert "hardening" not in after
    assert "HardeningApplied" not in conditions(after)
    assert announced(before, *gone) == [("Normal", "HardeningRemoved")]
    assert announced(after, SERVING, MIGRATED, reported(off, after)) == []
    text = [item.message for item in announcements(before, *gone)]
    assert "its columns with what they held" in text[0]


def test_what_was_not_seen_is_kept() -> None:
    failed = hardening.judge(only_constraints(), "db-harden-1", failed_job(), ended=ENDED_BADLY)
    before = build(SERVING, MIGRATED, reported(failed))
    unasked = Report(CONCERNS["hardening"])
    assert build(SERVING, MIGRATED, unasked, previous=before, now=datetime(2027, 1, 1, tzinfo=UTC)) == before


# The fingerprint.


def catalog(*items: CatalogObject) -> Catalog:
    return Catalog({item.key: item for item in items})


def test_columns_are_counted_anew_where_ours_stood_between() -> None:
    names = ("id", "hardening_updated_at", "email")
    before = catalog(*(CatalogObject("column", "users", name, {"position": at}) for at, name in enumerate(names, 1)))
    after = without_hardening(before)
    assert {item.name: item.attributes["position"] for item in after.of_kind("column")} == {"id": 1, "email": 2}


def test_names_that_only_look_alike_stay() -> None:
    others = catalog(
        CatalogObject("table", "", "hardening_plans", {"row_security": True}),
        CatalogObject("column", "users", "my_hardening_note", {"position": 1}),
        CatalogObject("function", "", "current_user_id()", {"definition": "SELECT 'eve'"}),
        CatalogObject("grants", "", "function current_user_id()", {"rights": ["public: EXECUTE"]}),
        CatalogObject("comment", "", "function public.current_user_id()", {"text": f"{MARK}rowLevelSecurity"}),
    )
    kept = without_hardening(others)
    assert [key for key in others.objects if key not in kept.objects] == [
        ("comment", "", "function public.current_user_id()")
    ]
