"""The objects around and under the instances."""

import asyncio

from medianest_operator import naming
from medianest_operator.kubernetes.kinds import BY_KIND, DISRUPTION_BUDGET, STATEFUL_SET
from medianest_operator.reconcile.context import Run
from medianest_operator.resources import patroni, rbac, services, statefulset


async def reconcile_surroundings(run: Run) -> None:
    """Access, Services, Patroni's file, and the disruption budget (only where there is a second instance)."""
    names, owner, applier = run.names, run.owner, run.services.applier
    account, role, binding = rbac.access(names, owner)
    manifests = [
        account,
        *services.services(names, owner),
        patroni.config_map(names, run.spec, owner),
    ]
    if run.spec.instances > 1:
        manifests.append(statefulset.disruption_budget(names, owner))
    else:
        for live in run.services.cache.of_database(DISRUPTION_BUDGET, run.key):
            await applier.delete(DISRUPTION_BUDGET, live)
    # A binding is refused while its role is missing (the API server looks for what it would grant).
    await applier.apply(BY_KIND[role["kind"]], role)
    manifests.append(binding)
    await asyncio.gather(*(applier.apply(BY_KIND[manifest["kind"]], manifest) for manifest in manifests))


def live_replicas(run: Run) -> int | None:
    """The replicas that the StatefulSet asks for; None where there is none."""
    live = run.stateful_set
    return None if live is None else int(live["spec"]["replicas"])


def wanted_replicas(run: Run) -> int:
    """How many pods to ask for: none while hibernated; never fewer while one that would go is the primary."""
    if run.spec.hibernate:
        return 0
    primary, asked = run.primary, live_replicas(run)
    if primary and asked and run.names.ordinal(primary.name) >= run.spec.instances:
        return max(asked, run.spec.instances)
    return run.spec.instances


async def reconcile_stateful_set(run: Run) -> None:
    """The instances themselves."""
    manifest = statefulset.stateful_set(run.names, run.spec, run.image, wanted_replicas(run), run.owner)
    annotations = {naming.ANNOTATION_IMAGE_FROM: "spec" if run.spec.image else "operator"}
    manifest["metadata"]["annotations"] = annotations
    await run.services.applier.apply(STATEFUL_SET, manifest)
