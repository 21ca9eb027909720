"""The controller's own copy of the objects that it watches.

Own, because kopf's index keeps an object whose deletion it missed, and its readiness gate doesn't scale.
"""

import json
from collections.abc import Iterable, Iterator

from medianest_operator import naming
from medianest_operator.kubernetes.kinds import BACKUP, DATABASE, POD, Kind, Manifest
from medianest_operator.naming import Key

_TICKING_MEMBER_FIELDS = ("xlog_location", "replay_lsn", "receive_lsn")


def database_key(kind: Kind, manifest: Manifest) -> Key | None:
    """The database that an object belongs to, by its label; None where it belongs to none."""
    metadata = manifest["metadata"]
    if kind == DATABASE:
        return metadata["namespace"], metadata["name"]
    if kind == BACKUP:
        return metadata["namespace"], manifest["spec"]["database"]
    name = metadata.get("labels", {}).get(naming.LABEL_DATABASE)
    return (metadata["namespace"], name) if name else None


def _slim(kind: Kind, manifest: Manifest) -> Manifest:
    """Without what nobody reads, and without what ticks: Patroni writes its WAL position into its pod."""
    metadata = {key: value for key, value in manifest["metadata"].items() if key != "managedFields"}
    manifest = manifest | {"metadata": metadata}
    annotations = metadata.get("annotations", {})
    if kind == POD and naming.PATRONI_STATUS_ANNOTATION in annotations:
        try:
            member = json.loads(annotations[naming.PATRONI_STATUS_ANNOTATION])
        except ValueError:
            member = {}
        for field in _TICKING_MEMBER_FIELDS:
            member.pop(field, None)
        metadata["annotations"] = annotations | {naming.PATRONI_STATUS_ANNOTATION: json.dumps(member, sort_keys=True)}
    return manifest


def _version(manifest: Manifest) -> int:
    return int(manifest["metadata"].get("resourceVersion", "0"))


def _content(manifest: Manifest) -> Manifest:
    return manifest | {"metadata": manifest["metadata"] | {"resourceVersion": ""}}


class Cache:
    """Objects by kind and name, and by the database they belong to."""

    def __init__(self) -> None:
        self._objects: dict[Kind, dict[Key, Manifest]] = {}
        self._children: dict[Key, dict[Kind, set[str]]] = {}

    def get(self, kind: Kind, namespace: str, name: str) -> Manifest | None:
        return self._objects.get(kind, {}).get((namespace, name))

    def of_database(self, kind: Kind, key: Key) -> list[Manifest]:
        """All objects of `kind` that belong to the database, by name."""
        names = self._children.get(key, {}).get(kind, set())
        return [self._objects[kind][(key[0], name)] for name in sorted(names)]

    def databases(self) -> Iterator[Key]:
        return iter(list(self._objects.get(DATABASE, {})))

    def put(self, kind: Kind, manifest: Manifest) -> bool:
        """Keep an object unless a newer one is known. Returns whether anything in it is new."""
        manifest = _slim(kind, manifest)
        metadata = manifest["metadata"]
        name = metadata["namespace"], metadata["name"]
        known = self._objects.setdefault(kind, {}).get(name)
        if known and known["metadata"]["uid"] == metadata["uid"] and _version(known) > _version(manifest):
            return False
        self._objects[kind][name] = manifest
        key = database_key(kind, manifest)
        if key and kind != DATABASE:
            self._children.setdefault(key, {}).setdefault(kind, set()).add(name[1])
        return known is None or _content(known) != _content(manifest)

    def remove(self, kind: Kind, manifest: Manifest) -> None:
        """Forget an object, unless another one of its name took its place."""
        metadata = manifest["metadata"]
        name = metadata["namespace"], metadata["name"]
        known = self._objects.get(kind, {}).get(name)
        if known is None or known["metadata"].get("uid") != metadata.get("uid", known["metadata"].get("uid")):
            return
        del self._objects[kind][name]
        key = database_key(kind, known)
        if key and kind != DATABASE:
            self._children.get(key, {}).get(kind, set()).discard(name[1])

    def replace(self, kind: Kind, listed: Iterable[Manifest]) -> set[Key]:
        """Take over a full list. Returns the databases for which something changed."""
        touched: set[Key] = set()
        present: set[Key] = set()
        for manifest in listed:
            present.add((manifest["metadata"]["namespace"], manifest["metadata"]["name"]))
            key = database_key(kind, manifest)
            if self.put(kind, manifest) and key:
                touched.add(key)
        for name in [name for name in self._objects.get(kind, {}) if name not in present]:
            ghost = self._objects[kind][name]
            self.remove(kind, ghost)
            key = database_key(kind, ghost)
            if key:
                touched.add(key)
        return touched
