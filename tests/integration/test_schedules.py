"""The CronJobs of a database's backups, and what they need to run."""

from __future__ import annotations

from typing import Any

import pyrage
import pytest

from apiserver import Fault
from integration.backup_runs import Bench, new_bench
from integration.loops import NAMESPACE, Arena, arena, waits_for_a_secret
from integration.postgres_server import Database
from medianest_operator import naming
from medianest_operator.kubernetes.kinds import CLAIM, CRON_JOB, JOB, POD, SECRET, Manifest
from medianest_operator.naming import Key
from medianest_operator.timestamps import stamp_now

VOLUME = {"name": "nas", "volume": {}}
BUCKET = {"name": "offsite", "s3": {"bucket": "backups", "credentialsSecret": {"name": "keys"}}}
RECIPIENT = str(pyrage.x25519.Identity.generate().to_public())
ENCRYPTED = {"encryption": {"recipients": [RECIPIENT], "identitySecret": {"name": "identity"}}}


def cron_jobs(made: Arena) -> dict[str, Manifest]:
    return {item["metadata"]["name"]: item for item in made.server.all(CRON_JOB)}


def started_by(made: Arena, cron_job: str, **metadata: Any) -> Manifest:
    """A Job of a CronJob's, as the controller makes it."""
    live = cron_jobs(made)[cron_job]
    uid, template = live["metadata"]["uid"], live["spec"]["jobTemplate"]
    owner = {"apiVersion": "batch/v1", "kind": "CronJob", "name": cron_job, "uid": uid, "controller": True}
    own = {"namespace": NAMESPACE, "name": f"{cron_job}-1", "labels": template["metadata"]["labels"]}
    return made.server.put(JOB, {"metadata": {**own, "ownerReferences": [owner], **metadata}, "spec": template["spec"]})


async def backups(made: Arena, key: Key, **backup: Any) -> tuple[str, str, str]:
    """What BackupsHealthy says of a spec."""
    made.make(key[1], {"backup": backup})
    made.services.memory.forget(key)
    await made.run(key)
    assert "BackupsHealthy" in made.conditions(key), made.message(key, "Ready")
    return *made.conditions(key)["BackupsHealthy"], made.message(key, "BackupsHealthy")


async def test_a_secret_of_one_repository_stops_no_backup_into_the_others() -> None:
    async with arena() as made:
        key = made.make("db", {})
        truth, reason, message = await backups(made, key, repositories=[VOLUME, BUCKET])
        assert (truth, reason) == ("False", "BackupMisconfigured")
        assert "No backup gets into repository offsite: there is no Secret keys" in message
        # The pod starts without it.
        daily = cron_jobs(made)["db-daily"]["spec"]["jobTemplate"]["spec"]["template"]["spec"]
        [credentials] = [item["secret"] for item in daily["volumes"] if item["name"] == "credentials-offsite"]
        assert credentials["optional"] is True
        truth, reason, message = await backups(made, key, repositories=[BUCKET])
        assert message.startswith("No backup can be taken: there is no Secret keys")
        # Where there is no other, the pod waits for it.
        daily = cron_jobs(made)["db-daily"]["spec"]["jobTemplate"]["spec"]["template"]["spec"]
        [credentials] = [item["secret"] for item in daily["volumes"] if item["name"] == "credentials-offsite"]
        assert "optional" not in credentials
        made.server.put(SECRET, {"metadata": {"namespace": NAMESPACE, "name": "keys"}, "data": {}})
        assert (await backups(made, key, repositories=[VOLUME, BUCKET]))[:2] == ("Unknown", "NoBackupYet")


async def test_a_key_is_needed_by_each_backup() -> None:
    async with arena() as made:
        key = made.make("db", {})
        signed = {"encryption": {"signingSecret": {"name": "keys"}}}
        message = (await backups(made, key, repositories=[VOLUME], **signed))[2]
        assert message.startswith("No backup can be taken: there is no Secret keys")


async def test_what_a_person_made_of_a_cron_job_ends_before_that_goes() -> None:
    async with arena() as made:
        made.server.put(SECRET, {"metadata": {"namespace": NAMESPACE, "name": "identity"}, "data": {}})
        key = made.make("db", {})
        await backups(made, key, repositories=[VOLUME], **ENCRYPTED)
        by_hand = started_by(
            made, "db-verify", name="by-hand", annotations={"cronjob.kubernetes.io/instantiate": "manual"}
        )
        assert by_hand["metadata"]["labels"][naming.LABEL_COMPONENT] == naming.COMPONENT_VERIFICATION
        only = {"encryption": {"recipients": [RECIPIENT]}}
        await backups(made, key, repositories=[VOLUME], **only)
        assert "db-verify" in cron_jobs(made)
        end = {"type": "Complete", "status": "True", "lastTransitionTime": stamp_now()}
        made.server.put(JOB, by_hand | {"status": {"conditions": [end]}})
        await made.run(key)
        # The status has yet to learn what it came to.
        assert "db-verify" in cron_jobs(made)
        made.server.put(
            JOB, by_hand | {"status": {"conditions": [end | {"lastTransitionTime": "2026-11-22T03:00:00Z"}]}}
        )
        await made.run(key)
        assert "db-verify" not in cron_jobs(made)


