"""Backups as an admin meets them: by schedule and on demand, into a volume and a bucket, told, verified, restored."""

from __future__ import annotations

import os
import subprocess
from typing import Any

import pytest

from e2e.backups import account, ask, backup_status, fill, make_bucket, restore, wait_over, wait_restored
from e2e.kube import BACKUP, KIND, OPERATION, Kube, Manifest, acted_on, condition_of
from e2e.workload import pod_beside, serve_beside

BIG = int(os.environ.get("MEDIANEST_MEGABYTES", "100"))
"""Megabytes of the large database; the whole gigabyte takes some minutes more."""
PEOPLE = (
    "INSERT INTO users (id, email) VALUES ('u1', 'ann@example.org'), ('u2', 'bob@example.org');"
    "INSERT INTO media_requests (id, user_id, title, media_type) VALUES ('m1', 'u1', 'Dune', 'movie')"
)


def people(kube: Kube, **spec: Any) -> None:
    """A small database with some rows."""
    kube.database("db", **spec)
    kube.wait_ready("db")
    kube.sql(kube.primary("db"), PEOPLE)


def healthy(kube: Kube, status: str, reason: str, seconds: float = 180) -> Manifest:
    return kube.wait_condition("db", "BackupsHealthy", status, reason, seconds)


@pytest.mark.timeout(1800)
def test_large_database_goes_into_both_places_and_comes_back(kube: Kube) -> None:
    """Backed up, verified, begun anew in another namespace from the bucket, and put back in place from the volume."""
    bucket = make_bucket(kube)
    bucket.secrets(kube)
    places = [{"name": "volume", "volume": {"onDelete": "Delete"}}, bucket.repository()]
    large = {"storage": {"size": "6Gi", "onDelete": "Delete"}, "backup": {"repositories": places}}
    kube.database("db", **large)
    kube.wait_ready("db")
    fill(kube, "db-0", BIG)
    before = account(kube, "db-0")
    ask(kube, "big", verify=True)
    status = wait_over(kube, "big", seconds=600)
    assert status["repositories"] == ["offsite", "volume"]
    assert status["verified"] is True
    print(kube.kubectl("get", "mnbk,mndb", "-o", "wide"))
    print(kube.kubectl("logs", f"job/{status['job']}"))
    assert backup_status(kube)["verified"]["backup"] == status["backup"]
    healthy(kube, "True", "BackupsHealthy")

    elsewhere = f"{kube.namespace}-b"
    kube.environment.kubectl("create", "namespace", elsewhere)
    other = Kube(kube.environment, elsewhere)
    try:
        bucket.secrets(other)
        whose = {"namespace": kube.namespace, "name": "db"}
        begin = {"restore": {"repository": bucket.repository(), "database": whose, "backup": "latest-verified"}}
        other.database("copy", storage={"size": "6Gi", "onDelete": "Delete"}, bootstrap=begin)
        other.wait_ready("copy", seconds=600)
        assert account(other, "copy-0") == before
        assert other.get(KIND, "copy")["status"]["bootstrap"]["backup"] == status["backup"]  # type: ignore[index]
    finally:
        kube.environment.kubectl("delete", "namespace", elsewhere, "--wait=false")

    kube.sql("db-0", "DELETE FROM error_logs WHERE id LIKE 'e1%'; UPDATE users SET name = 'lost'")
    assert account(kube, "db-0") != before
    restore(kube, "after-the-accident", backup=status["backup"], repository="volume")
    told = wait_restored(kube, "after-the-accident", seconds=600)
    kube.wait_ready("db")
    assert account(kube, "db-0") == before
    # What was there before the restore is kept, whole and closed.
    kept = told["keptDatabase"]
    closed = kube.sql("db-0", f"SELECT datallowconn FROM pg_database WHERE datname = '{kept}'", "postgres")
    assert closed == "f"


