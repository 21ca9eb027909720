"""The `MediaNestOperation` objects of a database: what each asks for, and which of them comes first. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pydantic

from medianest_operator import naming
from medianest_operator.api.backup import Repository
from medianest_operator.api.bootstrap import RestoreSource
from medianest_operator.api.database import DatabaseSpec
from medianest_operator.api.operation import LATEST_VERIFIED, OperationPhase, OperationSpec, Restore
from medianest_operator.kubernetes.kinds import OPERATION, Manifest, digest
from medianest_operator.naming import Names
from medianest_operator.reconcile.context import Run

RESTORE, TABLES, DRY_RUN = "restore", "tables", "dry run"
"""What there is, as people read it."""
_OVER = frozenset({OperationPhase.SUCCEEDED, OperationPhase.FAILED})


@dataclass(frozen=True)
class Asked:
    """One of them."""

    manifest: Manifest

    @property
    def name(self) -> str:
        return str(self.manifest["metadata"]["name"])

    @property
    def uid(self) -> str:
        """By this it is known to the database that it changed: another object of the same name asks again."""
        return str(self.manifest["metadata"]["uid"])

    @property
    def digest(self) -> str:
        """What its Jobs are known by."""
        return digest([self.uid])

    @property
    def known(self) -> Mapping[str, Any]:
        """Its status so far."""
        return self.manifest.get("status") or {}

    @property
    def phase(self) -> str:
        return str(self.known.get("phase", OperationPhase.PENDING))

    @property
    def is_over(self) -> bool:
        return self.phase in _OVER

    @property
    def is_going(self) -> bool:
        """Whether somebody has deleted it."""
        return "deletionTimestamp" in self.manifest["metadata"]

    @cached_property
    def _parsed(self) -> OperationSpec | str:
        try:
            return OperationSpec.model_validate(self.manifest.get("spec") or {})
        except pydantic.ValidationError as error:
            return "; ".join(
                f"spec.{'.'.join(str(part) for part in item['loc'])}: {item['msg']}" for item in error.errors()
            )

    @property
    def spec(self) -> OperationSpec | None:
        """`None` where this operator can't read it."""
        return self._parsed if isinstance(self._parsed, OperationSpec) else None

    @property
    def restore(self) -> Restore | None:
        """The restore that it asks for."""
        return self.spec.restore if self.spec else None

    @property
    def is_dry_run(self) -> bool:
        return self.restore is not None and self.restore.dry_run

    @property
    def is_aside(self) -> bool:
        """Whether the live database stays in its place."""
        return self.restore is not None and (self.restore.dry_run or bool(self.restore.tables))

    @property
    def schema(self) -> str:
        """Where the tables go that it asks for."""
        return naming.restored_schema(self.name)

    @property
    def operation(self) -> str | None:
        """What it is, in a word or two."""
        if self.restore is None:
            return None
        if self.restore.dry_run:
            return DRY_RUN
        return TABLES if self.restore.tables else RESTORE

    def problem(self, database: str, spec: DatabaseSpec) -> str | None:
        """Why it can never be done with this database, as a sentence; `None` where nothing speaks against it."""
        if isinstance(self._parsed, str):
            return f"spec is not valid: {self._parsed}."
        if self.restore is None:
            return "spec names no operation that this version of the operator knows: install a newer one."
        wanted = self.restore.repository
        if wanted is not None and spec.backup.repository(wanted) is None:
            there = ", ".join(item.name for item in spec.backup.repositories)
            return f"spec.restore.repository names {wanted}; {naming.KIND} {database} has {there}."
        return None

    def source(self, names: Names, spec: DatabaseSpec) -> RestoreSource:
        """Where the backup comes from that it asks for, and which one; with `targetTime` the newest until then."""
        wanted = self.restore
        assert wanted is not None
        named = spec.backup.repository(wanted.repository) if wanted.repository else None
        # Where the named one isn't there any more, nothing is read: that it is done has only to be reported.
        repository = named or spec.backup.repositories[0]
        if repository.volume is not None:
            claim = repository.volume.claim_name or names.backup_claim(repository.name)
            volume = repository.volume.model_copy(update={"claim_name": claim})
            repository = repository.model_copy(update={"volume": volume})
        return RestoreSource(
            repository=repository,
            backup=wanted.backup or ("latest" if wanted.target_time else LATEST_VERIFIED),
            identity_secret=spec.backup.identity_secret,
            signing_secret=spec.backup.signing_secret,
            accept_unsigned=wanted.accept_unsigned,
        )

    def others(self, spec: DatabaseSpec) -> list[Repository]:
        """More repositories that may have the backup: where none is named, the newest is the newest of all."""
        named = self.restore is not None and self.restore.repository is not None
        return [] if named else spec.backup.repositories[1:]

    @property
    def which(self) -> str:
        """The backup that it asks for, in words."""
        assert self.restore is not None
        if self.restore.target_time:
            return f"the last backup before {self.restore.target_time}"
        return f"backup {self.restore.backup or LATEST_VERIFIED}"


def all_of(run: Run) -> list[Asked]:
    """All objects of a database, over or not, by name."""
    return [Asked(item) for item in run.services.cache.of_database(OPERATION, run.key)]


def queue(run: Run, asked: list[Asked]) -> list[Asked]:
    """Those that are to be done, in their order: what has begun, then the oldest, and of the same second the dry runs
    first. They are done one at a time."""
    jobs = {(job["metadata"].get("annotations") or {}).get(naming.ANNOTATION_REQUEST) for job in run.restore_jobs}

    def place(item: Asked) -> tuple[bool, str, bool, str]:
        begun = "job" in item.known or item.digest[:16] in jobs
        created = str(item.manifest["metadata"]["creationTimestamp"])
        return not begun, created, not item.is_dry_run, item.name

    open_ones = [item for item in asked if not item.is_over and not item.is_going]
    return sorted((item for item in open_ones if item.problem(run.key[1], run.spec) is None), key=place)
