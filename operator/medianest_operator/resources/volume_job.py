"""The Job that reads one kept volume: `medianest-dbctl read-volume`, which mounts it read-only and reaches nothing."""

from collections.abc import Mapping
from typing import Any

from medianest_operator import naming
from medianest_operator.api.database import DatabaseSpec
from medianest_operator.kubernetes.kinds import JOB, Manifest
from medianest_operator.naming import Names
from medianest_operator.resources.dbctl_job import RESULT_FILE, TEMPORARY_FILES, job_pod, job_spec
from medianest_operator.resources.meta import manifest, restricted_container


def volume_job(
    names: Names, spec: DatabaseSpec, image: str, name: str, ordinal: int, owner: Mapping[str, Any]
) -> Manifest:
    """Read the volume of one instance. It runs where the volume is."""
    mounts = {naming.VOLUME_DATA: naming.DATA_MOUNT}
    if spec.wal_storage is not None:
        mounts[naming.VOLUME_WAL] = naming.WAL_MOUNT
    container = {
        "name": naming.CONTAINER_READ_VOLUME,
        "image": image,
        "imagePullPolicy": spec.image_pull_policy,
        "command": [naming.DBCTL_BIN, "read-volume", naming.DATA_DIRECTORY, "--result-file", RESULT_FILE],
        "resources": {"requests": {"cpu": "50m", "memory": "64Mi"}, "limits": {"memory": "256Mi"}},
        "securityContext": restricted_container(),
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [
            {"name": "tmp", "mountPath": "/tmp"},
            *({"name": volume, "mountPath": path, "readOnly": True} for volume, path in mounts.items()),
        ],
    }
    claims = [
        {"name": volume, "persistentVolumeClaim": {"claimName": names.claim(volume, ordinal)}} for volume in mounts
    ]
    pod = job_pod(spec, container, volumes=[TEMPORARY_FILES, *claims])
    return manifest(
        JOB,
        names,
        name,
        owner,
        component=naming.COMPONENT_VOLUME,
        spec=job_spec(names, naming.COMPONENT_VOLUME, pod, fails_for_good=[naming.CONTAINER_READ_VOLUME]),
    )
