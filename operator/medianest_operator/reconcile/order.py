"""The order of a run: what a database needs, one line a concern."""

from __future__ import annotations

from typing import Final

from medianest_operator.reconcile.backups import objects as backup_objects
from medianest_operator.reconcile.backups import operations, restore
from medianest_operator.reconcile.backups import schedules as backups
from medianest_operator.reconcile.concern import Concern
from medianest_operator.reconcile.contents import hardening, indexes, logins, migration, roles, schema
from medianest_operator.reconcile.health import findings, probes, storage
from medianest_operator.reconcile.instances import (
    back_off,
    certificates,
    configuration,
    elections,
    kept_volumes,
    rollout,
    servers,
    volumes,
    workload,
)

ORDER: Final[tuple[Concern, ...]] = (
    # What can be made before the first server runs.
    certificates.CONCERN,
    logins.CONCERN,
    workload.PARAMETERS,
    workload.SURROUNDINGS,
    volumes.CONCERN,
    back_off.CONCERN,
    workload.INSTANCES,
    backups.CONCERN,
    # The servers, and what is inside them.
    servers.CONCERN,
    storage.CONCERN,
    elections.CONCERN,
    kept_volumes.CONCERN,
    configuration.CONCERN,
    roles.CONCERN,
    restore.CONCERN,
    roles.GRANTS,
    # The application's schema.
    schema.CONCERN,
    migration.CONCERN,
    hardening.CONCERN,
    indexes.CONCERN,
    # Whether all that is healthy.
    probes.CONCERN,
    # What interrupts, and what only reports.
    rollout.CONCERN,
    operations.CONCERN,
    backup_objects.CONCERN,
    backups.REPORT,
    findings.CONCERN,
)
