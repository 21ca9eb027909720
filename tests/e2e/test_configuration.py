"""Changes of a running database, and the ways in which they can be wrong."""

from __future__ import annotations

import base64
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from e2e.kube import KIND, Kube, condition_of
from medianest_operator.postgres import certificates


def _restarts(kube: Kube, pod: str) -> tuple[str, int]:
    found = kube.get("Pod", pod)
    assert found is not None
    return found["metadata"]["uid"], found["status"]["containerStatuses"][0]["restartCount"]


def _source(kube: Kube, name: str, **migrations: str) -> None:
    kube.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": migrations})


def test_parameters_are_reloaded_or_restarted_in_order(kube: Kube) -> None:
    kube.database("db", instances=2, postgresql={"parameters": {"work_mem": "7MB"}})
    kube.wait_ready("db")
    primary, pods = kube.primary("db"), {pod: _restarts(kube, pod) for pod in ("db-0", "db-1")}
    started = "SELECT pg_postmaster_start_time()"
    before = kube.sql(primary, started)
    assert kube.sql(primary, "SHOW work_mem") == "7MB"
    kube.patch("db", {"postgresql": {"parameters": {"work_mem": "9MB"}}})
    kube.wait_ready("db")
    assert {kube.sql(pod, "SHOW work_mem") for pod in pods} == {"9MB"}
    assert kube.sql(primary, started) == before
    kube.patch("db", {"connections": {"max": 120}})
    kube.wait_condition("db", "Ready", "False", "Restarting")
    kube.wait_ready("db")
    for pod in pods:
        assert kube.sql(pod, "SHOW max_connections") == "120"
        assert kube.sql(pod, "SELECT count(*) FROM pg_settings WHERE pending_restart") == "0"
    assert pods == {pod: _restarts(kube, pod) for pod in pods}
    assert "PrimaryChanged" in kube.reasons("db")


def test_wrong_parameter_is_named_and_harms_nothing(kube: Kube) -> None:
    kube.database("db")
    kube.wait_ready("db")
    kube.patch("db", {"postgresql": {"parameters": {"work_mem": "8 bananas"}}})
    stalled = kube.wait_condition("db", "Stalled", "True", "InvalidParameter")
    assert 'postgresql.parameters.work_mem: "8 bananas" has the unknown unit bananas' in stalled["message"]
    assert condition_of(kube.get(KIND, "db"), "Available")["status"] == "True"
    assert kube.sql("db-0", "SELECT 1") == "1"
    kube.kubectl("patch", "mndb", "db", "--type=json", "-p", '[{"op":"remove","path":"/spec/postgresql/parameters"}]')
    kube.wait_ready("db")


def test_more_memory_replaces_the_pods_in_order(kube: Kube) -> None:
    kube.database("db", instances=2)
    kube.wait_ready("db")
    before = {pod: _restarts(kube, pod)[0] for pod in ("db-0", "db-1")}
    kube.patch("db", {"resources": {"limits": {"memory": "640Mi"}}})
    kube.wait_ready("db")
    after = {pod: _restarts(kube, pod)[0] for pod in before}
    assert all(before[pod] != after[pod] for pod in before)
    assert kube.sql(kube.primary("db"), "SHOW shared_buffers") == "160MB"


def test_passwords_follow_their_secret(kube: Kube) -> None:
    kube.database("db")
    kube.wait_ready("db")
    old = kube.secret("db-app")["uri"]
    chosen = base64.b64encode(b"chosen by a person: %s/@").decode()
    kube.kubectl("patch", "secret", "db-app", "--type=merge", "-p", f'{{"data":{{"password":"{chosen}"}}}}')

    def carries_it(secret: dict[str, Any] | None) -> bool:
        uri = base64.b64decode(secret["data"]["uri"]).decode() if secret else ""
        return "chosen%20by%20a%20person%3A%20%25s%2F%40" in uri

    kube.wait("Secret", "db-app", carries_it, "rewritten with the new password")
    new = kube.secret("db-app")["uri"]
    kube.kubectl("exec", "db-0", "--", "sh", "-c", f"until psql -XAtq '{new}' -c 'SELECT 1'; do sleep 0.2; done")
    assert "password authentication failed" in kube.client_sql("db-0", old, "SELECT 1", check=False)
    uid = kube.get("Secret", "db-app")["metadata"]["uid"]  # type: ignore[index]
    kube.kubectl("delete", "secret", "db-app")

    def made_anew(secret: dict[str, Any] | None) -> bool:
        return secret is not None and secret["metadata"]["uid"] != uid

    kube.wait("Secret", "db-app", made_anew, "made anew")
    newest = kube.secret("db-app")["uri"]
    kube.kubectl("exec", "db-0", "--", "sh", "-c", f"until psql -XAtq '{newest}' -c 'SELECT 1'; do sleep 0.2; done")
    assert "password authentication failed" in kube.client_sql("db-0", new, "SELECT 1", check=False)


