"""What every Job and CronJob that runs `medianest-dbctl` has in common: a restricted pod that reaches the primary over
TLS as one of the login roles, and a Job that tries again what may pass the next time, and only that.

From the inside out: `dbctl_container`, `dbctl_pod` (which also has the volumes that the container mounts), `job_spec`.
All are pure, and what they return is the caller's own to add to.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from medianest_operator import naming
from medianest_operator.api.database import DatabaseSpec
from medianest_operator.kubernetes.kinds import Manifest
from medianest_operator.naming import Names
from medianest_operator.postgres.logins import LoginRole
from medianest_operator.resources.meta import restricted_container, restricted_pod
from medianest_operator.resources.sandbox import SKIPPED_BY

EXIT_FAILED = 1
"""medianest-dbctl: it failed, and would fail again."""
RESULT_FILE = "/dev/termination-log"
"""Where a container leaves its result for the operator (core/v1 Container, `terminationMessagePath`)."""
LOST_NODE_SECONDS = 10
"""How long a pod stays on a node that no longer answers. Kubernetes' own tolerations of that are five minutes; a run
that locks writers out can't wait so long, nor can a run that others wait for."""
TEMPORARY_FILES: Manifest = {"name": "tmp", "emptyDir": {"sizeLimit": "64Mi"}}
"""The volume for `/tmp`."""
_SERVER_CA = "/tls"


def libpq_environment(
    names: Names, spec: DatabaseSpec, role: LoginRole, application_name: str, dbname: str | None = None
) -> list[Manifest]:
    """The variables with which libpq connects to the primary as this role (PostgreSQL manual, 34.15). They name the
    CA's file in the `server-ca` volume."""
    secret = names.role_secret(role.suffix)
    values = {
        "PGHOST": names.service_fqdn(names.read_write_service),
        "PGPORT": str(naming.POSTGRES_PORT),
        "PGDATABASE": dbname or spec.database.name,
        "PGSSLMODE": "verify-full",
        "PGSSLROOTCERT": f"{_SERVER_CA}/{naming.TLS_CA}",
        "PGAPPNAME": application_name,
    }
    login = {"PGUSER": "user", "PGPASSWORD": "password"}
    return [
        *({"name": name, "value": value} for name, value in values.items()),
        *({"name": name, "valueFrom": {"secretKeyRef": {"name": secret, "key": key}}} for name, key in login.items()),
    ]


def dbctl_container(
    names: Names,
    spec: DatabaseSpec,
    image: str,
    *,
    name: str,
    role: LoginRole,
    application_name: str,
    arguments: Sequence[str],
    resources: Mapping[str, Any],
    dbname: str | None = None,
    env: Iterable[Manifest] = (),
    mounts: Iterable[Manifest] = (),
) -> Manifest:
    """One `medianest-dbctl` with these arguments, connected as this role.

    Args:
        name: the container's; `job_spec` wants it again where its failure is final.
        application_name: what pg_stat_activity shows of its sessions.
        arguments: the command and its options. `$(NAME)` in one is a variable to Kubernetes, and `$$` a plain `$`.
        dbname: the database that it connects to. Default: the application's.
        env: besides libpq's.
        mounts: besides the server's CA and `/tmp`.
    """
    return {
        "name": name,
        "image": image,
        "imagePullPolicy": spec.image_pull_policy,
        "command": [naming.DBCTL_BIN, *arguments],
        "env": [*libpq_environment(names, spec, role, application_name, dbname), *env],
        "resources": dict(resources),
        "securityContext": restricted_container(),
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [
            {"name": "server-ca", "mountPath": _SERVER_CA, "readOnly": True},
            {"name": "tmp", "mountPath": "/tmp"},
            *mounts,
        ],
    }


def dbctl_pod(
    names: Names,
    spec: DatabaseSpec,
    container: Manifest,
    *,
    role: LoginRole,
    volumes: Iterable[Manifest] = (),
    init_containers: Sequence[Manifest] = (),
    grace_seconds: int | None = None,
) -> Manifest:
    """The pod of one `dbctl_container`: restricted, without a token, scheduled and pulled as the spec says, and soon
    gone from a lost node.

    Args:
        role: as in the container; its Secret holds the server's CA.
        volumes: besides the server's CA and `/tmp`.
        grace_seconds: how long it may take to stop. Default: Kubernetes' own 30.
    """
    ca = {"key": naming.TLS_CA, "path": naming.TLS_CA}
    secret = names.role_secret(role.suffix)
    server_ca = {"name": "server-ca", "secret": {"secretName": secret, "items": [ca], "defaultMode": 0o444}}
    pod = job_pod(spec, container, volumes=[server_ca, TEMPORARY_FILES, *volumes])
    if init_containers:
        pod["initContainers"] = list(init_containers)
    if grace_seconds is not None:
        pod["terminationGracePeriodSeconds"] = grace_seconds
    return pod


def job_pod(spec: DatabaseSpec, container: Manifest, *, volumes: Iterable[Manifest]) -> Manifest:
    """The same pod for a container that doesn't reach the database."""
    pod: Manifest = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": restricted_pod(naming.POSTGRES_UID),
        "containers": [container],
        "volumes": list(volumes),
        "tolerations": _tolerations(spec),
    }
    if spec.image_pull_secrets:
        pod["imagePullSecrets"] = [{"name": item.name} for item in spec.image_pull_secrets]
    if spec.scheduling.node_selector:
        pod["nodeSelector"] = spec.scheduling.node_selector
    return pod


def _tolerations(spec: DatabaseSpec) -> list[Manifest]:
    own = [item.model_dump(by_alias=True, exclude_none=True) for item in spec.scheduling.tolerations]
    lost_node = [
        {
            "key": f"node.kubernetes.io/{what}",
            "operator": "Exists",
            "effect": "NoExecute",
            "tolerationSeconds": LOST_NODE_SECONDS,
        }
        for what in ("unreachable", "not-ready")
    ]
    return [*own, *lost_node]


def job_spec(names: Names, component: str, pod: Manifest, *, fails_for_good: Iterable[str]) -> Manifest:
    """The spec of a Job, and of a CronJob's `jobTemplate`. A pod that failed is replaced, never beside it, up to six
    times; a pod that was evicted doesn't count.

    Args:
        component: the pods' label.
        fails_for_good: the pod's containers whose exit with EXIT_FAILED no retry helps.
    """
    final = [
        {
            "action": "FailJob",
            "onExitCodes": {"containerName": container, "operator": "In", "values": [EXIT_FAILED]},
        }
        for container in fails_for_good
    ]
    metadata: Manifest = {"labels": names.labels(component)}
    if any(item["name"] == naming.CONTAINER_SANDBOX for item in pod.get("initContainers", [])):
        metadata["annotations"] = dict.fromkeys(SKIPPED_BY, naming.CONTAINER_SANDBOX)
    disrupted = {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    return {
        "backoffLimit": 6,
        "podReplacementPolicy": "Failed",
        "podFailurePolicy": {"rules": [*final, disrupted]},
        "template": {"metadata": metadata, "spec": pod},
    }
