"""Server-side apply, only where the live object doesn't hold the manifest already."""

from collections.abc import Mapping
from typing import Any

from medianest_operator import naming
from medianest_operator.api.conditions import Reason
from medianest_operator.api.quantity import to_number
from medianest_operator.errors import Permanent, Transient
from medianest_operator.kubernetes.cache import Cache
from medianest_operator.kubernetes.client import ApiError, KubernetesClient
from medianest_operator.kubernetes.existing import ExistingNames
from medianest_operator.kubernetes.kinds import SECRET, Kind, Manifest, digest

_UNKNOWN_FIELD = "field not declared in schema"
"""In the API server's answer of 500 to a server-side apply (structured-merge-diff, typed)."""
_MERGE_KEYS = ("name", "uid", "mountPath", "containerPort", "port", "ip")
"""By one of these the API server tells the elements of most lists apart (x-kubernetes-list-map-keys)."""
_OPEN_LISTS = frozenset({"tolerations"})
_TEXTS = frozenset({"data", "labels", "annotations"})
"""Maps of texts, none of which is a quantity."""
_UNHASHED = ("data",)
"""Fields of a Secret that stay out of its digest."""


def covers(live: object, wanted: object) -> bool:
    """Whether everything wanted is in the live object.

    Quantities compare by value, so that 1000m is 1. A list may hold more than what is wanted where its elements have
    names: a mutating webhook may have added some, and the API server merges such lists by their names.
    """
    if isinstance(wanted, Mapping):
        return isinstance(live, Mapping) and all(
            key in live and (_covers_field(key, live[key], wanted[key]) or _has_more(key, live[key], wanted[key]))
            for key in wanted
        )
    if isinstance(wanted, list):
        return isinstance(live, list) and _covers_list(live, wanted)
    if live == wanted:
        return True
    if isinstance(live, str) and isinstance(wanted, str) and live[:1].isdigit() and wanted[:1].isdigit():
        try:
            return to_number(live) == to_number(wanted)
        except ValueError:
            return False
    return False


def _covers_field(key: str, live: object, wanted: object) -> bool:
    if key in _TEXTS and isinstance(live, Mapping) and isinstance(wanted, Mapping):
        return all(key in live and live[key] == wanted[key] for key in wanted)
    return covers(live, wanted)


def _covers_list(live: list[Any], wanted: list[Any]) -> bool:
    if len(live) == len(wanted) and all(covers(have, want) for have, want in zip(live, wanted, strict=True)):
        return True
    key = next(
        (key for key in _MERGE_KEYS if wanted and all(isinstance(i, Mapping) and key in i for i in wanted)), None
    )
    if key is not None:
        by_key = {item[key]: item for item in live if isinstance(item, Mapping) and key in item}
        return all(item[key] in by_key and covers(by_key[item[key]], item) for item in wanted)
    return False


def _has_more(key: str, live: object, wanted: object) -> bool:
    """Whether a list without names holds what is wanted and more, in a field where that does no harm: cluster-wide
    webhooks add tolerations."""
    if key not in _OPEN_LISTS or not isinstance(live, list) or not isinstance(wanted, list):
        return False
    return all(any(covers(have, want) for have in live) for want in wanted)


def stamped(kind: Kind, manifest: Manifest) -> Manifest:
    """The manifest with its own digest, by which a field that left it is noticed."""
    body = {key: value for key, value in manifest.items() if not (kind == SECRET and key in _UNHASHED)}
    annotations = manifest["metadata"].get("annotations", {}) | {naming.ANNOTATION_APPLIED: digest(body)[:16]}
    return manifest | {"metadata": manifest["metadata"] | {"annotations": annotations}}


def is_as_applied(kind: Kind, live: Manifest, manifest: Manifest) -> bool:
    """Whether an object was made by this very manifest, whatever became of it since."""
    wanted = str(stamped(kind, manifest)["metadata"]["annotations"][naming.ANNOTATION_APPLIED])
    return wanted == (live["metadata"].get("annotations") or {}).get(naming.ANNOTATION_APPLIED)


