"""From nothing to Ready, through every size, and away again."""

from __future__ import annotations

import json
import os
import subprocess

import pytest

from e2e.kube import API_VERSION, KIND, Kube, acted_on, condition_of
from environment import NAMESPACE, Environment


def test_empty_spec_becomes_a_migrated_database(kube: Kube) -> None:
    kube.apply({"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": "medianest"}, "spec": {}})
    status = kube.wait_ready("medianest")["status"]
    assert status["schema"]["version"] == "20250905150611_add_password_hash_to_users"
    assert status["indexes"]["critical"] == "6/6"
    assert status["indexes"]["total"] == 33
    assert status["instances"]["summary"] == "1/1"
    assert not condition_of({"status": status}, "Reconciling")
    uri = kube.secret("medianest-app")["uri"]
    tables = "SELECT count(*) FROM pg_tables WHERE schemaname = 'public' AND tablename <> '_prisma_migrations'"
    assert kube.client_sql("medianest-0", uri, tables) == "11"
    assert kube.client_sql("medianest-0", uri, "SHOW shared_buffers") == "256MB"
    assert int(kube.client_sql("medianest-0", uri, "SHOW max_connections")) >= 50
    header, row = kube.kubectl("get", "mndb", "medianest").splitlines()
    assert header.split() == ["NAME", "READY", "STATUS", "PRIMARY", "INSTANCES", "SCHEMA", "LAST-BACKUP", "AGE"]
    assert row.split()[:5] == ["medianest", "True", "Ready", "medianest-0", "1/1"]


def test_roles_can_do_what_they_are_for_and_no_more(kube: Kube) -> None:
    kube.database("db")
    kube.wait_ready("db")
    app, readonly, migrator = (kube.secret(f"db-{role}")["uri"] for role in ("app", "readonly", "migrator"))
    insert = "INSERT INTO users (id, plex_id, email) VALUES ('u1', 'p1', 'ann@example.org') RETURNING id"
    assert kube.client_sql("db-0", app, insert) == "u1"
    assert kube.client_sql("db-0", readonly, "SELECT email FROM users") == "ann@example.org"
    assert "permission denied" in kube.client_sql("db-0", app, "CREATE TABLE t (n int)", check=False)
    assert "must be owner" in kube.client_sql("db-0", app, "DROP TABLE users", check=False)
    assert "permission denied" in kube.client_sql("db-0", readonly, "DELETE FROM users", check=False)
    kube.client_sql("db-0", migrator, "CREATE TABLE extra (n int)")
    owner = "SELECT tableowner FROM pg_tables WHERE tablename = 'extra'"
    assert kube.sql("db-0", owner) == "medianest"
    assert kube.client_sql("db-0", app, "INSERT INTO extra VALUES (1) RETURNING n") == "1"
    plain = app.replace("sslmode=require", "sslmode=disable")
    assert "pg_hba.conf rejects connection" in kube.client_sql("db-0", plain, "SELECT 1", check=False)
    superuser = app.replace("medianest_app", "postgres", 1)
    assert "certificate" in kube.client_sql("db-0", superuser, "SELECT 1", check=False)


def test_scaling_up_and_down_keeps_the_data(kube: Kube) -> None:
    kube.database("db")
    kube.wait_ready("db")
    kube.sql("db-0", "CREATE TABLE kept AS SELECT generate_series(1, 1000) AS n")
    kube.kubectl("scale", "mndb/db", "--replicas=3")
    status = kube.wait_ready("db")["status"]
    assert status["instances"]["summary"] == "3/3"
    # The highest ordinal leads when it has to go: the role moves first.
    command = ("exec", "db-0", "-c", "postgres", "--", "patronictl", "switchover", "--candidate", "db-2", "--force")
    kube.kubectl(*command)
    kube.wait(KIND, "db", lambda db: db["status"]["instances"].get("primary") == "db-2", "led by db-2")  # type: ignore[index]
    kube.wait_ready("db")
    kube.patch("db", {"instances": 1})
    kube.wait_ready("db")
    assert kube.primary("db") == "db-0"
    assert kube.sql("db-0", "SELECT count(*) FROM kept") == "1000"
    assert kube.kubectl("get", "pods", "-l", "app.kubernetes.io/component=postgres", "-o", "name").split() == [
        "pod/db-0"
    ]


