"""The CustomResourceDefinitions, made from the models.

Kubernetes wants a *structural* schema: no references, no nulls, a type everywhere
(https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definitions/).
"""

import json
from dataclasses import dataclass
from typing import Any, Final

from medianest_operator import naming
from medianest_operator.api.backup_object import BackupSpec, BackupStatus
from medianest_operator.api.database import DatabaseSpec
from medianest_operator.api.model import ApiModel
from medianest_operator.api.operation import OperationSpec, OperationStatus
from medianest_operator.api.status import DatabaseStatus

Column = tuple[str, str, str, int]
"""Name, type, path and priority of what `kubectl get` shows."""


@dataclass(frozen=True)
class _Resource:
    """What a kind has beside its models."""

    kind: str
    plural: str
    short_name: str
    description: str
    rules: tuple[tuple[str, str], ...]
    columns: tuple[Column, ...]
    scale: bool = False


_DATABASE = _Resource(
    kind=naming.KIND,
    plural=naming.PLURAL,
    short_name=naming.SHORT_NAME,
    description="A production PostgreSQL for MediaNest: available, migrated, backed up, watched.",
    rules=(
        (
            "self.metadata.name.matches('^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$')",
            "metadata.name must be at most 40 small letters, digits and dashes and start with a letter: "
            "Services, pods and labels are named after it",
        ),
        (
            "!has(self.spec.backup) || !has(self.spec.backup.repositories) || self.spec.backup.repositories.all(item, "
            "!has(item.volume) || !has(item.volume.claimName) || "
            f"!item.volume.claimName.matches('^({naming.VOLUME_DATA}|{naming.VOLUME_WAL})-.*-[0-9]$') || "
            "!item.volume.claimName.substring(item.volume.claimName.indexOf('-') + 1)"
            ".startsWith(self.metadata.name + '-'))",
            "spec.backup.repositories[].volume.claimName must not be a volume of the database itself: a backup there "
            "would be lost together with the data",
        ),
    ),
    columns=(
        ("Ready", "string", '.status.conditions[?(@.type=="Ready")].status', 0),
        ("Status", "string", '.status.conditions[?(@.type=="Ready")].reason', 0),
        ("Primary", "string", ".status.instances.primary", 0),
        ("Instances", "string", ".status.instances.summary", 0),
        ("Schema", "string", ".status.schema.version", 0),
        ("Last-Backup", "date", ".status.backup.last.at", 0),
        ("Verified", "date", ".status.backup.verified.at", 1),
        ("Indexes", "string", ".status.indexes.critical", 1),
        ("Image", "string", ".status.image", 1),
        ("Age", "date", ".metadata.creationTimestamp", 0),
    ),
    scale=True,
)
_BACKUP = _Resource(
    kind=naming.BACKUP_KIND,
    plural=naming.BACKUP_PLURAL,
    short_name=naming.BACKUP_SHORT_NAME,
    description="One backup of a MediaNestDatabase, taken once when the object is made.",
    rules=(
        (
            "self.metadata.name.matches('^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$') && size(self.metadata.name) <= 200",
            "metadata.name must have at most 200 small letters, digits, dashes and dots",
        ),
    ),
    columns=(
        ("Database", "string", ".spec.database", 0),
        ("Phase", "string", ".status.phase", 0),
        ("Backup", "string", ".status.backup", 0),
        ("Verified", "boolean", ".status.verified", 0),
        ("Finished", "date", ".status.finishedAt", 0),
        ("Message", "string", ".status.message", 1),
        ("Age", "date", ".metadata.creationTimestamp", 0),
    ),
)
_OPERATION = _Resource(
    kind=naming.OPERATION_KIND,
    plural=naming.OPERATION_PLURAL,
    short_name=naming.OPERATION_SHORT_NAME,
    description="Something that is done with a MediaNestDatabase once, when the object is made: a restore in place.",
    rules=_BACKUP.rules,
    columns=(
        ("Operation", "string", ".status.operation", 0),
        ("Database", "string", ".spec.database", 0),
        ("Phase", "string", ".status.phase", 0),
        ("Backup", "string", ".status.backup", 0),
        ("Message", "string", ".status.message", 1),
        ("Age", "date", ".metadata.creationTimestamp", 0),
    ),
)


_TRUTHS = ("True", "False", "Unknown")
"""A condition's status has exactly these (Kubernetes API conventions)."""


