"""The Job that hardens: `medianest-dbctl harden` beside the server, over TLS, as the migrator role."""

from collections.abc import Mapping
from typing import Any

from medianest_operator import naming
from medianest_operator.api.database import DatabaseSpec
from medianest_operator.api.hardening import Hardening
from medianest_operator.kubernetes.kinds import JOB, Manifest
from medianest_operator.naming import Names
from medianest_operator.postgres import logins
from medianest_operator.resources.dbctl_job import RESULT_FILE, dbctl_container, dbctl_pod, job_spec
from medianest_operator.resources.meta import manifest


def hardening_job(
    names: Names, spec: DatabaseSpec, image: str, options_digest: str, owner: Mapping[str, Any]
) -> Manifest:
    """One run of one set of options on one schema. Its name holds the digest, so that a restarted operator finds it."""
    container = dbctl_container(
        names,
        spec,
        image,
        name=naming.CONTAINER_HARDEN,
        role=logins.MIGRATOR,
        application_name="medianest-harden",
        arguments=[
            *("harden", "--options", _options(spec.hardening), "--app-role", logins.role_name(spec, logins.APP)),
            *("--result-file", RESULT_FILE),
        ],
        resources={"requests": {"cpu": "50m", "memory": "64Mi"}, "limits": {"memory": "256Mi"}},
    )
    pod = dbctl_pod(names, spec, container, role=logins.MIGRATOR)
    return manifest(
        JOB,
        names,
        names.hardening_job(options_digest),
        owner,
        component=naming.COMPONENT_HARDENING,
        spec=job_spec(names, naming.COMPONENT_HARDENING, pod, fails_for_good=[naming.CONTAINER_HARDEN]),
    )


def _options(options: Hardening) -> str:
    """As JSON. A `$(NAME)` in a value is a person's text, not a variable for Kubernetes to fill in: `$$` stands for `$`
    in a container's command (core/v1 Container)."""
    return options.model_dump_json(by_alias=True).replace("$", "$$")