def test_deleted_database_is_picked_up_again(kube: Kube) -> None:
    kube.database("db", storage={"size": "1Gi", "onDelete": "Retain"})
    kube.wait_ready("db")
    kube.sql("db-0", "CREATE TABLE kept AS SELECT 42 AS answer")
    old = kube.secret("db-app")["password"]
    kube.kubectl("delete", "mndb", "db", "--timeout=180s")
    kube.wait_gone("StatefulSet", "db")
    kube.wait_gone("Pod", "db-0")
    assert kube.get("PersistentVolumeClaim", "data-db-0") is not None
    kube.database("db", storage={"size": "1Gi", "onDelete": "Retain"})
    kube.wait_ready("db")
    assert kube.sql("db-0", "SELECT answer FROM kept") == "42"
    secret = kube.secret("db-app")
    assert secret["password"] != old
    assert kube.client_sql("db-0", secret["uri"], "SELECT 1") == "1"


def test_volumes_go_with_the_object_where_the_policy_says_so(kube: Kube) -> None:
    kube.database("db")
    kube.wait_ready("db")
    kube.kubectl("delete", "mndb", "db", "--timeout=180s")
    kube.wait_gone("PersistentVolumeClaim", "data-db-0")


def test_volume_grows_while_mounted(kube: Kube) -> None:
    kube.database("db", walStorage={"size": "512Mi"})
    kube.wait_ready("db")
    kube.patch("db", {"storage": {"size": "2Gi"}})
    kube.wait_ready("db")
    claim = kube.get("PersistentVolumeClaim", "data-db-0")
    assert claim is not None
    assert claim["status"]["capacity"]["storage"] == "2Gi"
    stateful_set = kube.get("StatefulSet", "db")
    assert stateful_set is not None
    sizes = [item["spec"]["resources"]["requests"]["storage"] for item in stateful_set["spec"]["volumeClaimTemplates"]]
    assert sizes == ["2Gi", "512Mi"]
    assert kube.get("Pod", "db-0")["status"]["containerStatuses"][0]["restartCount"] == 0  # type: ignore[index]
    assert kube.kubectl("exec", "db-0", "--", "readlink", "/pgdata/pgdata/pg_wal").strip() == "/pgwal/pg_wal"


def test_database_made_again_waits_for_no_leader_of_the_earlier_one(kube: Kube) -> None:
    """Patroni's pods make these objects again while they end, and nobody deletes them then."""
    labels = {
        "app.kubernetes.io/component": "postgres",
        "app.kubernetes.io/managed-by": "medianest-operator",
        "medianest.io/database": "db",
        "medianest.io/patroni-scope": "db-rw",
    }
    lock = {"leader": "db-0", "ttl": "20", "transitions": "0", "renewTime": "2026-01-01T00:00:00.000000+00:00"}
    metadata = {"name": "db-rw", "labels": labels, "annotations": lock | {"acquireTime": lock["renewTime"]}}
    kube.apply({"apiVersion": "v1", "kind": "Endpoints", "metadata": metadata})
    kube.database("db", instances=2)
    kube.wait_ready("db")


def test_kept_volume_leads_when_the_database_is_made_again_with_more_instances(kube: Kube) -> None:
    kube.database("db", storage={"size": "1Gi", "onDelete": "Retain"})
    kube.wait_ready("db")
    kube.sql("db-0", "CREATE TABLE kept AS SELECT generate_series(1, 10)")
    kube.kubectl("delete", "mndb", "db", "--timeout=180s")
    kube.wait_gone("Pod", "db-0")
    kube.database("db", instances=3, storage={"size": "1Gi", "onDelete": "Retain"})
    kube.wait_ready("db")
    assert kube.sql(kube.primary("db"), "SELECT count(*) FROM kept") == "10"


def test_hibernation_stops_the_pods_and_keeps_the_data(kube: Kube) -> None:
    kube.database("db")
    kube.wait_ready("db")
    kube.sql("db-0", "CREATE TABLE kept AS SELECT 42 AS answer")
    kube.patch("db", {"hibernate": True})
    kube.wait_condition("db", "Ready", "False", "Hibernated")
    assert kube.get("Pod", "db-0") is None
    kube.patch("db", {"hibernate": False})
    kube.wait_ready("db")
    assert kube.sql("db-0", "SELECT answer FROM kept") == "42"


