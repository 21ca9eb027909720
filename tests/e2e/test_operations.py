"""Operations as a person asks for them: what is refused, who comes first, a dry run, and what is left of each."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from e2e.backups import account, ask, restore, wait_over, wait_restored
from e2e.kube import API_VERSION, KIND, OPERATION, Kube, Manifest, condition_of
from e2e.specs import BAD_OPERATIONS, GOOD_OPERATIONS
from environment import Environment

PEOPLE = (
    "INSERT INTO users (id, email) VALUES ('u1', 'ann@example.org'), ('u2', 'bob@example.org');"
    "INSERT INTO media_requests (id, user_id, title, media_type) VALUES ('m1', 'u1', 'Dune', 'movie')"
)
PODS = ("pod", "-l", "app.kubernetes.io/component=restore")


def people(kube: Kube, **spec: Any) -> None:
    """A small database with some rows, and a backup of it that was verified."""
    kube.database("db", **spec)
    kube.wait_ready("db")
    kube.sql(kube.primary("db"), PEOPLE)
    ask(kube, "before", verify=True)
    wait_over(kube, "before")


def _apply(environment: Environment, spec: dict[str, Any], *options: str, name: str = "asked") -> str:
    metadata = {"name": name, "namespace": "default"}
    wanted = {"apiVersion": API_VERSION, "kind": OPERATION, "metadata": metadata, "spec": {"database": "none"} | spec}
    arguments = ("apply", *options, "--validate=strict", "-f", "-")
    return environment.kubectl(*arguments, check=False, text=yaml.safe_dump(wanted))


@pytest.mark.parametrize(("spec", "message"), BAD_OPERATIONS, ids=[message for _, message in BAD_OPERATIONS])
def test_bad_operation_is_refused(environment: Environment, spec: dict[str, Any], message: str) -> None:
    answer = _apply(environment, spec, "--dry-run=server")
    assert message in answer
    assert "created" not in answer


@pytest.mark.parametrize("spec", GOOD_OPERATIONS, ids=lambda spec: yaml.safe_dump(spec, default_flow_style=True)[:60])
def test_good_operation_is_accepted(environment: Environment, spec: dict[str, Any]) -> None:
    assert "created (server dry run)" in _apply(environment, spec, "--dry-run=server")


def test_an_operation_never_changes(environment: Environment) -> None:
    """And what nobody named isn't stored, so that `describe` shows what somebody wanted."""
    try:
        assert "created" in _apply(environment, {"restore": {}})
        stored = environment.kubectl("-n", "default", "get", "mnop", "asked", "-o", "jsonpath={.spec}")
        assert stored == '{"database":"none","restore":{}}'
        for change in ({"restore": {"backup": "latest"}}, {"restore": {}, "ttlAfterFinished": "1d"}):
            answer = _apply(environment, change)
            assert "spec can't change: a MediaNestOperation is done once; make another object" in answer
        assert "unchanged" in _apply(environment, {"restore": {}})
    finally:
        environment.kubectl("-n", "default", "delete", "mnop", "asked")


def test_second_restore_waits_for_the_first(kube: Kube) -> None:
    people(kube)
    before = account(kube, "db-0")
    kube.sql("db-0", "DELETE FROM media_requests")
    restore(kube, "first")
    kube.wait(OPERATION, "first", lambda it: phase(it) == "Running", "running")
    restore(kube, "second")
    told = "It waits for MediaNestOperation first, which comes first: one is done at a time."
    kube.wait(OPERATION, "second", lambda it: message(it) == told, "told what it waits for")
    print(kube.kubectl("get", "mnop"))
    first = wait_restored(kube, "first")
    second = wait_restored(kube, "second")
    assert first["finishedAt"] <= second["startedAt"]
    assert first["keptDatabase"] != second["keptDatabase"]
    kube.wait_ready("db")
    assert account(kube, "db-0") == before
    print(kube.kubectl("get", "mnop,mnbk,mndb", "-o", "wide"))
    print(kube.kubectl("describe", "mnop", "first"))
    print(kube.kubectl("describe", "mndb", "db"))
    for name in ("first", "second"):
        found = kube.get(OPERATION, name)
        assert condition_of(found, "Ready")["reason"] == "Restored"
        assert condition_of(found, "Reconciling") == {}
    kube.kubectl("wait", "mnop/first", "--for=condition=Ready", "--timeout=1s")
    kube.wait_event("db", "Restored", times=2)


