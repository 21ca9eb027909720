"""How a Job's pod reaches the repositories: what `medianest-dbctl` is told, and the volumes that this needs. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from medianest_operator import naming
from medianest_operator.api.backup import Repository, S3Repository, VolumeRepository
from medianest_operator.api.database import DatabaseSpec
from medianest_operator.api.model import LocalReference, OnDelete
from medianest_operator.kubernetes.kinds import CLAIM, Manifest
from medianest_operator.naming import Names
from medianest_operator.resources.meta import manifest


@dataclass(frozen=True)
class Access:
    """What a Job needs for its repositories.

    Attributes:
        arguments: `--repository` for each.
        volumes: of the pod.
        mounts: of the container.
    """

    arguments: tuple[str, ...]
    volumes: tuple[Manifest, ...]
    mounts: tuple[Manifest, ...]


def access(names: Names, repositories: Iterable[Repository], *, starts_without: bool = False) -> Access:
    """What a Job needs to write and read in these repositories.

    Args:
        starts_without: its pod doesn't wait for Secrets that are missing: it can do with the other repositories.
    """
    arguments: list[str] = []
    volumes: list[Manifest] = []
    mounts: list[Manifest] = []
    for repository in repositories:
        folder = f"{naming.REPOSITORY_MOUNT}/{repository.name}"
        if repository.volume is not None:
            claim = {"claimName": claim_name(names, repository.name, repository.volume)}
            volumes.append({"name": _volume(repository, "data"), "persistentVolumeClaim": claim})
            mounts.append({"name": _volume(repository, "data"), "mountPath": f"{folder}/data"})
            url = f"file://{folder}/data"
        else:
            assert repository.s3 is not None
            url = _s3_url(repository.s3, folder)
            for what, secret in _secrets(repository.s3).items():
                name = _volume(repository, what)
                source = {"secretName": secret.name, "defaultMode": 0o440}
                volumes.append({"name": name, "secret": source | ({"optional": True} if starts_without else {})})
                mounts.append({"name": name, "mountPath": f"{folder}/{what}", "readOnly": True})
        arguments += ["--repository", f"{repository.name}={url}"]
    return Access(tuple(arguments), tuple(volumes), tuple(mounts))


def identity(secret: LocalReference | None) -> Access:
    """What a Job needs to read encrypted backups; nothing where there is no key."""
    if secret is None:
        return Access((), (), ())
    return Access(
        ("--identity-file", f"{naming.IDENTITY_MOUNT}/{naming.IDENTITY_KEY}"),
        ({"name": "identity", "secret": {"secretName": secret.name, "defaultMode": 0o440}},),
        ({"name": "identity", "mountPath": naming.IDENTITY_MOUNT, "readOnly": True},),
    )


def signing(secret: LocalReference | None) -> Access:
    """What a Job needs to sign what it stores, and to believe only what is signed; nothing where there is no key."""
    if secret is None:
        return Access((), (), ())
    return Access(
        ("--signing-keys", naming.SIGNING_MOUNT),
        ({"name": "signing", "secret": {"secretName": secret.name, "defaultMode": 0o440}},),
        ({"name": "signing", "mountPath": naming.SIGNING_MOUNT, "readOnly": True},),
    )


def claim_name(names: Names, repository: str, volume: VolumeRepository) -> str:
    """The claim of a repository on a volume."""
    return volume.claim_name or names.backup_claim(repository)


def claims(names: Names, spec: DatabaseSpec, owner: Mapping[str, Any]) -> list[Manifest]:
    """The volumes that the operator makes. Backups outlive the object unless the spec says otherwise."""
    made = []
    for repository in spec.backup.repositories:
        volume = repository.volume
        if volume is None or volume.claim_name is not None:
            continue
        content: Manifest = {
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": volume.size or spec.storage.size}},
        }
        if volume.storage_class_name:
            content["storageClassName"] = volume.storage_class_name
        made.append(
            manifest(
                CLAIM,
                names,
                names.backup_claim(repository.name),
                owner if volume.on_delete is OnDelete.DELETE else None,
                component=naming.COMPONENT_REPOSITORY,
                spec=content,
            )
        )
    return made


def secret_names(repositories: Iterable[Repository]) -> set[str]:
    """The Secrets without which repositories can't be reached."""
    return {secret.name for item in repositories if item.s3 for secret in _secrets(item.s3).values()}


def _secrets(s3: S3Repository) -> dict[str, LocalReference]:
    found = {"credentials": s3.credentials_secret, "ca": s3.ca_secret}
    return {what: secret for what, secret in found.items() if secret is not None}


def _volume(repository: Repository, what: str) -> str:
    return f"{what}-{repository.name}"


def _s3_url(s3: S3Repository, folder: str) -> str:
    options = {"region": s3.region, "path_style": str(s3.path_style).lower()}
    if s3.endpoint:
        options["endpoint"] = s3.endpoint
    if s3.credentials_secret:
        options["credentials"] = f"{folder}/credentials"
    if s3.ca_secret:
        options["ca"] = f"{folder}/ca/{naming.TLS_CA}"
    return f"s3://{s3.bucket}{f'/{s3.prefix}' if s3.prefix else ''}?{urlencode(options, safe='/:')}"