class Applier:
    """Writes children."""

    def __init__(self, client: KubernetesClient, cache: Cache, existing: ExistingNames | None = None) -> None:
        self._client = client
        self._cache = cache
        self._existing = existing or ExistingNames(client)

    async def live(self, kind: Kind, namespace: str, name: str) -> Manifest | None:
        """An object as it is, also one that lost the labels by which it is watched; `None` where there is none.

        Raises:
            ApiError: that can't be known now.
        """
        known = self._cache.get(kind, namespace, name)
        if known is not None or not await self._existing.holds(kind, namespace, name):
            return known
        return await self._client.get(kind, namespace, name)

    async def apply(self, kind: Kind, manifest: Manifest) -> Manifest:
        """The live object, written only if it had to be.

        Raises Permanent where the API server refuses the object, or where its name is taken by somebody else's.
        """
        wanted = stamped(kind, manifest)
        metadata = wanted["metadata"]
        live = self._cache.get(kind, metadata["namespace"], metadata["name"])
        if live and covers(live, wanted):
            return live
        what = f"{kind.kind} {metadata['name']}"
        try:
            if live is None:
                unlabelled = await self.live(kind, metadata["namespace"], metadata["name"])
                if unlabelled is not None:
                    _refuse_foreign(kind, unlabelled, metadata)
            applied = await self._client.apply(kind, wanted)
        except ApiError as error:
            if "exceeded quota" in error.message:
                raise Permanent(Reason.QUOTA_EXCEEDED, f"{what}: {error.message}") from error
            if error.status == 403 and "being terminated" in error.message:
                raise Transient(Reason.DELETING, f"{what}: the namespace is being deleted") from error
            if error.refused or _UNKNOWN_FIELD in error.message:
                raise Permanent(Reason.OBJECT_REFUSED, f"{what} was refused: {error.message}") from error
            raise
        self._cache.put(kind, applied)
        return applied

    async def apply_status(self, kind: Kind, live: Mapping[str, Any], status: Mapping[str, Any]) -> bool:
        """Write an object's status. Returns whether it was: the object may be gone, or another one in its place.

        The version is what is written to: for the status of a custom resource the API server takes no notice of the UID
        (seen with 1.37; its statusStrategy brings the old metadata back), and a new object of the same name would get
        the status of the earlier one.

        Raises:
            Permanent: the definition of the kind refuses it.
        """
        wanted = live["metadata"]
        names = {key: wanted[key] for key in ("namespace", "name")}
        version = wanted.get("resourceVersion")
        while True:
            metadata = names | {"resourceVersion": version}
            body = {"apiVersion": kind.api_version, "kind": kind.kind, "metadata": metadata, "status": status}
            try:
                written = await self._client.apply(kind, body, "status")
            except ApiError as error:
                if error.status == 409:
                    current = await self._client.get(kind, names["namespace"], names["name"])
                    if current is None or current["metadata"]["uid"] != wanted["uid"]:
                        return False
                    version = current["metadata"]["resourceVersion"]
                    continue
                if error.status == 404:
                    return False
                if error.status == 422 or _UNKNOWN_FIELD in error.message:
                    raise Permanent(Reason.OUTDATED_DEFINITION, f"the status was refused: {error.message}") from error
                raise
            self._cache.put(kind, written)
            return True

    async def delete(self, kind: Kind, live: Manifest, **options: Any) -> None:
        """Delete a child."""
        metadata = live["metadata"]
        await self._client.delete(kind, metadata["namespace"], metadata["name"], uid=metadata["uid"], **options)


def _refuse_foreign(kind: Kind, found: Manifest, wanted: Mapping[str, Any]) -> None:
    """Raises Permanent unless an object is of the database by its label or its owner."""
    owners = {owner["uid"] for owner in wanted.get("ownerReferences", [])}
    labels, has = found["metadata"].get("labels") or {}, found["metadata"].get("ownerReferences") or []
    ours = labels.get(naming.LABEL_DATABASE) == wanted["labels"][naming.LABEL_DATABASE]
    if ours or owners & {owner["uid"] for owner in has}:
        return
    raise Permanent(
        Reason.NAME_TAKEN,
        f"{kind.kind} {wanted['name']} exists and does not belong to this database; rename or delete it, or give the"
        f" {naming.KIND} another name",
    )
