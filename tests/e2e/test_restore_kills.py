"""The operator is killed while it restores in place under a writer: each restore is done once, and no write is lost."""

from __future__ import annotations

import json

import pytest
from render import NAMESPACE

from e2e.backups import ask, restore, wait_over, wait_restored
from e2e.kube import OPERATION, Kube
from e2e.workload import Writer
from environment import Environment

pytestmark = pytest.mark.alone

JOB = ("job", "-l", "app.kubernetes.io/component=restore")
MOMENTS = ("asked", "begun", "filling", "verified", "cut over")


def kill_operator(environment: Environment) -> None:
    """Both replicas, at once."""
    pods = ("delete", "pod", "-l", "app.kubernetes.io/name=medianest-operator")
    environment.kubectl("-n", NAMESPACE, *pods, "--grace-period=0", "--force", "--wait=false")


def await_moment(kube: Kube, name: str, moment: str) -> None:
    """Until a restore has come so far."""
    if moment == "asked":
        return
    if moment == "cut over":
        kept = "SELECT count(*) FROM medianest_operator.database_marks WHERE mark->>'request' = '{}'"
        uid = kube.kubectl("get", "mnop", name, "-o", "jsonpath={.metadata.uid}")
        there = f'until [ "$(psql -XAtqd postgres -c "{kept.format(uid)}")" = 2 ]; do sleep 0.02; done'
        kube.kubectl("exec", "db-0", "-c", "postgres", "--", "timeout", "120", "sh", "-c", there)
        return
    begun = kube.wait(OPERATION, name, lambda it: "job" in (it or {}).get("status", {}), "begun")
    job = f"job/{begun['status']['job']}"
    if moment == "filling":
        kube.kubectl("wait", job, "--for=jsonpath={.status.ready}=1", "--timeout=60s", check=False)
    if moment == "verified":
        kube.kubectl("wait", job, "--for=condition=Complete", "--timeout=120s")


@pytest.mark.timeout(900)
def test_killed_at_any_moment_a_restore_is_done_once_and_loses_no_write(kube: Kube, environment: Environment) -> None:
    kube.database("db")
    kube.wait_ready("db")
    writer = Writer(kube, "db", seconds=850)
    ask(kube, "before", verify=True)
    backup = wait_over(kube, "before")["backup"]
    kept = []
    for moment in MOMENTS:
        name = f"at-{moment.replace(' ', '-')}"
        restore(kube, name, backup=backup)
        await_moment(kube, name, moment)
        kill_operator(environment)
        status = wait_restored(kube, name, seconds=300)
        assert status["backup"] == backup
        kept.append(status["keptDatabase"])
        print(f"{moment}: {status['message']}")
    # Once each.
    assert len(set(kept)) == len(MOMENTS)
    there = kube.sql("db-0", "SELECT datname FROM pg_database WHERE datname LIKE 'medianest%' ORDER BY 1", "postgres")
    assert there.split() == sorted(["medianest", *kept])
    writer.stop()
    account = writer.settle()
    print(kube.kubectl("get", "mnop"))
    acknowledged = set(json.loads(kube.kubectl("logs", "writer").strip().splitlines()[-1])["acknowledged"])
    assert account.acknowledged > 100
    have = {int(row) for row in kube.sql("db-0", "SELECT n FROM writes").split()}
    for database in kept:
        kube.sql("db-0", f'ALTER DATABASE "{database}" ALLOW_CONNECTIONS true', "postgres")
        have |= {int(row) for row in kube.sql("db-0", "SELECT n FROM writes", database).split()}
    assert acknowledged - have == set()
