"""Server-side apply, only where the live object doesn't hold the manifest already."""

from collections.abc import Mapping
from typing import Any

from medianest_operator import naming
from medianest_operator.api.conditions import Reason
from medianest_operator.api.quantity import to_number
from medianest_operator.errors import Permanent, Transient
from medianest_operator.kubernetes.cache import Cache
from medianest_operator.kubernetes.client import ApiError, KubernetesClient
from medianest_operator.kubernetes.kinds import SECRET, Kind, Manifest, digest

_UNHASHED = ("data",)
"""Fields of a Secret that stay out of its digest."""


def covers(live: object, wanted: object) -> bool:
    """Whether everything wanted is in the live object; quantities by value, so that 1000m is 1."""
    if isinstance(wanted, Mapping):
        return isinstance(live, Mapping) and all(key in live and covers(live[key], wanted[key]) for key in wanted)
    if isinstance(wanted, list):
        if not isinstance(live, list) or len(live) != len(wanted):
            return False
        return all(covers(have, want) for have, want in zip(live, wanted, strict=True))
    if live == wanted:
        return True
    if isinstance(live, str) and isinstance(wanted, str) and live[:1].isdigit() and wanted[:1].isdigit():
        try:
            return to_number(live) == to_number(wanted)
        except ValueError:
            return False
    return False


def stamped(kind: Kind, manifest: Manifest) -> Manifest:
    """The manifest with its own digest, by which a field that left it is noticed."""
    body = {key: value for key, value in manifest.items() if not (kind == SECRET and key in _UNHASHED)}
    annotations = manifest["metadata"].get("annotations", {}) | {naming.ANNOTATION_APPLIED: digest(body)[:16]}
    return manifest | {"metadata": manifest["metadata"] | {"annotations": annotations}}


class Applier:
    """Writes children."""

    def __init__(self, client: KubernetesClient, cache: Cache) -> None:
        self._client = client
        self._cache = cache

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
                await self._refuse_foreign(kind, metadata)
            applied = await self._client.apply(kind, wanted)
        except ApiError as error:
            if "exceeded quota" in error.message:
                raise Permanent(Reason.QUOTA_EXCEEDED, f"{what}: {error.message}") from error
            if error.status == 403 and "being terminated" in error.message:
                raise Transient(Reason.DELETING, f"{what}: the namespace is being deleted") from error
            # Server-side apply answers 500 for a field that the kind doesn't have (structured-merge-diff, typed).
            if error.refused or "field not declared in schema" in error.message:
                raise Permanent(Reason.OBJECT_REFUSED, f"{what} was refused: {error.message}") from error
            raise
        self._cache.put(kind, applied)
        return applied

    async def apply_status(self, kind: Kind, live: Mapping[str, Any], status: Mapping[str, Any]) -> bool:
        """Write an object's status. Returns whether it was: the object may be gone, or another one in its place."""
        metadata = {key: live["metadata"][key] for key in ("namespace", "name", "uid")}
        body = {"apiVersion": kind.api_version, "kind": kind.kind, "metadata": metadata, "status": status}
        try:
            written = await self._client.apply(kind, body, "status")
        except ApiError as error:
            if error.status in {404, 409}:
                return False
            raise
        self._cache.put(kind, written)
        return True

    async def _refuse_foreign(self, kind: Kind, metadata: Mapping[str, Any]) -> None:
        found = await self._client.get(kind, metadata["namespace"], metadata["name"])
        if found is None:
            return
        labels = found["metadata"].get("labels", {})
        if labels.get(naming.LABEL_DATABASE) != metadata["labels"][naming.LABEL_DATABASE]:
            raise Permanent(
                Reason.NAME_TAKEN,
                f"{kind.kind} {metadata['name']} exists and isn't of this database; rename or delete it, or give the "
                f"{naming.KIND} another name",
            )

    async def delete(self, kind: Kind, live: Manifest, **options: Any) -> None:
        """Delete a child."""
        metadata = live["metadata"]
        await self._client.delete(kind, metadata["namespace"], metadata["name"], uid=metadata["uid"], **options)
