"""The objects around and under the instances: access, Services, Patroni's file, the StatefulSet."""

import asyncio
import time
from typing import Final

from medianest_operator.api.conditions import Reason
from medianest_operator.api.database import Synchronous
from medianest_operator.api.model import OnDelete
from medianest_operator.errors import Permanent
from medianest_operator.kubernetes.apply import covers
from medianest_operator.kubernetes.kinds import (
    BY_KIND,
    CONFIG_MAP,
    DISRUPTION_BUDGET,
    ROLE_BINDING,
    STATEFUL_SET,
    Manifest,
)
from medianest_operator.postgres import parameters
from medianest_operator.reconcile.concern import Concern, Needs, Outcome
from medianest_operator.reconcile.context import Pod, Run
from medianest_operator.reconcile.instances import beginning, kept_volumes, leftovers
from medianest_operator.reconcile.instances import patroni as members
from medianest_operator.reconcile.instances.servers import ever_available
from medianest_operator.reconcile.instances.volumes import TemplateRenewal, grown_spec
from medianest_operator.resources import patroni, rbac, services, statefulset

_LOOK_AGAIN: Final = 2.0
"""Seconds after which it is looked again for what has to come first: the end of an earlier database, of the instances
that stop first, an election."""

_ELECTION: Final = 60.0
"""Seconds that a database without a primary is given to elect one before it is stopped without."""


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
    manifests = [
        account,
        binding,
        *services.services(
            names,
            owner,
            keeps=run.spec.storage.on_delete is OnDelete.RETAIN,
            synchronous=run.spec.postgresql.synchronous is not Synchronous.OFF,
        ),
    ]
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


async def wanted_instances(run: Run) -> range | leftovers.NotYet:
    """The ordinals of the instances to ask for.

    What was begun changes only while there is a primary: the others copy from it or follow it, and it never goes.
    To hibernate, the others stop first: the primary stops with all that was written; the StatefulSet keeps its place.

    Raises:
        Permanent: there is nothing to begin with.
        ApiError: what has to be known for that can't be read now.
    """
    asked, primary = run.asked_for, run.primary
    if not asked and run.stateful_set is None and (there := _there(run)):
        # The StatefulSet was taken away from under its pods.
        asked = range(min(there), max(there) + 1)
    if asked and run.services.handovers.under_way(run.uid):
        # Whoever leads then must not be taken away now.
        return asked
    leader = run.names.ordinal(primary.name) if primary else None
    if run.spec.hibernate:
        wanted = _stopping(run, asked, primary, leader)
    elif leader is not None:
        beginning.note_leader(run)
        first = kept_volumes.first_that_stays(run, leader)
        wanted = range(first, max(first + run.spec.instances, leader + 1))
        if asked and any(ordinal not in asked and not kept_volumes.may_join(run, ordinal) for ordinal in wanted):
            return asked
    else:
        # Before the first leader, too: nobody knows which of them won Patroni's race for the initialization.
        return await (beginning.first_again(run, asked) if asked else beginning.first_instances(run))
    if leader is not None and set(asked) - set(wanted) and await members.handover_asked_for(run):
        # Whoever leads then must not be taken away either.
        return asked
    return wanted


def _there(run: Run) -> list[int]:
    """The ordinals of the pods that there are."""
    names = [pod.name for pod in run.pods if not pod.terminating]
    return [ordinal for name in names if (ordinal := run.names.ordinal(name)) is not None]


def _stopping(run: Run, asked: range, primary: Pod | None, leader: int | None) -> range:
    nobody = range(asked.start, asked.start)
    if primary is None or leader is None or not primary.running or primary.member.get("role") != "primary":
        since: float = run.services.memory.once(run.key, "stopping without a primary", run.generation, time.monotonic)
        elected_soon = ever_available(run) and any(pod.running for pod in run.pods)
        return asked if elected_soon and time.monotonic() - since < _ELECTION else nobody
    alone = range(leader, leader + 1)
    others = [pod for pod in run.pods if pod != primary and not pod.lost]
    return alone if asked != alone or others else nobody


async def _find(run: Run) -> Manifest | None:
    """The StatefulSet, also where it lost the labels by which it is watched."""
    if run.stateful_set is None and run.pods_of_name:
        found = await run.services.client.get(STATEFUL_SET, run.names.namespace, run.names.stateful_set)
        owners = {item["uid"] for item in found["metadata"].get("ownerReferences") or []} if found else set()
        if found is not None and run.uid in owners and "deletionTimestamp" not in found["metadata"]:
            run.services.cache.put(STATEFUL_SET, found)
    return run.stateful_set


def _templates(run: Run, live: Manifest | None) -> list[Manifest]:
    """The claim templates, with the size that the volumes have grown to; those of the live object where they are not as
    wanted: nobody may change them in place."""
    wanted = statefulset.volume_claims(run.names, grown_spec(run))
    templates: list[Manifest] = live["spec"]["volumeClaimTemplates"] if live else wanted
    return wanted if covers(templates, wanted) else templates


async def reconcile_stateful_set(run: Run) -> Outcome:
    """The instances themselves. A new database isn't begun with parameters that its servers couldn't start with."""
    live = await _find(run)
    if live is None and run.facts.get(AcceptedParameters) is None:
        return Outcome()
    if run.facts.get(TemplateRenewal):
        return Outcome()
    begins = live is None or not (run.asked_for or run.spec.hibernate)
    if begins and (earlier := await leftovers.clear(run)):
        return Outcome(facts=(earlier,), next_look=_LOOK_AGAIN)
    wanted = await wanted_instances(run)
    if isinstance(wanted, leftovers.NotYet):
        return Outcome(facts=(wanted,), next_look=_LOOK_AGAIN)
    image_from = "spec" if run.spec.image else "operator"
    manifest = statefulset.stateful_set(
        run.names,
        run.spec,
        run.image,
        wanted,
        run.owner,
        image_from=image_from,
        claims=_templates(run, live),
    )
    await run.services.applier.apply(STATEFUL_SET, manifest)
    # What it waits for is no change of an object: an election, or a setting of Patroni's.
    settled = wanted == range(run.spec.instances) or len(wanted) == run.spec.instances == 1
    waits = bool(run.pods) if run.spec.hibernate else not settled or run.primary is None
    return Outcome(status={"image": run.image}, next_look=_LOOK_AGAIN if waits else None)


PARAMETERS = Concern("parameters", Needs.NOTHING, check_parameters, check_parameters, stable=True)
SURROUNDINGS = Concern("surroundings", Needs.NOTHING, reconcile_surroundings, stable=True)
INSTANCES = Concern("instances", Needs.NOTHING, reconcile_stateful_set, stable=True)
