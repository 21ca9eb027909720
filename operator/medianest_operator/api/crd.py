"""The CustomResourceDefinition, made from the models.

Kubernetes wants a *structural* schema: no references, no nulls, a type everywhere
(https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definitions/).
"""

from typing import Any

from medianest_operator import naming
from medianest_operator.api.database import DatabaseSpec
from medianest_operator.api.status import DatabaseStatus

_NAME_RULES = [
    {
        "rule": "self.metadata.name.matches('^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$')",
        "message": "metadata.name must be at most 40 small letters, digits and dashes and start with a letter: "
        "Services, pods and labels are named after it",
    }
]

_COLUMNS: list[tuple[str, str, str, int]] = [
    ("Ready", "string", '.status.conditions[?(@.type=="Ready")].status', 0),
    ("Status", "string", '.status.conditions[?(@.type=="Ready")].reason', 0),
    ("Primary", "string", ".status.instances.primary", 0),
    ("Instances", "string", ".status.instances.summary", 0),
    ("Schema", "string", ".status.schema.version", 0),
    ("Indexes", "string", ".status.indexes.critical", 1),
    ("Image", "string", ".status.image", 1),
    ("Age", "date", ".metadata.creationTimestamp", 0),
]


def _structural(schema: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """Inline references, drop titles and nulls, and turn unions of number and string into int-or-string."""
    if "$ref" in schema:
        target = definitions[schema["$ref"].rsplit("/", 1)[1]]
        schema = target | {key: value for key, value in schema.items() if key != "$ref"}
    if "anyOf" in schema:
        options = [option for option in schema["anyOf"] if option.get("type") != "null"]
        rest = {key: value for key, value in schema.items() if key not in {"anyOf", "default"}}
        if len(options) == 1:
            return _structural(options[0] | rest, definitions)
        return {"x-kubernetes-int-or-string": True} | {k: v for k, v in rest.items() if k == "description"}
    result: dict[str, Any] = {}
    for key, value in schema.items():
        if key in {"title", "const", "$defs"} or (key == "default" and value is None):
            continue
        if key == "properties":
            result[key] = {name: _structural(child, definitions) for name, child in value.items()}
        elif key in {"items", "additionalProperties"} and isinstance(value, dict):
            result[key] = _structural(value, definitions)
        elif key == "required":
            result[key] = sorted(value)
        elif key == "default":
            result[key] = _present(value)
        elif key == "description":
            result[key] = " ".join(value.split())
        else:
            result[key] = value
    if result.get("x-kubernetes-preserve-unknown-fields"):
        result.pop("additionalProperties", None)
    return _bounded(result)


def _present(value: Any) -> Any:
    """A default without its nulls: absent is how Kubernetes writes them."""
    if isinstance(value, dict):
        return {key: _present(item) for key, item in value.items() if item is not None}
    return value


def _bounded(schema: dict[str, Any]) -> dict[str, Any]:
    """Bounds keep the cost that the API server estimates for the CEL rules within its budget."""
    if schema.get("type") == "object" and isinstance(schema.get("additionalProperties"), dict):
        schema.setdefault("maxProperties", 100)
        if schema["additionalProperties"].get("x-kubernetes-int-or-string"):
            schema["additionalProperties"].setdefault("maxLength", 1024)
    if schema.get("additionalProperties") is True:
        del schema["additionalProperties"]
    return schema


def _schema(model: type[DatabaseSpec] | type[DatabaseStatus], mode: Any) -> dict[str, Any]:
    raw = model.model_json_schema(by_alias=True, mode=mode)
    return _structural(raw, raw.get("$defs", {}))


def _without_defaults(schema: dict[str, Any]) -> dict[str, Any]:
    """A status is written whole: defaults of the API server would only add to it."""
    schema.pop("default", None)
    for child in schema.get("properties", {}).values():
        _without_defaults(child)
    if isinstance(schema.get("items"), dict):
        _without_defaults(schema["items"])
    return schema


def custom_resource_definition() -> dict[str, Any]:
    """The manifest of `crds/medianest.io_medianestdatabases.yaml`."""
    # In full, since the API server checks the rules against a default before it fills in the fields' own.
    whole = DatabaseSpec().model_dump(mode="json", by_alias=True, exclude_none=True)
    spec = _schema(DatabaseSpec, "validation") | {"default": whole}
    # kstatus takes an object without any status for current, which a new one must not be before it was seen.
    unseen = {"observedGeneration": -1, "phase": "Pending"}
    status = _without_defaults(_schema(DatabaseStatus, "validation")) | {"default": unseen}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{naming.PLURAL}.{naming.GROUP}"},
        "spec": {
            "group": naming.GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": naming.KIND,
                "listKind": f"{naming.KIND}List",
                "plural": naming.PLURAL,
                "singular": naming.SINGULAR,
                "shortNames": [naming.SHORT_NAME],
                "categories": [naming.CATEGORY],
            },
            "versions": [
                {
                    "name": naming.VERSION,
                    "served": True,
                    "storage": True,
                    "additionalPrinterColumns": [
                        {"name": name, "type": kind, "jsonPath": path, "priority": priority}
                        for name, kind, path, priority in _COLUMNS
                    ],
                    "subresources": {
                        "status": {},
                        "scale": {
                            "specReplicasPath": ".spec.instances",
                            "statusReplicasPath": ".status.replicas",
                            "labelSelectorPath": ".status.selector",
                        },
                    },
                    "schema": {
                        "openAPIV3Schema": {
                            "type": "object",
                            "description": "A production PostgreSQL for MediaNest: available, migrated, watched.",
                            "properties": {
                                "apiVersion": {"type": "string"},
                                "kind": {"type": "string"},
                                "metadata": {"type": "object"},
                                "spec": spec,
                                "status": status,
                            },
                            "x-kubernetes-validations": _NAME_RULES,
                        }
                    },
                }
            ],
        },
    }