async def test_one_that_is_not_wanted_starts_nothing_more() -> None:
    """One that comes every minute would never be without a Job of the last minute."""
    async with arena() as made:
        made.server.put(SECRET, {"metadata": {"namespace": NAMESPACE, "name": "identity"}, "data": {}})
        key = made.make("db", {})
        await backups(made, key, repositories=[VOLUME], **ENCRYPTED)
        verify = cron_jobs(made)["db-verify"]
        assert verify["spec"]["suspend"] is False
        running = started_by(made, "db-verify")
        await backups(made, key, repositories=[VOLUME], encryption={"recipients": [RECIPIENT]})
        assert cron_jobs(made)["db-verify"]["spec"]["suspend"] is True
        assert cron_jobs(made)["db-verify"]["spec"]["schedule"] == verify["spec"]["schedule"]
        # Wanted again, it goes on.
        await backups(made, key, repositories=[VOLUME], **ENCRYPTED)
        assert cron_jobs(made)["db-verify"]["spec"]["suspend"] is False
        await backups(made, key, repositories=[VOLUME], encryption={"recipients": [RECIPIENT]})
        end = {"type": "Complete", "status": "True", "lastTransitionTime": "2026-11-22T03:00:00Z"}
        made.server.put(JOB, running | {"status": {"conditions": [end]}})
        await made.run(key)
        assert "db-verify" not in cron_jobs(made)


async def test_while_paused_the_status_speaks_of_the_cron_jobs_that_there_are() -> None:
    """The operator changes nothing then: what the spec says by now isn't so."""
    async with arena() as made:
        key = made.make("db", {})
        early = {"logical": {"daily": {"schedule": "30 1 * * *"}}, "timeZone": "Etc/UTC"}
        await backups(made, key, repositories=[VOLUME], **early)
        made.make(key[1], {"paused": True, "backup": {"repositories": [VOLUME], "suspend": True}})
        await made.run(key)
        assert cron_jobs(made)["db-daily"]["spec"]["suspend"] is False
        coming = {item["name"]: item["next"] for item in made.status(key)["backup"]["tiers"]}
        assert coming["daily"].endswith("T01:30:00Z")
        assert made.status(key)["backup"]["nextVerification"]
        assert made.conditions(key)["BackupsHealthy"] == ("Unknown", "NoBackupYet")
        assert f"The first is taken at {min(coming.values())}." in made.message(key, "BackupsHealthy")
        # And the other way round.
        await backups(made, key, repositories=[VOLUME], suspend=True)
        assert made.message(key, "BackupsHealthy").startswith("spec.backup.suspend is true: no backup is scheduled.")
        made.make(key[1], {"paused": True, "backup": {"repositories": [VOLUME]}})
        await made.run(key)
        assert cron_jobs(made)["db-daily"]["spec"]["suspend"] is True
        assert "tiers" not in made.status(key)["backup"]
        assert made.conditions(key)["BackupsHealthy"] == ("False", "BackupsSuspended")
        message = made.message(key, "BackupsHealthy")
        assert message.startswith("The CronJobs are suspended, and stay so while spec.paused is true: no backup is")


@pytest.mark.parametrize("series", ["daily", "verify"])
async def test_a_job_that_waits_for_a_secret_is_told_and_goes_with_its_name(series: str) -> None:
    async with arena() as made:
        made.server.put(SECRET, {"metadata": {"namespace": NAMESPACE, "name": "keys"}, "data": {}})
        key = made.make("db", {})
        signed = {"encryption": {"signingSecret": {"name": "keys"}}}
        await backups(made, key, repositories=[VOLUME], **signed)
        job = started_by(made, f"db-{series}")
        waits_for_a_secret(made.server, job, "keys")
        truth, reason, message = await backups(made, key, repositories=[VOLUME], **signed)
        assert (truth, reason) == ("False", "BackupMisconfigured")
        assert message.startswith(f"Job db-{series}-1 can't begin: Pod db-{series}-1-x can't start: ")
        assert 'secret "keys" not found' in message
        assert made.server.all(JOB)
        # The spec that it is of is none any more; one that has begun ends all the same.
        begun = made.server.get(POD, NAMESPACE, f"db-{series}-1-x")
        running = {"name": "backup", "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}}}
        made.server.put(POD, begun | {"status": {"phase": "Running", "containerStatuses": [running]}})
        await backups(made, key, repositories=[VOLUME])
        assert made.server.all(JOB)
        waits_for_a_secret(made.server, job, "keys")
        await backups(made, key, repositories=[VOLUME])
        assert list(made.server.all(JOB)) == []


STAYING: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "of a person": ({"annotations": {"cronjob.kubernetes.io/instantiate": "manual"}}, {}),
    "begun in another pod": ({}, {"failed": 1}),
}