def test_deleted_in_mid_run_it_changes_nothing(kube: Kube) -> None:
    people(kube)
    kube.sql("db-0", "UPDATE users SET name = 'kept'")
    before = account(kube, "db-0")
    restore(kube, "back")
    kube.kubectl("wait", "--for=create", *PODS, "--timeout=180s")
    kube.kubectl("delete", "mnop", "back")
    kube.wait_ready("db")
    kube.kubectl("wait", "--for=delete", *PODS, "--timeout=90s")
    gone = "SELECT count(*) FROM pg_database WHERE datname LIKE 'medianest_%'"
    kube.kubectl(
        "exec", "db-0", "-c", "postgres", "--", "timeout", "60", "sh", "-c",
        f'until [ "$(psql -XAtqd postgres -c "{gone}")" = 0 ]; do sleep 0.1; done',
    )  # fmt: skip
    assert account(kube, "db-0") == before
    assert kube.all("Job", label_selector="app.kubernetes.io/component=restore") == []
    assert "operation" not in kube.get(KIND, "db")["status"]  # type: ignore[index]


def test_dry_run_says_what_a_restore_would_do(kube: Kube) -> None:
    people(kube)
    kube.sql("db-0", "DELETE FROM media_requests; INSERT INTO users (id, email) VALUES ('u3', 'cy@example.org')")
    before = account(kube, "db-0")
    # Statistics reach the others when a session ends.
    counted = "SELECT sum(n_tup_ins) FROM pg_stat_user_tables WHERE relname = 'users'"
    kube.kubectl(
        "exec", "db-0", "-c", "postgres", "--", "timeout", "60", "sh", "-c",
        f'until [ "$(psql -XAtqd medianest -c "{counted}")" = 3 ]; do sleep 0.1; done',
    )  # fmt: skip
    restore(kube, "look", dryRun=True)
    found = wait_restored(kube, "look")
    print(kube.kubectl("get", "mnop"))
    print(kube.kubectl("describe", "mnop", "look"))
    estimate = found["estimate"]
    taken = kube.get("MediaNestBackup", "before")["status"]  # type: ignore[index]
    assert (estimate["backup"], estimate["bytes"]) == (taken["backup"], taken["bytes"])
    assert (estimate["verified"], estimate["fits"]) == (True, True)
    assert estimate["seconds"] > 0
    assert estimate["lost"] == [{"table": "users", "rows": 1}]
    told = found["message"]
    assert told.startswith(f"It would take backup {taken['backup']} of 20")
    assert "verified by a test restore. An estimate of what would be lost, by the server's statistics: 1 row" in told
    assert "Rows that the database has lost since would come back: 1 of media_requests." in told
    assert told.endswith("s, as the newest verification did. It fits into the volume.")
    assert account(kube, "db-0") == before
    assert kube.sql("db-0", "SELECT count(*) FROM pg_database WHERE datname LIKE 'medianest_%'", "postgres") == "0"
    restore(kube, "too-early", dryRun=True, targetTime="2020-01-01T00:00:00Z")
    assert "A restore can't be done" in wait_restored(kube, "too-early", "Failed")["message"]


def test_the_last_backup_before_a_moment(kube: Kube) -> None:
    people(kube)
    first = kube.get("MediaNestBackup", "before")["status"]  # type: ignore[index]
    kube.sql("db-0", "DELETE FROM media_requests")
    ask(kube, "after")
    wait_over(kube, "after")
    restore(kube, "back", targetTime=first["finishedAt"])
    assert wait_restored(kube, "back")["backup"] == first["backup"]
    assert kube.sql("db-0", "SELECT title FROM media_requests") == "Dune"


def test_an_operation_goes_when_it_has_had_its_time(kube: Kube) -> None:
    """Its database needn't be there."""
    kube.apply({
        "apiVersion": API_VERSION, "kind": OPERATION, "metadata": {"name": "old"},
        "spec": {"database": "none", "ttlAfterFinished": "2d", "restore": {}},
    })  # fmt: skip
    told = "There is no MediaNestDatabase none in this namespace."
    kube.wait(OPERATION, "old", lambda it: message(it) == told, "told what it waits for")
    over = {"status": {"phase": "Failed", "finishedAt": "2026-01-01T00:00:00Z"}}
    patch = ("patch", "mnop", "old", "--subresource=status", "--type=merge", "-p", yaml.safe_dump(over))
    kube.kubectl(*patch)
    kube.wait_gone(OPERATION, "old")


def phase(operation: Manifest | None) -> str:
    return str(((operation or {}).get("status") or {}).get("phase", ""))


def message(operation: Manifest | None) -> str:
    return str(((operation or {}).get("status") or {}).get("message", ""))
