"""The objects around and under the instances: access, Services, Patroni's file, the StatefulSet."""

import asyncio
from typing import Final

from medianest_operator.api.conditions import Reason
from medianest_operator.errors import Permanent
from medianest_operator.kubernetes.kinds import BY_KIND, CONFIG_MAP, DISRUPTION_BUDGET, ROLE_BINDING, STATEFUL_SET
from medianest_operator.postgres import parameters
from medianest_operator.reconcile import leftovers
from medianest_operator.reconcile.concern import Concern, Needs, Outcome
from medianest_operator.reconcile.context import Run
from medianest_operator.reconcile.servers import ever_available
from medianest_operator.reconcile.volumes import TemplateRenewal
from medianest_operator.resources import patroni, rbac, services, statefulset

_LEFTOVERS_EVERY: Final = 2.0
"""Seconds after which it is looked whether an earlier database has ended."""


async def check_parameters(run: Run) -> Outcome:
    """Refuse parameters that PostgreSQL or Patroni would refuse, drop, or stumble over at the next start."""
    if problems := parameters.problems(run.spec):
        return Outcome(problem=Permanent(Reason.INVALID_PARAMETER, "; ".join(problems)))
    return Outcome(facts=(AcceptedParameters(),))


class AcceptedParameters:
    """The fact that the spec's parameters are fit for the servers."""


async def reconcile_surroundings(run: Run) -> Outcome:
    """Access, Services, Patroni's file, and the disruption budget (only where there is a second instance)."""
    names, owner, applier = run.names, run.owner, run.services.applier
    account, binding = rbac.access(names, owner, run.services.settings.instance_role)
    known_binding = run.services.cache.get(ROLE_BINDING, names.namespace, names.role_binding)
    if known_binding is not None and known_binding.get("roleRef") != binding["roleRef"]:
        # What a binding refers to can't be changed in place.
        await applier.delete(ROLE_BINDING, known_binding)
        run.services.cache.remove(ROLE_BINDING, known_binding)
    manifests = [account, binding, *services.services(names, owner)]
    known_file = run.services.cache.get(CONFIG_MAP, names.namespace, names.patroni_config)
    if run.facts.get(AcceptedParameters) or known_file is None:
        # It holds the parameters that a new cluster begins with.
        manifests.append(patroni.config_map(names, run.spec, owner))
    if run.spec.instances > 1:
        manifests.append(statefulset.disruption_budget(names, owner))
    else:
        for live in run.services.cache.of_database(DISRUPTION_BUDGET, run.key):
            await applier.delete(DISRUPTION_BUDGET, live)
    await asyncio.gather(*(applier.apply(BY_KIND[manifest["kind"]], manifest) for manifest in manifests))
    return Outcome()


def live_replicas(run: Run) -> int | None:
    """The replicas that the StatefulSet asks for; None where there is none."""
    live = run.stateful_set
    return None if live is None else int(live["spec"]["replicas"])


def wanted_replicas(run: Run) -> int:
    """How many pods to ask for: none while hibernated; never fewer while one that would go is the primary."""
    if run.spec.hibernate:
        return 0
    primary, asked = run.primary, live_replicas(run)
    if not asked and not ever_available(run):
        return min(run.spec.instances, leftovers.instances_with_data(run) or run.spec.instances)
    if asked and primary is None:
        # More would find nobody to copy from; and before the first start they could make an empty database.
        return min(asked, run.spec.instances)
    ordinal = run.names.ordinal(primary.name) if primary else None
    if asked and ordinal is not None and ordinal >= run.spec.instances:
        # Those above the primary may go: it hands its role on to one below.
        return min(asked, ordinal + 1)
    return run.spec.instances


async def reconcile_stateful_set(run: Run) -> Outcome:
    """The instances themselves. A new database isn't begun with parameters that its servers couldn't start with."""
    live = run.stateful_set
    if live is None and run.facts.get(AcceptedParameters) is None:
        return Outcome()
    if run.facts.get(TemplateRenewal):
        return Outcome()
    if live is None and (earlier := await leftovers.clear(run)):
        return Outcome(facts=(earlier,), next_look=_LEFTOVERS_EVERY)
    image_from = "spec" if run.spec.image else "operator"
    manifest = statefulset.stateful_set(
        run.names,
        run.spec,
        run.image,
        wanted_replicas(run),
        run.owner,
        image_from=image_from,
        claims=live["spec"]["volumeClaimTemplates"] if live else None,
    )
    await run.services.applier.apply(STATEFUL_SET, manifest)
    return Outcome(status={"image": run.image})


PARAMETERS = Concern("parameters", Needs.NOTHING, check_parameters, check_parameters, stable=True)
SURROUNDINGS = Concern("surroundings", Needs.NOTHING, reconcile_surroundings, stable=True)
INSTANCES = Concern("instances", Needs.NOTHING, reconcile_stateful_set, stable=True)
