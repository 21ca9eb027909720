"""What the tests of backups share: MediaNest-shaped data, an account of all rows that isn't ours, an S3 bucket."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from e2e.kube import API_VERSION, BACKUP, KIND, OPERATION, Kube, Manifest
from shaped import USERS_A_MEGABYTE, rows

# Every row of every table of a database as text, in order, through the client's own eyes.
_ACCOUNT = r"""
for table in $(psql -XAtqd {database} -c "SELECT quote_ident(table_schema) || '.' || quote_ident(table_name)
    FROM information_schema.tables WHERE table_type = 'BASE TABLE'
     AND table_schema NOT IN ('pg_catalog', 'information_schema', 'medianest_operator') ORDER BY 1"); do
  sum=$(psql -XAtqd {database} -c "COPY (SELECT (t.*)::text FROM $table t) TO STDOUT" | sort -S 64M -T /tmp | md5sum)
  echo "$table $(psql -XAtqd {database} -c "SELECT count(*) FROM $table") $sum"
done
pg_dump --schema-only --exclude-schema=medianest_operator -d {database} | grep -v '^\\\(un\)\?restrict' | md5sum
"""


def fill(kube: Kube, pod: str, megabytes: int) -> None:
    """Put MediaNest-shaped rows into a migrated database."""
    step = 50 * USERS_A_MEGABYTE
    for first in range(1, megabytes * USERS_A_MEGABYTE, step):
        last = min(first + step, megabytes * USERS_A_MEGABYTE + 1) - 1
        kube.sql(pod, rows(first, last))


def account(kube: Kube, pod: str, database: str = "medianest") -> str:
    """Rows and a digest of each table, and one of the definitions: by psql, sort and pg_dump, none of it ours."""
    script = _ACCOUNT.format(database=database)
    return kube.kubectl("exec", pod, "-c", "postgres", "--", "bash", "-ec", script)


@dataclass(frozen=True)
class Bucket:
    """A bucket of the cluster's S3 server."""

    name: str
    endpoint: str
    region: str
    credentials: dict[str, str]
    authority: str
    folder: Path
    """Where the server keeps it."""

    def secrets(self, kube: Kube) -> None:
        """The Secrets with which a namespace reaches it."""
        for name, data in (("s3-keys", self.credentials), ("s3-ca", {"ca.crt": self.authority})):
            kube.apply({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": data})

    def spoil(self, path: str) -> None:
        """Make one byte of an object another one."""
        [file] = self.folder.rglob(path)
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(data)

    def repository(self, name: str = "offsite") -> Manifest:
        """As the spec names it."""
        where = {"bucket": self.name, "endpoint": self.endpoint, "region": self.region, "prefix": "media"}
        keys = {"credentialsSecret": {"name": "s3-keys"}, "caSecret": {"name": "s3-ca"}}
        return {"name": name, "s3": where | keys}


def make_bucket(kube: Kube) -> Bucket:
    """A bucket of this test's own; skips where the cluster has no S3 server."""
    if kube.environment.local is None:
        pytest.skip("the S3 server of these tests runs beside the local cluster")
    store = kube.environment.local.s3
    name = f"backups-{secrets.token_hex(4)}"
    # A bucket is a folder to this server.
    (store.data / name).mkdir()
    keys = {"AWS_ACCESS_KEY_ID": store.access_key, "AWS_SECRET_ACCESS_KEY": store.secret_key}
    return Bucket(name, store.endpoint, store.region, keys, store.authority.read_text(), store.data / name)


def ask(kube: Kube, name: str, **spec: Any) -> None:
    """Apply a `MediaNestBackup` of database db."""
    wanted = {"database": "db"} | spec
    kube.apply({"apiVersion": API_VERSION, "kind": BACKUP, "metadata": {"name": name}, "spec": wanted})


def wait_over(kube: Kube, name: str, phase: str = "Succeeded", seconds: float = 180) -> Manifest:
    """Wait until a `MediaNestBackup` has ended so; return its status."""

    def over(current: Manifest | None) -> bool:
        reached = ((current or {}).get("status") or {}).get("phase")
        assert reached not in {"Succeeded", "Failed"} - {phase}, (current or {})["status"]
        return bool(reached == phase)

    status: Manifest = kube.wait(BACKUP, name, over, phase, seconds)["status"]
    return status


def backup_status(kube: Kube, name: str = "db") -> Manifest:
    """`status.backup` of a database."""
    found: Manifest = kube.get(KIND, name)["status"]["backup"]  # type: ignore[index]
    return found


def restore(kube: Kube, name: str, *, ttl: str | None = None, **wanted: Any) -> None:
    """Apply a `MediaNestOperation` that restores database db in place."""
    spec: Manifest = {"database": "db", "restore": wanted} | ({"ttlAfterFinished": ttl} if ttl else {})
    kube.apply({"apiVersion": API_VERSION, "kind": OPERATION, "metadata": {"name": name}, "spec": spec})


def wait_restored(kube: Kube, name: str, phase: str = "Succeeded", seconds: float = 240) -> Manifest:
    """Wait until a `MediaNestOperation` has ended so; return its status."""

    def over(current: Manifest | None) -> bool:
        reached = ((current or {}).get("status") or {}).get("phase")
        assert reached not in {"Succeeded", "Failed"} - {phase}, (current or {})["status"]
        return bool(reached == phase)

    status: Manifest = kube.wait(OPERATION, name, over, phase, seconds)["status"]
    return status