def test_backup_is_taken_once_told_and_never_again(kube: Kube) -> None:
    people(kube)
    healthy(kube, "Unknown", "NoBackupYet")
    assert sorted(item["metadata"]["name"] for item in kube.all("CronJob")) == [
        "db-daily", "db-monthly", "db-verify", "db-weekly"
    ]  # fmt: skip
    ask(kube, "first", verify=True)
    status = wait_over(kube, "first")
    assert status["verified"] is True
    assert "db-0" in status["source"] or status["source"] == "primary"
    healthy(kube, "True", "BackupsHealthy")
    for reason in ("BackupTaken", "BackupVerified", "BackupsHealthy"):
        kube.wait_event("db", reason)
    found = kube.kubectl("describe", "mnbk", "first")
    print(found)
    assert "BackupSucceeded" in found
    # As a GitOps tool applies it indefinitely; and its Job going away asks for no other one.
    version = kube.get(BACKUP, "first")["metadata"]["resourceVersion"]  # type: ignore[index]
    ask(kube, "first", verify=True)
    kube.kubectl("delete", "job", status["job"])
    kube.patch("db", {"connections": {"poolTimeout": 59}})
    kube.wait_ready("db")
    assert kube.get(BACKUP, "first")["metadata"]["resourceVersion"] == version  # type: ignore[index]
    assert kube.all("Job", label_selector="app.kubernetes.io/component=backup") == []
    with pytest.raises(RuntimeError, match="spec can't change: a MediaNestBackup is taken once"):
        ask(kube, "first", keep="5d")
    # Its last backup is in the columns.
    assert "<none>" not in kube.kubectl("get", "mndb", "db", "-o", "custom-columns=A:.status.backup.last.at")


def test_schedule_runs_its_jobs_and_stops_them_where_it_should(kube: Kube) -> None:
    people(kube)
    assert kube.get("CronJob", "db-daily")["spec"]["timeZone"] == "Etc/UTC"  # type: ignore[index]
    kube.kubectl("create", "job", "--from=cronjob/db-weekly", "now")
    healthy(kube, "True", "BackupsHealthy")
    tiers = {tier["name"]: tier for tier in backup_status(kube)["tiers"]}
    assert "lastSuccess" in tiers["weekly"]
    assert "next" in tiers["daily"]
    # Weekly ones are restored in the same Job.
    assert backup_status(kube)["verified"]["backup"] == backup_status(kube)["last"]["id"]
    kube.kubectl("create", "job", "--from=cronjob/db-verify", "drill")
    first = backup_status(kube)["verified"]["at"]
    kube.wait(KIND, "db", lambda db: db["status"]["backup"]["verified"]["at"] > first, "verified again")  # type: ignore[index]

    kube.patch("db", {"backup": {"suspend": True, "logical": {"monthly": {"enabled": False}}}})
    healthy(kube, "False", "BackupsSuspended")
    kube.wait_gone("CronJob", "db-monthly")
    assert all(item["spec"]["suspend"] for item in kube.all("CronJob"))
    assert all("next" not in tier for tier in backup_status(kube)["tiers"])
    kube.patch("db", {"backup": {"suspend": False}, "hibernate": True})
    kube.wait_condition("db", "Ready", "False", "Hibernated")
    assert all(item["spec"]["suspend"] for item in kube.all("CronJob"))


def test_repository_that_fails_is_named_and_the_other_has_the_backup(kube: Kube) -> None:
    bucket = make_bucket(kube)
    bucket.secrets(kube)
    wrong = {"name": "gone", "s3": {**bucket.repository()["s3"], "bucket": "no-such-bucket"}}
    people(kube, backup={"repositories": [{"name": "volume", "volume": {}}, wrong]})
    ask(kube, "half")
    status = wait_over(kube, "half", "Failed", seconds=300)
    assert status["repositories"] == ["volume"]
    assert "gone" in status["message"]
    told = healthy(kube, "False", "BackupFailed")["message"]
    assert "no-such-bucket" in told
    print(kube.kubectl("describe", "mndb", "db"))
    kube.patch("db", {"backup": {"repositories": [{"name": "volume", "volume": {}}, bucket.repository()]}})
    ask(kube, "whole")
    wait_over(kube, "whole")
    healthy(kube, "True", "BackupsHealthy")


