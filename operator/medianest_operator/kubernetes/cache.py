"""The controller's own copy of the objects that it watches.

Own, because kopf's index keeps an object whose deletion it missed, and its readiness gate doesn't scale.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import pydantic_core

from medianest_operator import naming
from medianest_operator.kubernetes.kinds import (
    BACKUP,
    CHILDREN,
    CLAIM,
    DATABASE,
    JOB,
    OPERATION,
    POD,
    STATEFUL_SET,
    Kind,
    Manifest,
)
from medianest_operator.naming import Key

_TICKING_MEMBER_FIELDS: Final = ("xlog_location", "replay_lsn", "receive_lsn")
_POD_METADATA: Final = (
    "namespace", "name", "uid", "resourceVersion", "creationTimestamp", "deletionTimestamp", "labels",
    "ownerReferences",
)  # fmt: skip
_POD_STATUS: Final = ("podIP", "phase", "conditions", "containerStatuses", "initContainerStatuses")
_POD_ANNOTATIONS: Final = (naming.ANNOTATION_POD_INPUTS, naming.ANNOTATION_POD_INPUTS_DOCUMENT)
_SELDOM_READ: Final = frozenset(CHILDREN) - {CLAIM, JOB, POD, STATEFUL_SET}
_REMEMBERED_DELETIONS: Final = 20_000


def database_key(kind: Kind, manifest: Manifest) -> Key | None:
    """The database that an object belongs to, by its label; None where it belongs to none."""
    metadata = manifest["metadata"]
    if kind == DATABASE:
        return metadata["namespace"], metadata["name"]
    if kind in {BACKUP, OPERATION}:
        name = (manifest.get("spec") or {}).get("database")
    else:
        name = (metadata.get("labels") or {}).get(naming.LABEL_DATABASE)
    return (metadata["namespace"], name) if name else None


def _slim(kind: Kind, manifest: Manifest) -> Manifest:
    """Without what nobody reads, and without what ticks: Patroni writes its WAL position into its pod."""
    if kind == POD:
        return _slim_pod(manifest)
    metadata = {key: value for key, value in manifest["metadata"].items() if key != "managedFields"}
    return manifest | {"metadata": metadata}


def _slim_pod(manifest: Manifest) -> Manifest:
    metadata = {key: manifest["metadata"][key] for key in _POD_METADATA if key in manifest["metadata"]}
    annotations = manifest["metadata"].get("annotations") or {}
    kept = {key: value for key, value in annotations.items() if key in _POD_ANNOTATIONS}
    if naming.PATRONI_STATUS_ANNOTATION in annotations:
        member = _member(annotations[naming.PATRONI_STATUS_ANNOTATION])
        kept[naming.PATRONI_STATUS_ANNOTATION] = json.dumps(member, sort_keys=True)
    spec, status = manifest.get("spec") or {}, manifest.get("status") or {}
    containers = [{key: item.get(key) for key in ("name", "image")} for item in spec.get("containers") or []]
    return {
        "apiVersion": manifest.get("apiVersion", POD.api_version),
        "kind": POD.kind,
        "metadata": metadata | {"annotations": kept},
        "spec": {"containers": containers} | ({"nodeName": spec["nodeName"]} if "nodeName" in spec else {}),
        "status": {key: status[key] for key in _POD_STATUS if key in status},
    }


def _member(text: str) -> Mapping[str, Any]:
    """What Patroni wrote; nothing where somebody else wrote something else there."""
    try:
        member = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(member, dict):
        return {}
    return {key: value for key, value in member.items() if key not in _TICKING_MEMBER_FIELDS}


def _version(text: object) -> int | None:
    """A resource version as a number, which etcd's are; `None` for one that isn't (another store)."""
    return int(text) if isinstance(text, str) and text.isascii() and text.isdigit() else None


def _is_older(one: object, other: object) -> bool:
    left, right = _version(one), _version(other)
    return left is not None and right is not None and left < right


def _content(manifest: Manifest) -> Manifest:
    return manifest | {"metadata": manifest["metadata"] | {"resourceVersion": ""}}


class _Kept:
    """An object of the cache: packed into a quarter of the memory where its kind is seldom read. Never changed.

    Attributes:
        version: its resource version.
        key: the database that it belongs to.
    """

    __slots__ = ("_packed", "_whole", "key", "uid", "version")

    def __init__(self, kind: Kind, manifest: Manifest) -> None:
        metadata = manifest["metadata"]
        self.uid: str | None = metadata.get("uid")
        self.version: str | None = metadata.get("resourceVersion")
        self.key = database_key(kind, manifest)
        self._whole = _slim(kind, manifest)
        self._packed: bytes | None = None
        if kind in _SELDOM_READ:
            self._packed = zlib.compress(pydantic_core.to_json(_content(self._whole)), level=1)
            self._whole = {}

    @property
    def manifest(self) -> Manifest:
        if self._packed is None:
            return self._whole
        manifest: Manifest = pydantic_core.from_json(zlib.decompress(self._packed))
        manifest["metadata"]["resourceVersion"] = self.version
        return manifest

    def equals(self, other: _Kept) -> bool:
        """Whether all but their versions is the same."""
        if self._packed is not None or other._packed is not None:
            return self._packed == other._packed
        return _content(self._whole) == _content(other._whole)


class Cache:
    """Objects by kind and name, and by the database they belong to."""

    def __init__(self) -> None:
        self._objects: dict[Kind, dict[Key, _Kept]] = {}
        self._children: dict[Key, dict[Kind, set[str]]] = {}
        self._revisions: dict[Key, int] = {}
        self._changes = 0
        # By uid, the version at which an object went: a list that was read before would bring it back otherwise. In a
        # newer one it does come back: it had only lost the label by which it is watched.
        self._deleted: dict[str, object] = {}

    def get(self, kind: Kind, namespace: str, name: str) -> Manifest | None:
        """An object by its name."""
        kept = self._objects.get(kind, {}).get((namespace, name))
        return kept.manifest if kept else None

    def of_database(self, kind: Kind, key: Key) -> list[Manifest]:
        """All objects of `kind` that belong to the database, by name."""
        names = self._children.get(key, {}).get(kind, set())
        objects = self._objects.get(kind, {})
        return [objects[(key[0], name)].manifest for name in sorted(names) if (key[0], name) in objects]

    def all(self, kind: Kind) -> Iterator[Manifest]:
        """Every object of a kind."""
        return (kept.manifest for kept in list(self._objects.get(kind, {}).values()))

    def databases(self) -> Iterator[Key]:
        """The databases that there are."""
        return iter(list(self._objects.get(DATABASE, {})))

    def revision(self, key: Key) -> int:
        """A number that changes whenever the database or anything of it does."""
        return self._revisions.get(key, 0)

    def put(self, kind: Kind, manifest: Manifest) -> set[Key]:
        """Keep an object unless a newer one is known. Returns the databases for which something changed."""
        metadata = manifest["metadata"]
        name = metadata["namespace"], metadata["name"]
        if metadata.get("uid") in self._deleted:
            if not _is_older(self._deleted[metadata["uid"]], metadata.get("resourceVersion")):
                return set()
            del self._deleted[metadata["uid"]]
        known = self._objects.setdefault(kind, {}).get(name)
        version = metadata.get("resourceVersion")
        # The same version again is mostly the echo of what was written here.
        again = known is not None and known.uid == metadata.get("uid") and version is not None
        if known and again and (version == known.version or _is_older(version, known.version)):
            return set()
        kept = self._objects[kind][name] = _Kept(kind, manifest)
        key, before = kept.key, known.key if known else None
        if kind != DATABASE:
            if before is not None and before != key:
                self._forget_child(before, kind, name[1])
            if key is not None:
                self._children.setdefault(key, {}).setdefault(kind, set()).add(name[1])
        if known is not None and known.equals(kept):
            return set()
        return self._touch(before, key)

    def remove(self, kind: Kind, manifest: Manifest, version: str | None = None) -> set[Key]:
        """Forget an object, unless another one of its name took its place. Returns the databases it belonged to.

        Args:
            version: at which it was gone; `None`: the manifest's own.
        """
        metadata = manifest["metadata"]
        if uid := metadata.get("uid"):
            self._deleted[uid] = version or metadata.get("resourceVersion")
            while len(self._deleted) > _REMEMBERED_DELETIONS:
                del self._deleted[next(iter(self._deleted))]
        name = metadata["namespace"], metadata["name"]
        known = self._objects.get(kind, {}).get(name)
        if known is None or known.uid != metadata.get("uid", known.uid):
            return set()
        del self._objects[kind][name]
        key = known.key
        if key and kind != DATABASE:
            self._forget_child(key, kind, name[1])
        return self._touch(key)

    def replace(self, kind: Kind, listed: Iterable[Manifest], version: str, namespace: str | None = None) -> set[Key]:
        """Take over a full list. Returns the databases for which something changed.

        What is newer than the list stays as it is: it was written, or seen by a watch, while the list was read.

        Args:
            version: the list's resource version.
            namespace: the one that was listed; `None`: all.
        """
        touched: set[Key] = set()
        present: set[Key] = set()
        for manifest in listed:
            present.add((manifest["metadata"]["namespace"], manifest["metadata"]["name"]))
            touched |= self.put(kind, manifest)
        for name, known in list(self._objects.get(kind, {}).items()):
            gone = name not in present and namespace in {None, name[0]}
            if gone and not _is_older(version, known.version):
                touched |= self.remove(kind, known.manifest, version)
        return touched

    def drop_namespace(self, namespace: str) -> set[Key]:
        """Forget everything of a namespace that can't be read any more. Returns the databases that were there."""
        touched: set[Key] = set()
        for kind, objects in self._objects.items():
            for known in [known for name, known in objects.items() if name[0] == namespace]:
                touched |= self.remove(kind, known.manifest)
        return touched

    def _forget_child(self, key: Key, kind: Kind, name: str) -> None:
        kinds = self._children.get(key, {})
        kinds.get(kind, set()).discard(name)
        if not kinds.get(kind, True):
            del kinds[kind]
        if not kinds:
            self._children.pop(key, None)

    def _touch(self, *keys: Key | None) -> set[Key]:
        touched = {key for key in keys if key is not None}
        for key in touched:
            self._changes += 1
            if key in self._children or key in self._objects.get(DATABASE, {}):
                self._revisions[key] = self._changes
            else:
                # Labels may name any number of databases that there never were.
                self._revisions.pop(key, None)
        return touched