@pytest.mark.parametrize(("metadata", "status"), STAYING.values(), ids=STAYING.keys())
async def test_no_other_job_goes_with_a_name(metadata: dict[str, Any], status: dict[str, Any]) -> None:
    async with arena() as made:
        made.server.put(SECRET, {"metadata": {"namespace": NAMESPACE, "name": "keys"}, "data": {}})
        key = made.make("db", {})
        await backups(made, key, repositories=[VOLUME], encryption={"signingSecret": {"name": "keys"}})
        job = started_by(made, "db-daily", **metadata)
        made.server.put(JOB, job | {"status": status})
        waits_for_a_secret(made.server, job, "keys")
        await backups(made, key, repositories=[VOLUME])
        assert made.server.all(JOB)


async def test_a_job_that_has_yet_to_begin_is_given_its_time() -> None:
    """A node is being made for it, say; whatever else of the spec is another by now."""
    async with arena() as made:
        key = made.make("db", {})
        await backups(made, key, repositories=[VOLUME])
        job = started_by(made, "db-daily")
        waits_for_a_secret(made.server, job, "keys")
        unschedulable = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes"}

        def wait(since: str) -> None:
            pod = made.server.get(POD, NAMESPACE, "db-daily-1-x")
            pod["metadata"]["creationTimestamp"] = since
            made.server.put(POD, pod | {"status": {"phase": "Pending", "conditions": [dict(unschedulable)]}})

        wait(stamp_now())
        assert (await backups(made, key, repositories=[VOLUME], logical={"daily": {"keep": "9d"}}))[0] == "Unknown"
        # Then it is said, in words that stay the same.
        wait("2026-01-01T00:00:00Z")
        told = await backups(made, key, repositories=[VOLUME])
        assert told[:2] == ("False", "BackupMisconfigured")
        assert told[2].startswith("Job db-daily-1 can't begin: its pod can't be scheduled;")
        unschedulable["message"] = "0/4 nodes"
        wait("2026-01-01T00:00:00Z")
        assert await backups(made, key, repositories=[VOLUME]) == told
        # Nor does it pass because nobody can ask.
        made.server.fault = lambda call: Fault(503, "away", "ServiceUnavailable") if call.kind == "events" else None
        assert (await backups(made, key, repositories=[VOLUME]))[:2] == told[:2]
        assert made.server.all(JOB)


async def test_suspending_and_dropping_a_series_at_once_suspends_the_others_at_once() -> None:
    async with arena() as made:
        key = made.make("db", {})
        await backups(made, key, repositories=[VOLUME])
        await backups(made, key, repositories=[VOLUME], suspend=True, logical={"daily": {"enabled": False}})
        assert {name: item["spec"]["suspend"] for name, item in cron_jobs(made).items()} == {
            "db-weekly": True, "db-monthly": True, "db-verify": True
        }  # fmt: skip


@pytest.mark.parametrize("state", [{"hibernate": True}, {"backup": {"suspend": True}}])
async def test_nothing_starts_while_backups_are_suspended_whatever_else_is_wrong(state: dict[str, Any]) -> None:
    async with arena() as made:
        key = made.make("db", {})
        await backups(made, key, repositories=[VOLUME])
        assert {item["spec"]["suspend"] for item in cron_jobs(made).values()} == {False}
        refused = Fault(422, "spec.resources.requests.storage: Forbidden", "Invalid")
        made.server.fault = lambda call: refused if call.kind == CLAIM.plural and call.is_write else None
        wanted: dict[str, Any] = {"repositories": [VOLUME, {"name": "more", "volume": {}}]}
        made.make(key[1], state | {"backup": wanted | state.get("backup", {})})
        await made.run(key)
        assert {item["spec"]["suspend"] for item in cron_jobs(made).values()} == {True}


def test_credentials_that_are_not_there_are_told_of_their_repository(medianest: Database, room: Any) -> None:
    bench: Bench = new_bench(medianest, room, "main")
    bucket = f"offsite=s3://b?endpoint=http://127.0.0.1:9&credentials={room}/none"
    answer = bench.backup("--repository", bucket)
    assert answer.told == (1, "Failed", "RepositoryFailed"), answer.text
    assert answer.result["backup"]
    assert answer.result["repositories"]["main"] == {"ok": True}
    message = answer.result["repositories"]["offsite"]["message"]
    assert "it is the key AWS_ACCESS_KEY_ID of the Secret that spec.backup.repositories names" in message