def test_what_keeps_backups_from_being_taken_is_told_before_they_fail(kube: Kube) -> None:
    bucket = make_bucket(kube)
    kube.database("db", backup={"repositories": [bucket.repository()]})
    kube.wait_ready("db")
    message = healthy(kube, "False", "BackupMisconfigured")["message"]
    assert "there is no Secret s3-" in message
    bucket.secrets(kube)
    kube.patch("db", {"connections": {"poolTimeout": 59}})
    healthy(kube, "Unknown", "NoBackupYet")
    kube.patch("db", {"backup": {"logical": {"daily": {"schedule": "0 5-1 * * *"}}}})
    assert "schedule" in healthy(kube, "False", "BackupMisconfigured")["message"]
    kube.patch("db", {"backup": {"timeZone": "Mars/Olympus", "logical": {"daily": {"schedule": "0 2 * * *"}}}})
    told = kube.wait(KIND, "db", lambda db: "Mars" in condition_of(db, "BackupsHealthy")["message"], "told of Mars")
    assert condition_of(told, "Ready")["status"] == "True"


def test_backup_waits_for_its_database_and_says_what_it_can_not_be(kube: Kube) -> None:
    ask(kube, "early")
    waiting = kube.wait(BACKUP, "early", lambda it: bool((it or {}).get("status", {}).get("message")), "told")
    assert "There is no MediaNestDatabase db" in waiting["status"]["message"]
    ask(kube, "nowhere", repositories=["attic"])
    ask(kube, "unreadable", verify=True)
    recipient = "age1" + "q" * 58
    people(kube, backup={"encryption": {"recipients": [recipient]}})
    assert "attic" in wait_over(kube, "nowhere", "Failed")["message"]
    assert "identitySecret" in wait_over(kube, "unreadable", "Failed")["message"]


def test_encrypted_backup_is_verified_and_restored_with_the_key_alone(kube: Kube) -> None:
    import pyrage

    identity = pyrage.x25519.Identity.generate()
    kube.apply(
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "age"}, "stringData": {"identity": str(identity)}}
    )
    encryption = {"recipients": [str(identity.to_public())], "identitySecret": {"name": "age"}}
    people(kube, backup={"encryption": encryption})
    before = account(kube, "db-0")
    ask(kube, "sealed", verify=True)
    status = wait_over(kube, "sealed")
    assert status["verified"] is True
    kube.sql("db-0", "DELETE FROM media_requests")
    restore(kube, "back")
    wait_restored(kube, "back")
    kube.wait_ready("db")
    assert account(kube, "db-0") == before
    # The same object is never done twice, also not when everything is applied again.
    kube.sql("db-0", "DELETE FROM media_requests")
    restore(kube, "back")
    kube.kubectl("annotate", "mnop", "back", "touched=again")
    kube.kubectl("annotate", "mndb", "db", "touched=again")
    kube.patch("db", {"connections": {"poolTimeout": 58}})
    kube.wait_ready("db")
    assert kube.sql("db-0", "SELECT count(*) FROM media_requests") == "0"