def _structural(schema: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """Inline references, drop titles and nulls, and turn unions of number and string into int-or-string."""
    if "$ref" in schema:
        target = definitions[schema["$ref"].rsplit("/", 1)[1]]
        schema = target | {key: value for key, value in schema.items() if key != "$ref"}
    if "anyOf" in schema:
        options = [option for option in schema["anyOf"] if option.get("type") != "null"]
        rest = {key: value for key, value in schema.items() if key != "anyOf"}
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
    return [_present(item) for item in value] if isinstance(value, list) else value


def _bounded(schema: dict[str, Any]) -> dict[str, Any]:
    """Bounds keep the cost that the API server estimates for the CEL rules within its budget."""
    if schema.get("type") == "object" and isinstance(schema.get("additionalProperties"), dict):
        schema.setdefault("maxProperties", 100)
        if schema["additionalProperties"].get("x-kubernetes-int-or-string"):
            schema["additionalProperties"].setdefault("maxLength", 1024)
    if schema.get("additionalProperties") is True:
        del schema["additionalProperties"]
    return schema


def _schema(model: type[ApiModel], mode: Any) -> dict[str, Any]:
    raw = model.model_json_schema(by_alias=True, mode=mode)
    return _structural(raw, raw.get("$defs", {}))


def _of_status(schema: dict[str, Any]) -> dict[str, Any]:
    """A status is written whole: defaults of the API server would only add to it.

    Its words aren't fixed, so that a definition that is older than the operator doesn't refuse a status for a new one.
    """
    schema.pop("default", None)
    if len(schema.get("enum", ())) > len(_TRUTHS):
        del schema["enum"]
    for child in schema.get("properties", {}).values():
        _of_status(child)
    if isinstance(schema.get("items"), dict):
        _of_status(schema["items"])
    return schema


_STORED: Final = ("instances", "storage", "resources", "database", "connections")
"""Sections whose defaults the API server stores in every object, since they must not move under a running database when
a newer operator has others; of `postgresql` it stores `synchronous`. What else nobody names is not stored: the operator
fills it in, and `kubectl describe` shows what somebody wanted."""


_STORED_WHEN_NAMED: Final = frozenset({"walStorage"})
"""Sections whose own defaults are stored once somebody names them: a volume keeps the size that it was made with."""


def database_spec() -> dict[str, Any]:
    """The structural schema of a database's spec with the default of every field, stored or not."""
    return _schema(DatabaseSpec, "validation")


def operation_spec() -> dict[str, Any]:
    """The same of an operation's spec, of which no default is stored."""
    return _schema(OperationSpec, "validation")


def stored_defaults() -> dict[str, Any]:
    """What the API server makes of `spec: {}`."""
    whole = DatabaseSpec().model_dump(mode="json", by_alias=True, exclude_none=True)
    # How a volume is looked after is no size or class that it was made with.
    del whole["storage"]["readOnlyWhenFull"]
    return {name: whole[name] for name in _STORED} | {"postgresql": {"synchronous": whole["postgresql"]["synchronous"]}}


def _store(schema: dict[str, Any], stored: Any, when_named: frozenset[str] = frozenset()) -> None:
    """Leave only these defaults in a schema; all are in the descriptions, since `kubectl explain` shows nothing else.

    A default of a section is stored in full, since the API server checks the rules against it before it fills in the
    fields' own.

    Args:
        stored: the defaults to leave, by field.
        when_named: sections that have no default, and whose fields keep theirs.
    """
    for name, child in schema.get("properties", {}).items():
        kept = stored.get(name) if isinstance(stored, dict) else None
        default = child.pop("default", None)
        if kept is not None:
            child["default"] = kept
        if default not in (None, {}, [], "") and _is_plain(child):
            text = default if isinstance(default, str) else json.dumps(default)
            child["description"] = f"{child.get('description', '')} Default: {text}.".lstrip()
        _store(child, _own_defaults(child) if name in when_named else kept)
    if isinstance(schema.get("items"), dict):
        _store(schema["items"], None)


def _own_defaults(schema: dict[str, Any]) -> dict[str, Any]:
    return {name: child["default"] for name, child in schema["properties"].items() if "default" in child}


def _is_plain(schema: dict[str, Any]) -> bool:
    """Whether a default can be said in a word or a list of words: those of objects are their fields'."""
    return not schema.get("properties") and not schema.get("items", {}).get("properties")


def custom_resource_definitions() -> dict[str, dict[str, Any]]:
    """The manifests of `crds/`, by the plural name of their kind."""
    stored = stored_defaults()
    spec = database_spec() | {"default": stored}
    _store(spec, stored, _STORED_WHEN_NAMED)
    database = _definition(_DATABASE, spec, _schema(DatabaseStatus, "validation"))
    backup = _definition(_BACKUP, _schema(BackupSpec, "validation"), _schema(BackupStatus, "validation"))
    asked = operation_spec()
    _store(asked, {})
    operation = _definition(_OPERATION, asked, _schema(OperationStatus, "validation"))
    return {_DATABASE.plural: database, _BACKUP.plural: backup, _OPERATION.plural: operation}


def _definition(resource: _Resource, spec: dict[str, Any], status: dict[str, Any]) -> dict[str, Any]:
    # kstatus takes an object without any status for current, which a new one must not be before it was seen.
    unseen = {"observedGeneration": -1, "phase": "Pending"}
    subresources: dict[str, Any] = {"status": {}}
    if resource.scale:
        subresources["scale"] = {
            "specReplicasPath": ".spec.instances",
            "statusReplicasPath": ".status.replicas",
            "labelSelectorPath": ".status.selector",
        }
    schema: dict[str, Any] = {
        "type": "object",
        "description": resource.description,
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": spec,
            "status": _of_status(status) | {"default": unseen},
        },
        "x-kubernetes-validations": [{"rule": rule, "message": message} for rule, message in resource.rules],
    }
    if "default" not in spec:
        schema["required"] = ["spec"]
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{resource.plural}.{naming.GROUP}"},
        "spec": {
            "group": naming.GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": resource.kind,
                "listKind": f"{resource.kind}List",
                "plural": resource.plural,
                "singular": resource.kind.lower(),
                "shortNames": [resource.short_name],
                "categories": [naming.CATEGORY],
            },
            "versions": [
                {
                    "name": naming.VERSION,
                    "served": True,
                    "storage": True,
                    "additionalPrinterColumns": [
                        {"name": name, "type": kind, "jsonPath": path, "priority": priority}
                        for name, kind, path, priority in resource.columns
                    ],
                    "subresources": subresources,
                    "schema": {"openAPIV3Schema": schema},
                }
            ],
        },
    }
