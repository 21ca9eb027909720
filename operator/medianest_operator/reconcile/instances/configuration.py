"""The servers' configuration: certificates that are newer than what PostgreSQL loaded, and the shared parameters."""

from __future__ import annotations

import logging
from typing import Final

from medianest_operator.api.conditions import Reason
from medianest_operator.errors import Permanent
from medianest_operator.postgres import parameters
from medianest_operator.reconcile.concern import Concern, Needs, Outcome, Verdict
from medianest_operator.reconcile.context import Run
from medianest_operator.reconcile.instances import patroni
from medianest_operator.reconcile.instances.kept_volumes import WRITTEN
from medianest_operator.reconcile.instances.servers import SOON, Servers
from medianest_operator.reconcile.instances.workload import AcceptedParameters

log = logging.getLogger(__name__)

_CHECK_EVERY: Final = 600.0
"""Seconds after which the shared configuration is compared although nothing changed here."""


async def reconcile(run: Run) -> Outcome:
    """Reload certificates, and leave the wanted parameters in Patroni's shared configuration."""
    servers = run.facts.get(Servers)
    # Also while commits wait: what they wait for may be what changes here.
    if servers is None or not servers.leads or run.spec.hibernate:
        return Outcome()
    for pod in run.pods:
        facts = servers.instances.get(pod.name)
        if facts and facts.certificate_newer:
            await patroni.reload(run, pod)
            log.info("reloaded certificates", extra={"database": "/".join(run.key), "pod": pod.name})
    if run.facts.get(AcceptedParameters) is None:
        # The servers keep the parameters that they have.
        return Outcome()
    primary, memory = servers.primary, run.services.memory
    if primary is None:
        return Outcome()
    token = primary.uid, run.generation
    if memory.recall(run.key, WRITTEN, token, _CHECK_EVERY) is None:
        await patroni.reconcile_configuration(run, primary)
        memory.keep(run.key, WRITTEN, token, True)
    return await observe(run)


async def observe(run: Run) -> Outcome:
    """Whether the servers have loaded the parameters, and which they refused."""
    servers = run.facts.get(Servers)
    if servers is None or not servers.leads:
        return Outcome()
    if refused := sorted({line for facts in servers.instances.values() for line in facts.refused_parameters}):
        message = f"postgresql.parameters: PostgreSQL refused {'; '.join(refused)}"
        return Outcome(problem=Permanent(Reason.INVALID_PARAMETER, message))
    wanted = run.once("marker", lambda: parameters.marker(run.spec))
    late = [name for name, facts in sorted(servers.instances.items()) if facts.configuration != wanted]
    if not late or run.spec.hibernate:
        return Outcome()
    message = f"Waiting for {', '.join(late)} to load the changed parameters."
    return Outcome(obstacle=Verdict("False", Reason.CONFIGURING, message), next_look=SOON)


CONCERN = Concern("configuration", Needs.CREDENTIALS, reconcile)
