"""Kill -9 at random moments of a run: the Job's pod, the operator, the primary. Each is applied or rolled back."""

from __future__ import annotations

import os
import random
import time
from collections import Counter

import pytest
from render import NAMESPACE

from e2e.kube import KIND, Kube, Manifest, condition_of
from e2e.schemas import bundled, people
from e2e.workload import Writer
from environment import Environment

pytestmark = pytest.mark.alone

ROUNDS = int(os.environ.get("MEDIANEST_KILLS", "6"))
VICTIMS = ("job", "operator", "primary")


def files_of(round_: int, good: bool) -> dict[str, str]:
    """Three files, the middle one outside of any transaction; a bad last one fails once all else is done."""
    start = f"202601{round_ // 24 + 1:02}{round_ % 24:02}"
    table = f"round_{round_}"
    return {
        f"{start}0000_table.sql": f"CREATE TABLE {table} (id int, name text); ALTER TABLE users ADD {table} text;",
        f"{start}0100_index.sql": f"CREATE INDEX CONCURRENTLY {table}_idx ON {table} (name);",
        f"{start}0200_last.sql": f"SELECT pg_sleep(1); COMMENT ON TABLE {table} IS 'done'; SELECT 1/{int(good)};",
    }


def kill(kube: Kube, environment: Environment, victim: str, earlier: set[str]) -> str:
    """Kill one of the three at once; returns what it was."""
    if victim == "operator":
        holder = "jsonpath={.spec.holderIdentity}"
        name = environment.kubectl("-n", NAMESPACE, "get", "lease", "medianest-operator", "-o", holder)
        environment.kubectl("-n", NAMESPACE, "delete", "pod", name, "--grace-period=0", "--force", check=False)
        return name
    if victim == "primary":
        name = kube.primary("db")
    else:
        name = next(iter(job_pods(kube) - earlier), "")
        if not name:
            return "nothing: the Job had no pod"
    kube.kubectl("delete", "pod", name, "--grace-period=0", "--force", check=False)
    return name


def job_pods(kube: Kube) -> set[str]:
    names = {pod["metadata"]["name"] for pod in kube.all("Pod")}
    return {name for name in names if name.startswith("db-migrate-")}


def wait_for_moment(kube: Kube, earlier: set[str], good: bool, moments: random.Random) -> str:
    """Until a random moment, or one at which the run has done something that a kill must not leave half told.

    Args:
        earlier: the pods of runs before.
    """
    said = moments.choice(["", "applied 2026"] if good else ["", "applied 2026", "reverting: ", "reverting by "])
    if not said:
        time.sleep(moments.uniform(0.5, 6.0))
        return "a random moment"
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if any(said in kube.kubectl("logs", name, "-c", "migrate", check=False) for name in job_pods(kube) - earlier):
            break
        time.sleep(0.05)
    return f"{said!r}"


def acted_on(database: Manifest | None, digest_before: str) -> bool:
    """The run of the new source has ended, one way or the other."""
    schema = condition_of(database, "SchemaUpToDate")
    run = (database or {}).get("status", {}).get("schema", {}).get("lastRun", {})
    ended = run.get("outcome") in {"Applied", "Failed"} and run.get("digest") != digest_before
    # The writer's table is no migration's: an applied schema is told as drifted.
    return ended and schema.get("reason") in {"UpToDate", "Drifted", "MigrationRolledBack", "RollbackUnverified"}


@pytest.mark.timeout(300 + ROUNDS * 240)
def test_whatever_is_killed_a_run_ends_applied_or_reverted(kube: Kube, environment: Environment) -> None:
    seed = int(os.environ.get("MEDIANEST_SEED", random.randrange(10**6)))
    print(f"MEDIANEST_SEED={seed}")
    moments = random.Random(seed)
    people(kube, instances=2, postgresql={"synchronous": "Required"})
    writer = Writer(kube, "db", seconds=300 + ROUNDS * 240)
    data = bundled()
    outcomes: Counter[str] = Counter()
    for round_ in range(ROUNDS):
        victim, good = VICTIMS[round_ % 3], moments.random() < 0.6
        digest = kube.get(KIND, "db")["status"]["schema"]["lastRun"]["digest"]  # type: ignore[index]
        earlier = job_pods(kube)
        wanted = data | files_of(round_, good)
        kube.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "source"}, "data": wanted})
        kube.patch("db", {"migrations": {"source": {"configMap": {"name": "source"}}, "rehearse": "Never"}})
        moment = wait_for_moment(kube, earlier, good, moments)
        killed = kill(kube, environment, victim, earlier)
        status = kube.wait(KIND, "db", lambda db, known=digest: acted_on(db, known), "at a run's end", 240)["status"]  # type: ignore[misc]
        run = status["schema"]["lastRun"]
        outcomes["applied" if run["outcome"] == "Applied" else "rolled back and verified"] += 1
        print(f"round {round_}: at {moment} killed {killed}, {run['outcome']} {run.get('reason')}")
        primary = kube.primary("db")
        table = kube.sql(
            primary, f"SELECT count(*) FROM pg_class WHERE relname IN ('round_{round_}', 'round_{round_}_idx')"
        )
        column = kube.sql(primary, f"SELECT count(*) FROM pg_attribute WHERE attname = 'round_{round_}'")
        assert (table, column) == (("2", "1") if good else ("0", "0"))
        assert (run["outcome"], run.get("rollback", {}).get("verified")) == (
            ("Applied", None) if good else ("Failed", True)
        )
        if good:
            data = wanted
    print(f"{ROUNDS} kills: {dict(outcomes)}")
    writer.stop()
    account = writer.settle()
    print(f"writes: {account}")
    assert account.acknowledged > 20 * ROUNDS
    assert account.lost == 0