def test_restore_that_can_not_be_changes_nothing(kube: Kube) -> None:
    people(kube)
    restore(kube, "back", backup="20200101T000000Z-daily")
    message = wait_restored(kube, "back", "Failed")["message"]
    assert "20200101T000000Z-daily" in message
    assert "Nothing was changed" in message
    found = kube.get(OPERATION, "back")
    assert condition_of(found, "Ready")["reason"] == "RestoreFailed"
    assert condition_of(found, "Stalled")["status"] == "True"
    kube.wait_event("db", "RestoreFailed")
    # The database is as its spec wants it; who looks there is told all the same.
    told = "the restore of MediaNestOperation back failed and changed nothing"
    ready = condition_of(
        kube.wait(KIND, "db", lambda db: told in condition_of(db, "Ready")["message"], "told"), "Ready"
    )
    assert ready["status"] == "True"
    assert condition_of(kube.get(KIND, "db"), "Available")["status"] == "True"
    assert kube.sql("db-0", "SELECT count(*) FROM users") == "2"
    assert kube.sql("db-0", "SELECT count(*) FROM pg_database WHERE datname LIKE 'medianest_%'", "postgres") == "0"

    # Whoever cleans the Job away doesn't ask for the restore again.
    kube.kubectl("delete", "job", "--all")
    kube.patch("db", {"connections": {"poolTimeout": 59}})
    kube.wait(KIND, "db", acted_on, "acted on")
    assert wait_restored(kube, "back", "Failed")["message"] == message
    assert kube.all("Job") == []
    kube.kubectl("delete", "mnop", "back")
    kube.wait(KIND, "db", lambda db: "failed" not in condition_of(db, "Ready")["message"], "as before")


def test_replaced_database_is_kept_and_backed_up_before_it_goes(kube: Kube) -> None:
    """It alone has what was written between the backup and the restore."""
    people(kube)
    ask(kube, "before")
    wait_over(kube, "before")
    kube.sql("db-0", "UPDATE users SET name = 'written later'")
    restore(kube, "back", backup="latest")
    told = wait_restored(kube, "back")
    kube.wait_ready("db")
    later = "SELECT count(*) FROM users WHERE name = 'written later'"
    assert kube.sql("db-0", later) == "0"
    there = f"SELECT count(*) FROM pg_database WHERE datname = '{told['keptDatabase']}'"
    for name in ("after", "again"):
        ask(kube, name, verify=True)
        wait_over(kube, name)
    assert kube.sql("db-0", there, "postgres") == "1"

    # Its time is over.
    aged = 'UPDATE medianest_operator.database_marks SET mark = mark || \'{"at": "2026-01-01T00:00:00Z"}\''
    kube.sql("db-0", f"{aged} WHERE mark->>'role' = 'kept'", "postgres")
    kube.wait_event("db", "ReplacedDropped", seconds=240)
    assert kube.sql("db-0", there, "postgres") == "0"
    [message] = [text for reason, text in kube.events("db") if reason == "ReplacedDropped"]
    print(message)
    backup = message.partition("Backup ")[2].split(" ")[0]
    assert "-replaced" in backup

    # It is nobody's latest backup; by its id its rows come back.
    restore(kube, "back-again", backup="latest")
    wait_restored(kube, "back-again")
    assert kube.sql("db-0", later) == "0"
    restore(kube, "forth", backup=backup)
    wait_restored(kube, "forth")
    assert kube.sql("db-0", later) == "2"


def test_restore_whose_pod_is_deleted_begins_again(kube: Kube) -> None:
    """Another pod of the same Job would find what the first one had filled, and give up for good."""
    people(kube)
    before = account(kube, "db-0")
    ask(kube, "before")
    wait_over(kube, "before")
    kube.sql("db-0", "DELETE FROM media_requests")
    restore(kube, "back", backup="latest")
    pods = ("pod", "-l", "app.kubernetes.io/component=restore")
    kube.kubectl("wait", "--for=create", *pods, "--timeout=180s")
    kube.kubectl("wait", "--for=jsonpath={.status.containerStatuses[0].started}", *pods, "--timeout=60s", check=False)
    kube.kubectl("delete", *pods, "--grace-period=1", "--wait=false")
    wait_restored(kube, "back", seconds=300)
    kube.wait_ready("db")
    assert account(kube, "db-0") == before


