"""Inside the server: roles, the database, grants; and what a look at each instance tells."""

import asyncio
import logging
from dataclasses import dataclass, field, replace

import psycopg

from medianest_operator import naming
from medianest_operator.health import probe
from medianest_operator.health.indexes import IndexHealth, read_index_health_async
from medianest_operator.health.probe import InstanceFacts
from medianest_operator.kubernetes.kinds import digest
from medianest_operator.migrations.bundled import application_facts
from medianest_operator.migrations.history import History, read_history_async
from medianest_operator.migrations.journal import LastRun, read_last_run
from medianest_operator.observability import metrics
from medianest_operator.postgres import roles
from medianest_operator.postgres.sessions import Connection, Unreachable
from medianest_operator.reconcile import drift, patroni
from medianest_operator.reconcile.context import Pod, Run
from medianest_operator.reconcile.reading import application_database

log = logging.getLogger(__name__)

_ROLES_EVERY = 600.0
_SCHEMA_EVERY = 60.0
_CONFIGURATION_EVERY = 600.0
_MAINTENANCE_DATABASE = naming.MAINTENANCE_DATABASE


@dataclass(frozen=True)
class SchemaFacts:
    """The application's database as it is."""

    history: History
    indexes: IndexHealth
    drift: tuple[str, ...] | None = None
    """What no migration has made; None where nobody recorded what the version should look like."""
    last_run: LastRun | None = None
    """The newest run in the journal."""


@dataclass
class Look:
    """What one run saw over SQL."""

    instances: dict[str, InstanceFacts] = field(default_factory=dict)
    unreachable: dict[str, str] = field(default_factory=dict)
    schema: SchemaFacts | None = None

    def serves(self, pod: Pod | None) -> bool:
        """Whether a pod takes writes."""
        return pod is not None and pod.name in self.instances and not self.instances[pod.name].in_recovery


async def look(run: Run) -> Look:
    """Ask every running instance, all at once; tell the metrics."""
    found = Look()

    async def one(pod: Pod) -> None:
        started = asyncio.get_running_loop().time()
        try:
            async with run.services.sessions.use(
                run.instance(pod, _MAINTENANCE_DATABASE), run.credentials
            ) as connection:
                facts = await probe.instance_facts(connection)
                if not facts.in_recovery:
                    for replica in await probe.replicas(connection):
                        metrics.REPLICATION_LAG_BYTES.labels(*run.key, replica.name).set(replica.lag_bytes)
        except (Unreachable, psycopg.Error) as error:
            found.unreachable[pod.name] = str(error)
            return
        found.instances[pod.name] = facts
        metrics.PROBE_SECONDS.labels(*run.key, pod.name).set(asyncio.get_running_loop().time() - started)
        metrics.CONNECTIONS.labels(*run.key, pod.name).set(facts.connections)
        metrics.MAX_CONNECTIONS.labels(*run.key, pod.name).set(facts.max_connections)

    pods = [pod for pod in run.pods if pod.running and pod.address and pod.member.get("state") == "running"]
    names = frozenset(pod.name for pod in pods)
    await run.services.sessions.forget(*run.key, keep=names)
    for gone in run.services.memory.swap(run.key, "measured", names, frozenset()) - names:
        metrics.forget_pod(*run.key, gone)
    await asyncio.gather(*(one(pod) for pod in pods))
    return found


async def reconcile(run: Run, primary: Pod, found: Look) -> None:
    """Make the server what the spec wants: reloads, shared configuration, roles.

    Raises Unreachable where the primary breaks away in the middle.
    """
    for pod in run.pods:
        facts = found.instances.get(pod.name)
        if facts and facts.certificate_newer:
            await patroni.reload(run, pod)
            log.info("reloaded certificates", extra={"database": "/".join(run.key), "pod": pod.name})
    memory = run.services.memory
    token = (primary.uid, run.generation)
    if memory.recall(run.key, "configuration", token, _CONFIGURATION_EVERY) is None:
        await patroni.reconcile_configuration(run, primary)
        memory.keep(run.key, "configuration", token, True)
    await _reconcile_roles(run, primary)


async def _reconcile_roles(run: Run, primary: Pod) -> None:
    memory, passwords = run.services.memory, run.notes["passwords"]
    token = (primary.uid, digest(passwords))
    if memory.recall(run.key, "roles", token, _ROLES_EVERY) is not None:
        return
    wanted = roles.wanted_roles(run.spec, passwords)
    sessions, credentials = run.services.sessions, run.credentials
    async with sessions.use(run.instance(primary, _MAINTENANCE_DATABASE), credentials) as connection:
        changed = await roles.reconcile_roles(connection, wanted)
    memory.keep(run.key, "roles", token, True)
    if changed:
        names = ", ".join(changed)
        await run.services.recorder.record(
            run.database, "Normal", "PasswordRotated", f"Roles follow their Secrets: {names}."
        )


async def reconcile_grants(run: Run, primary: Pod) -> None:
    """Let the login roles into the application's database, and to what they need there."""
    memory, name = run.services.memory, run.spec.database.name
    if memory.recall(run.key, "grants", primary.uid, _ROLES_EVERY) is not None:
        return
    async with run.services.sessions.use(run.instance(primary, _MAINTENANCE_DATABASE), run.credentials) as connection:
        await roles.ensure_connect(connection, run.spec, name)
    async with application_database(run, primary, naming.SUPERUSER) as connection:
        await roles.ensure_grants(connection, run.spec)
    memory.keep(run.key, "grants", primary.uid, True)


async def schema_facts(run: Run, primary: Pod, token: str, running: bool) -> SchemaFacts:
    """The history, the indexes and the drift, looked at again after a minute or when `token` changed.

    Args:
        running: a migration is at work, so every look counts.
    """
    memory = run.services.memory
    full_token = (primary.uid, token)
    known = memory.recall(run.key, "schema", full_token, 0.0 if running else _SCHEMA_EVERY)
    if isinstance(known, SchemaFacts):
        async with application_database(run, primary) as connection:
            return replace(known, drift=await drift.look(run, connection, known.history))
    async with application_database(run, primary) as connection:
        facts = await _read_schema(run, connection)
        metrics.DATABASE_BYTES.labels(*run.key).set(await probe.database_size(connection))
    metrics.CRITICAL_INDEXES_MISSING.labels(*run.key).set(len(facts.indexes.missing))
    memory.keep(run.key, "schema", full_token, facts)
    return facts


async def _read_schema(run: Run, connection: Connection) -> SchemaFacts:
    history = await read_history_async(connection)
    return SchemaFacts(
        history,
        await read_index_health_async(connection, application_facts().critical_indexes),
        await drift.look(run, connection, history),
        await read_last_run(connection),
    )
