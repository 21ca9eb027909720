"""The Job that hardens: `medianest-dbctl harden` beside the server, over TLS, as the migrator role."""

from collections.abc import Mapping
from typing import Any

from medianest_operator import naming
from medianest_operator.api.database import DatabaseSpec
from medianest_operator.api.hardening import Hardening
from medianest_operator.controller.kinds import JOB
from medianest_operator.hardening.objects import own_objects
from medianest_operator.naming import Names
from medianest_operator.resources import secrets
from medianest_operator.resources.meta import Manifest, digest, manifest, restricted_container, restricted_pod
from medianest_operator.resources.migration_job import EXIT_FAILED


def hardening_digest(spec: DatabaseSpec, schema_version: str | None) -> str:
    """Changes with the options, with what this operator makes of them, and with the schema that they are applied to."""
    wanted = [item.comment for item in own_objects(spec.hardening, secrets.role_name(spec, secrets.APP))]
    return digest([spec.hardening.model_dump(mode="json"), wanted, schema_version])


def hardening_job(
    names: Names, spec: DatabaseSpec, image: str, options_digest: str, owner: Mapping[str, Any]
) -> Manifest:
    """One run of one set of options on one schema. Its name holds the digest, so that a restarted operator finds it."""
    migrator = names.role_secret(secrets.MIGRATOR.suffix)

    def from_secret(variable: str, key: str) -> dict[str, Any]:
        return {"name": variable, "valueFrom": {"secretKeyRef": {"name": migrator, "key": key}}}

    options = _options(spec.hardening)
    role = secrets.role_name(spec, secrets.APP)
    ca = {"key": naming.TLS_CA, "path": naming.TLS_CA}
    container = {
        "name": naming.CONTAINER_HARDEN,
        "image": image,
        "imagePullPolicy": spec.image_pull_policy,
        "command": [
            *(naming.DBCTL_BIN, "harden", "--options", options, "--app-role", role),
            *("--result-file", "/dev/termination-log"),
        ],
        "env": [
            {"name": "PGHOST", "value": names.service_fqdn(names.read_write_service)},
            {"name": "PGPORT", "value": str(naming.POSTGRES_PORT)},
            {"name": "PGDATABASE", "value": spec.database.name},
            {"name": "PGSSLMODE", "value": "verify-full"},
            {"name": "PGSSLROOTCERT", "value": f"/tls/{naming.TLS_CA}"},
            {"name": "PGAPPNAME", "value": "medianest-harden"},
            from_secret("PGUSER", "user"),
            from_secret("PGPASSWORD", "password"),
        ],
        "resources": {"requests": {"cpu": "50m", "memory": "64Mi"}, "limits": {"memory": "256Mi"}},
        "securityContext": restricted_container(),
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [
            {"name": "server-ca", "mountPath": "/tls", "readOnly": True},
            {"name": "tmp", "mountPath": "/tmp"},
        ],
    }
    pod: dict[str, Any] = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": restricted_pod(naming.POSTGRES_UID),
        "containers": [container],
        "volumes": [
            {"name": "server-ca", "secret": {"secretName": migrator, "items": [ca], "defaultMode": 0o444}},
            {"name": "tmp", "emptyDir": {"sizeLimit": "64Mi"}},
        ],
    }
    if spec.image_pull_secrets:
        pod["imagePullSecrets"] = [{"name": secret.name} for secret in spec.image_pull_secrets]
    if spec.scheduling.node_selector:
        pod["nodeSelector"] = spec.scheduling.node_selector
    if spec.scheduling.tolerations:
        pod["tolerations"] = [item.model_dump(by_alias=True, exclude_none=True) for item in spec.scheduling.tolerations]
    failed = {"containerName": naming.CONTAINER_HARDEN, "operator": "In", "values": [EXIT_FAILED]}
    return manifest(
        JOB,
        names,
        names.hardening_job(options_digest),
        owner,
        component=naming.COMPONENT_HARDENING,
        spec={
            "backoffLimit": 6,
            "podReplacementPolicy": "Failed",
            "podFailurePolicy": {
                "rules": [
                    {"action": "FailJob", "onExitCodes": failed},
                    {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
                ]
            },
            "template": {"metadata": {"labels": names.labels(naming.COMPONENT_HARDENING)}, "spec": pod},
        },
    )


def _options(options: Hardening) -> str:
    """As JSON. A `$(NAME)` in a value is a person's text, not a variable for Kubernetes to fill in: `$$` stands for `$`
    in a container's command (core/v1 Container)."""
    return options.model_dump_json(by_alias=True).replace("$", "$$")