def test_import_from_a_running_server(kube: Kube) -> None:
    """The docker-compose deployment: one role that owns everything, Prisma's parameters in the URL."""
    compose(kube)
    url = "postgresql://medianest:secret@compose:5432/medianest?connection_limit=20&pool_timeout=30&sslmode=prefer"
    kube.apply({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "old"}, "stringData": {"DATABASE_URL": url}})
    kube.database("db", bootstrap={"import": {"connectionSecret": {"name": "old"}}})
    kube.wait_ready("db")
    told = kube.get(KIND, "db")["status"]  # type: ignore[index]
    print(kube.kubectl("describe", "mndb", "db"))
    assert told["bootstrap"]["phase"] == "Done"
    assert kube.sql("db-0", "SELECT title FROM media_requests") == "Dune"
    assert kube.sql("db-0", "SELECT DISTINCT tableowner FROM pg_tables WHERE schemaname = 'public'") == "medianest"
    uri = kube.secret("db-app")["uri"]
    assert kube.client_sql("db-0", uri, "SELECT count(*) FROM users") == "2"
    assert told["schema"]["version"] == "20250905150611_add_password_hash_to_users"


def compose(kube: Kube) -> None:
    """A plain PostgreSQL with the application's schema and some rows."""
    from medianest_operator.migrations.bundled import bundled_migrations

    files = {f"{item.name}.sql": item.sql for item in bundled_migrations()}
    kube.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "compose"}, "data": files})
    script = (
        "initdb -D /data/pg -U postgres -A trust >/dev/null"
        " && echo 'host all all all scram-sha-256' >> /data/pg/pg_hba.conf"
        " && pg_ctl -D /data/pg -o '-c unix_socket_directories=/tmp' -w start >/dev/null"
        " && psql -h /tmp -U postgres -qc \"CREATE ROLE medianest LOGIN PASSWORD 'secret'\""
        " -c 'CREATE DATABASE medianest OWNER medianest'"
        " && for file in /sql/*.sql; do psql -h /tmp -U medianest -d medianest -v ON_ERROR_STOP=1 -qf $file; done"
        f' && psql -h /tmp -U medianest -d medianest -qc "{PEOPLE.replace(chr(34), "")}"'
        " && pg_ctl -D /data/pg -w stop >/dev/null"
        " && exec postgres -D /data/pg -c unix_socket_directories=/tmp -c listen_addresses='*'"
    )
    volumes: dict[str, Any] = {"/data": {"emptyDir": {}}, "/sql": {"configMap": {"name": "compose"}}}
    serve_beside(kube, pod_beside("compose", ["bash", "-c", script], volumes), 5432)


def hook(kube: Kube) -> str:
    """A pod that writes down what it is told, one line each; returns its URL."""
    script = (
        "import http.server\n"
        "class Take(http.server.BaseHTTPRequestHandler):\n"
        "    def do_POST(self):\n"
        "        print(self.rfile.read(int(self.headers['content-length'])).decode(), flush=True)\n"
        "        self.send_response(200); self.end_headers()\n"
        "    def log_message(self, *_): pass\n"
        "http.server.HTTPServer(('', 8000), Take).serve_forever()\n"
    )
    serve_beside(kube, pod_beside("hook", ["/opt/medianest/bin/python", "-c", script]), 8000)
    return f"http://hook.{kube.namespace}.svc:8000/warnings"