def test_paused_database_is_left_alone(kube: Kube) -> None:
    kube.database("db")
    kube.wait_ready("db")
    kube.patch("db", {"paused": True})
    kube.wait_condition("db", "Ready", "Unknown", "Paused")
    kube.patch("db", {"instances": 2})
    kube.wait(KIND, "db", acted_on, "seen")
    assert kube.get("StatefulSet", "db")["spec"]["replicas"] == 1  # type: ignore[index]
    kube.patch("db", {"paused": False})
    assert kube.wait_ready("db")["status"]["instances"]["summary"] == "2/2"


def test_protected_database_is_not_deleted(kube: Kube) -> None:
    kube.database("db", deletionProtection=True)
    answer = kube.kubectl("delete", "mndb", "db", "--timeout=10s", check=False)
    assert "has spec.deletionProtection" in answer
    lift = answer[answer.index("kubectl -n") :].splitlines()[0]
    environment = os.environ | {"KUBECONFIG": str(kube.environment.kubeconfig)}
    subprocess.run(["sh", "-c", lift], env=environment, check=True, capture_output=True)
    kube.kubectl("delete", "mndb", "db", "--timeout=180s")


def test_namespace_deletion_never_hangs(kube: Kube, environment: Environment) -> None:
    kube.database("fine", deletionProtection=True)
    kube.database("broken", image="localhost/no-such-image:1")
    kube.wait_ready("fine")
    kube.wait_condition("broken", "Ready", "False", "ImageUnavailable")
    # The namespace controller looks again after half the pods' grace only, which may be twice.
    environment.kubectl("delete", "namespace", kube.namespace, "--timeout=240s", check=False)
    left = environment.kubectl("get", "namespace", kube.namespace, "--ignore-not-found", "-o", "yaml")
    assert left == "", left + kube.kubectl("get", "pods,jobs,pvc,mndb", "-o", "wide", check=False)
    environment.kubectl("create", "namespace", kube.namespace)


@pytest.mark.alone
def test_reapply_and_restart_write_nothing(kube: Kube, environment: Environment) -> None:
    if environment.local is None:
        pytest.skip("counts requests in the API server's audit log, which only the local cluster opens")
    kube.database("db", instances=2)
    kube.wait_ready("db")
    # The migration's Job ends, and is told of, a moment after the schema is there.
    kube.wait_event("db", "MigrationsApplied")
    pods = kube.kubectl("get", "pods", "-l", "medianest.io/role", "-o", "jsonpath={.items[*].metadata.uid}")
    before = _writes(environment)
    kube.database("db", instances=2)
    environment.kubectl("-n", NAMESPACE, "rollout", "restart", "deployment/medianest-operator")
    environment.kubectl("-n", NAMESPACE, "rollout", "status", "deployment/medianest-operator", "--timeout=240s")
    # A run is verified by a change that it has to answer: the marker's write is the only one.
    kube.patch("db", {"connections": {"poolTimeout": 61}})
    kube.wait_ready("db")
    after = [entry for entry in _writes(environment)[len(before) :] if entry[1] == kube.namespace]
    assert {(resource, name) for _, _, resource, name in after} <= {
        ("medianestdatabases", "db"),
        *(("secrets", f"db-{role}") for role in ("app", "readonly", "migrator", "monitor", "backup")),
    }
    assert pods == kube.kubectl("get", "pods", "-l", "medianest.io/role", "-o", "jsonpath={.items[*].metadata.uid}")


def _writes(environment: Environment) -> list[tuple[str, str, str, str]]:
    """Writes of the operator so far: verb, namespace, resource, name; its Lease not counted."""
    assert environment.local is not None
    found = []
    for line in environment.local.audit_log.read_text().splitlines():
        entry = json.loads(line)
        reference = entry.get("objectRef", {})
        if entry["userAgent"].startswith("medianest-operator/") and reference.get("resource") != "leases":
            found.append(
                (entry["verb"], reference.get("namespace", ""), reference["resource"], reference.get("name", ""))
            )
    return found