def test_certificates_are_renewed_under_open_connections(kube: Kube) -> None:
    kube.database("db")
    kube.wait_ready("db")
    served = (
        "echo | openssl s_client -starttls postgres -connect localhost:5432 2>/dev/null | openssl x509 -noout -serial"
    )
    old = kube.kubectl("exec", "db-0", "--", "sh", "-c", served)
    uri = kube.secret("db-app")["uri"]
    # One session that lives through the renewal.
    with kube.session("db-0", uri) as ask:
        assert ask("SELECT 'before'") == "before"
        kube.patch("db", {"tls": {"duration": "1h", "renewBefore": "30m"}})
        changed = f'until [ "$({served})" != \'{old.strip()}\' ] && [ -n "$({served})" ]; do sleep 1; done'
        kube.kubectl("exec", "db-0", "--", "timeout", "120", "sh", "-c", changed)
        assert ask("SELECT 'still here'") == "still here"
    assert _restarts(kube, "db-0")[1] == 0
    assert "CertificateRenewed" in kube.reasons("db")
    kube.wait_ready("db")


def test_broken_image_is_told_and_mended(kube: Kube) -> None:
    kube.database("db", image="localhost/no-such-image:1")
    condition = kube.wait_condition("db", "Ready", "False", "ImageUnavailable")
    assert "localhost/no-such-image:1" in condition["message"]
    assert "Check spec.image" in condition["message"]
    kube.kubectl("patch", "mndb", "db", "--type=json", "-p", '[{"op":"remove","path":"/spec/image"}]')
    kube.wait_ready("db")


def test_unschedulable_pod_is_told(kube: Kube) -> None:
    kube.database("db", scheduling={"nodeSelector": {"disk": "unobtainium"}})
    condition = kube.wait_condition("db", "Ready", "False", "Unschedulable")
    assert "node affinity/selector" in condition["message"]
    kube.patch("db", {"scheduling": {"nodeSelector": {"disk": None}}})
    kube.wait_ready("db")


def test_full_quota_is_told(kube: Kube) -> None:
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "small"}}
    kube.apply(quota | {"spec": {"hard": {"requests.memory": "100Mi", "limits.memory": "100Mi"}}})
    kube.database("db")
    condition = kube.wait_condition("db", "Ready", "False", "QuotaExceeded")
    assert "exceeded quota: small" in condition["message"]
    kube.kubectl("delete", "resourcequota", "small")
    kube.wait_ready("db", seconds=240)


def test_bad_migration_says_which_statement_and_recovers(kube: Kube) -> None:
    _source(
        kube,
        "bad",
        **{
            "20260101000000_start.sql": "CREATE TABLE films (id int PRIMARY KEY, title text);",
            "20260102000000_unique.sql": (
                "INSERT INTO films VALUES (1, 'Dune'), (2, 'Dune');\nALTER TABLE films ADD COLUMN year int;\n"
                "CREATE UNIQUE INDEX films_title ON films (title);"
            ),
        },
    )
    kube.database("db", migrations={"source": {"configMap": {"name": "bad"}}})
    stalled = kube.wait_condition("db", "Stalled", "True", "MigrationRolledBack")
    assert "20260102000000_unique" in stalled["message"]
    assert "Statement 3 (line 3)" in stalled["message"]
    assert "(title)=(Dune) is duplicated" in stalled["message"]
    assert condition_of(kube.get(KIND, "db"), "Available")["status"] == "True"
    # The run is one: what its first migration made is rolled back as well.
    assert kube.sql("db-0", "SELECT to_regclass('films') IS NULL") == "t"
    failed = kube.get(KIND, "db")["status"]["schema"]["lastRun"]["failed"]  # type: ignore[index]
    assert (failed["statement"], failed["sqlstate"]) == (3, "23505")
    _source(
        kube,
        "good",
        **{
            "20260101000000_start.sql": "CREATE TABLE films (id int PRIMARY KEY, title text);",
            "20260102000000_unique.sql": "ALTER TABLE films ADD COLUMN year int;",
        },
    )
    kube.patch("db", {"migrations": {"source": {"configMap": {"name": "good"}}}})
    status = kube.wait_ready("db")["status"]
    assert status["schema"]["version"] == "20260102000000_unique"
    assert not condition_of({"status": status}, "Stalled")