def first_told(kube: Kube) -> str:
    """The first line that the hook wrote down, once there is one."""
    command = ["kubectl", "--kubeconfig", str(kube.environment.kubeconfig), "-n", kube.namespace, "logs", "-f", "hook"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as log:
        assert log.stdout is not None
        line = log.stdout.readline()
        log.kill()
    return line


def notify(kube: Kube, *reasons: str) -> list[Manifest]:
    """`spec.notifications` that tell these reasons to the hook, and to one that isn't there."""
    secret = {"metadata": {"name": "hook"}, "stringData": {"url": hook(kube)}}
    kube.apply({"apiVersion": "v1", "kind": "Secret"} | secret)
    return [
        {"name": "all", "urlSecret": {"name": "hook"}, "reasons": [*reasons]},
        {"name": "nowhere", "urlSecret": {"name": "missing"}, "reasons": [*reasons]},
    ]


def test_warnings_reach_the_webhook(kube: Kube) -> None:
    people(kube, notifications=notify(kube, "RestoreFailed"))
    restore(kube, "back", backup="20200101T000000Z-daily")
    kube.wait_event("db", "NotificationFailed")
    line = first_told(kube)
    assert '"reason": "RestoreFailed"' in line
    assert f"MediaNestOperation {kube.namespace}/back: RestoreFailed" in line


def test_backup_that_can_not_be_restored_is_told_everywhere(kube: Kube) -> None:
    """A byte is another in the bucket: the drill finds it, and a good backup ends it."""
    bucket = make_bucket(kube)
    bucket.secrets(kube)
    people(kube, backup={"repositories": [bucket.repository()]}, notifications=notify(kube, "VerificationFailed"))
    ask(kube, "first", verify=True)
    first = wait_over(kube, "first")["backup"]
    healthy(kube, "True", "BackupsHealthy")
    ask(kube, "second")
    second = wait_over(kube, "second")["backup"]
    bucket.spoil(f"{second}/data.dump.zst")
    kube.kubectl("create", "job", "--from=cronjob/db-verify", "drill")
    message = healthy(kube, "False", "VerificationFailed")["message"]
    assert f"{second} is not good" in message
    assert "SHA-256" in message
    assert f"the latest verified one is {first}." in message
    kube.wait_event("db", "VerificationFailed")
    assert '"reason": "VerificationFailed"' in first_told(kube)
    assert condition_of(kube.get(KIND, "db"), "Ready")["status"] == "True"
    # What is restored is the newest that is good.
    kube.sql("db-0", "DELETE FROM media_requests")
    restore(kube, "back", backup="latest")
    assert wait_restored(kube, "back")["backup"] == first
    assert kube.sql("db-0", "SELECT title FROM media_requests") == "Dune"
    ask(kube, "third", verify=True)
    wait_over(kube, "third")
    healthy(kube, "True", "BackupsHealthy")


def test_replica_is_dumped_where_one_is_in_sync(kube: Kube) -> None:
    people(kube, instances=2)
    kube.wait_ready("db")
    ask(kube, "first", verify=True)
    assert wait_over(kube, "first")["source"] == f"replica {({'db-0', 'db-1'} - {kube.primary('db')}).pop()}"


def test_server_that_is_dumped_goes_away(kube: Kube) -> None:
    """The dump waits at a lock while its server is killed: the Job tries again, and leaves no half backup."""
    people(kube)
    before = account(kube, "db-0")
    with kube.session("db-0", kube.secret("db-migrator")["uri"]) as hold:
        assert hold("BEGIN; LOCK TABLE users; SELECT 'held'") == "held"
        ask(kube, "first", verify=True)
        waiting = "SELECT count(*) FROM pg_stat_activity WHERE usename ~ 'backup' AND wait_event_type = 'Lock'"
        kube.kubectl(
            "exec", "db-0", "-c", "postgres", "--", "sh", "-c",
            f'until [ "$(psql -XAtqd medianest -c "{waiting}")" = 1 ]; do sleep 0.1; done',
        )  # fmt: skip
        kube.kubectl("delete", "pod", "db-0", "--grace-period=0", "--force")
    status = wait_over(kube, "first", seconds=300)
    assert status["verified"] is True
    healthy(kube, "True", "BackupsHealthy")
    assert backup_status(kube)["repositories"][0]["count"] == 1
    assert account(kube, "db-0") == before
