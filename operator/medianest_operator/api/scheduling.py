"""`spec.scheduling` of a `MediaNestDatabase`: where the pods run.

Its rules are those of Kubernetes (`pkg/apis/core/validation/validation.go`), so that what a pod could not have is
refused at apply. They stand in the resource definition alone: an object that was stored without them is still read.
"""

from enum import StrEnum
from typing import Annotated, Any, Final

from pydantic import Field

from medianest_operator.api.model import ApiModel, ObjectName, with_rules

_LABEL_KEY: Final = r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$"
_LABEL_VALUE: Final = r"^([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?$"
_MOST: Final = 32
"""Of a list's items: bounds keep the cost of rules within the API server's budget."""

JsonSchema = dict[str, Any]


def _list(items: JsonSchema, **more: Any) -> JsonSchema:
    return {"type": "array", "maxItems": _MOST, "items": items} | more


def _object(properties: JsonSchema, *required: str) -> JsonSchema:
    return {"type": "object", "properties": properties} | ({"required": sorted(required)} if required else {})


def _requirement(operators: tuple[str, ...]) -> JsonSchema:
    fields = {
        "key": {"type": "string", "maxLength": 316, "pattern": _LABEL_KEY},
        "operator": {"type": "string", "enum": list(operators)},
        "values": _list({"type": "string", "maxLength": 63, "pattern": _LABEL_VALUE}),
    }
    rule = "(self.operator in ['Exists', 'DoesNotExist']) == (!has(self.values) || size(self.values) == 0)"
    message = "values must be given with In, NotIn, Gt and Lt, and not with Exists and DoesNotExist"
    return _object(fields, "key", "operator") | {"x-kubernetes-validations": [{"rule": rule, "message": message}]}


def _affinity() -> JsonSchema:
    """The schema of `Affinity` in core/v1: a misspelt field is refused, and not only when the pods are made."""
    words = {"type": "string", "maxLength": 253}
    by_labels = _list(_requirement(("In", "NotIn", "Exists", "DoesNotExist")))
    by_node = _list(_requirement(("In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt")))
    labels = {
        "type": "object",
        "maxProperties": _MOST,
        "additionalProperties": {"type": "string", "maxLength": 63, "pattern": _LABEL_VALUE},
    }
    selector = _object({"matchExpressions": by_labels, "matchLabels": labels})
    node_term = _object({"matchExpressions": by_node, "matchFields": by_node})
    keys = _list({"type": "string", "maxLength": 316}, **{"x-kubernetes-list-type": "atomic"})
    pod_term = _object(
        {
            "labelSelector": selector,
            "matchLabelKeys": keys,
            "mismatchLabelKeys": keys,
            "namespaceSelector": selector,
            "namespaces": _list(words),
            "topologyKey": {"type": "string", "minLength": 1, "maxLength": 316, "pattern": _LABEL_KEY},
        },
        "topologyKey",
    )
    weight = {"type": "integer", "format": "int32", "minimum": 1, "maximum": 100}
    pods = _object(
        {
            "preferredDuringSchedulingIgnoredDuringExecution": _list(
                _object({"podAffinityTerm": pod_term, "weight": weight}, "podAffinityTerm", "weight")
            ),
            "requiredDuringSchedulingIgnoredDuringExecution": _list(pod_term),
        }
    )
    nodes = _object(
        {
            "preferredDuringSchedulingIgnoredDuringExecution": _list(
                _object({"preference": node_term, "weight": weight}, "preference", "weight")
            ),
            "requiredDuringSchedulingIgnoredDuringExecution": _object(
                {"nodeSelectorTerms": _list(node_term, minItems=1)}, "nodeSelectorTerms"
            ),
        }
    )
    return _object({"nodeAffinity": nodes, "podAffinity": pods, "podAntiAffinity": pods})


class AntiAffinity(StrEnum):
    """How strongly the instances avoid sharing a node."""

    PREFERRED = "Preferred"
    REQUIRED = "Required"


class Toleration(ApiModel):
    model_config = with_rules(
        (
            "has(self.key) && size(self.key) > 0 || has(self.operator) && self.operator == 'Exists'",
            "scheduling.tolerations[] must have a key, or operator Exists, which tolerates every taint",
        ),
        (
            "!has(self.operator) || self.operator != 'Exists' || !has(self.value) || size(self.value) == 0",
            "scheduling.tolerations[] must not have a value with operator Exists",
        ),
        (
            "!has(self.tolerationSeconds) || has(self.effect) && self.effect == 'NoExecute'",
            "scheduling.tolerations[].tolerationSeconds must stand with effect NoExecute",
        ),
    )

    key: Annotated[str, Field(json_schema_extra={"maxLength": 316, "pattern": f"^$|{_LABEL_KEY}"})] | None = None
    operator: Annotated[str, Field(pattern="^(Exists|Equal)$")] | None = None
    value: Annotated[str, Field(json_schema_extra={"maxLength": 63, "pattern": _LABEL_VALUE})] | None = None
    effect: Annotated[str, Field(pattern="^(NoSchedule|PreferNoSchedule|NoExecute)$")] | None = None
    toleration_seconds: Annotated[int, Field(json_schema_extra={"minimum": 0})] | None = None


class Scheduling(ApiModel):
    """Where the pods run."""

    node_selector: Annotated[
        dict[str, Annotated[str, Field(json_schema_extra={"maxLength": 63, "pattern": _LABEL_VALUE})]],
        Field(
            max_length=_MOST,
            json_schema_extra={
                "x-kubernetes-validations": [
                    {
                        "rule": f"self.all(key, size(key) <= 316 && key.matches('{_LABEL_KEY}'))",
                        "message": "scheduling.nodeSelector must have labels as keys: letters, digits, -, _ and .,"
                        " after a prefix and / where there is one",
                    }
                ]
            },
        ),
    ] = {}
    """Labels that a node must have."""
    tolerations: Annotated[list[Toleration], Field(max_length=_MOST)] = []
    """Taints that the pods tolerate."""
    anti_affinity: AntiAffinity = AntiAffinity.PREFERRED
    """Preferred spreads the instances over nodes where it can; Required leaves an instance Pending rather than let two
    share."""
    topology_key: Annotated[str, Field(max_length=253, json_schema_extra={"pattern": _LABEL_KEY})] = (
        "kubernetes.io/hostname"
    )
    """The node label that names a place, for instance topology.kubernetes.io/zone."""
    affinity: Annotated[dict[str, Any], Field(json_schema_extra=_affinity())] = {}
    """An affinity as Kubernetes defines it (nodeAffinity, podAffinity, podAntiAffinity), instead of antiAffinity."""
    priority_class_name: ObjectName | None = None
    """The pods' priority class."""