@pytest.mark.parametrize(
    ("data", "message"),
    [(None, "there is no ConfigMap missing"), ({"readme.txt": "hello"}, "migrations.source.configMap")],
    ids=["absent", "no-migration"],
)
def test_unusable_source_is_told(kube: Kube, data: dict[str, str] | None, message: str) -> None:
    if data:
        _source(kube, "missing", **data)
    kube.database("db", migrations={"source": {"configMap": {"name": "missing"}}})
    stalled = kube.wait_condition("db", "Stalled", "True", "MigrationSourceInvalid")
    assert message in stalled["message"]


def test_target_stops_and_goes_on(kube: Kube) -> None:
    kube.database("db", migrations={"target": "20250704075237_init"})
    status = kube.wait_ready("db")["status"]
    assert status["schema"]["version"] == "20250704075237_init"
    assert "held back by migrations.target" in condition_of({"status": status}, "SchemaUpToDate")["message"]
    kube.kubectl("patch", "mndb", "db", "--type=json", "-p", '[{"op":"remove","path":"/spec/migrations/target"}]')
    assert kube.wait_ready("db")["status"]["indexes"]["critical"] == "6/6"


def test_missing_index_is_told(kube: Kube) -> None:
    kube.database("db")
    kube.wait_ready("db")
    kube.sql("db-0", "DROP INDEX media_requests_user_id_status_idx")
    condition = kube.wait_condition("db", "IndexesHealthy", "False", "IndexesMissing")
    assert "media_requests_user_id_status_idx" in condition["message"]
    assert kube.get(KIND, "db")["status"]["indexes"]["critical"] == "5/6"  # type: ignore[index]
    kube.sql("db-0", "CREATE INDEX media_requests_user_id_status_idx ON media_requests (user_id, status)")
    kube.wait_condition("db", "IndexesHealthy", "True", "IndexesHealthy")


def test_the_admins_own_certificate_is_served(kube: Kube) -> None:
    now = datetime.now(UTC)
    authority = certificates.new_ca("the admin's authority", now)

    def secret(name: str, *hosts: str) -> None:
        pair = certificates.issue(authority, "db", now, timedelta(days=30), hosts)
        data = {"tls.crt": pair.certificate, "tls.key": pair.key, "ca.crt": authority.certificate}
        kube.apply({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": data})

    secret("incomplete", "db-rw.example.org")
    secret("own", f"db-rw.{kube.namespace}.svc", f"*.db-pods.{kube.namespace}.svc", "localhost")
    kube.database("db", instances=2, tls={"serverSecret": "incomplete"})
    stalled = kube.wait_condition("db", "Stalled", "True", "InvalidCertificate")
    assert f"doesn't name *.db-pods.{kube.namespace}.svc, db-rw.{kube.namespace}.svc" in stalled["message"]
    kube.patch("db", {"tls": {"serverSecret": "own"}})
    kube.wait_ready("db")
    assert kube.secret("db-app")["ca.crt"] == authority.certificate
    serves = (
        "echo | openssl s_client -starttls postgres -connect localhost:5432 2>/dev/null | openssl x509 -noout -issuer"
    )
    assert "the admin's authority" in kube.kubectl("exec", "db-0", "--", "sh", "-c", serves)
    streaming = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'"
    assert kube.sql(kube.primary("db"), streaming) == "1"
