"""What every model of the API shares."""

from enum import StrEnum
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel
from pydantic.config import JsonDict


class ApiModel(BaseModel):
    """A part of a resource: camelCase in YAML, documented by its attributes' docstrings, immutable once parsed.

    Unknown fields are ignored: a newer resource definition may hold more than this controller knows.
    """

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        frozen=True,
        extra="ignore",
        use_attribute_docstrings=True,
    )


def rules(*pairs: tuple[str, str]) -> JsonDict:
    """CEL validation rules (expression, message) as the schema extension of Kubernetes."""
    return {"x-kubernetes-validations": [{"rule": rule, "message": message} for rule, message in pairs]}


def same_storage_class(field: str) -> tuple[str, str]:
    """The rule of a volume at this path of the spec whose `storageClassName` can't change, be set or be unset."""
    return (
        "has(self.storageClassName) == has(oldSelf.storageClassName) && "
        "(!has(self.storageClassName) || self.storageClassName == oldSelf.storageClassName)",
        f"{field}.storageClassName can't change: a volume stays in its class",
    )


def or_default(function: str, field: str, default: str, of: str = "self") -> str:
    """CEL: a field through `duration` or `quantity`, or its default where nobody set it: most aren't stored."""
    return f"{function}(has({of}.{field}) ? {of}.{field} : '{default}')"


def with_rules(*pairs: tuple[str, str]) -> ConfigDict:
    """A model configuration whose schema carries CEL rules; pydantic merges it into the parent's."""
    return ConfigDict(json_schema_extra=rules(*pairs))


Quantity = Annotated[
    str,
    Field(
        pattern=r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?$",
        max_length=32,
    ),
]
"""A Kubernetes quantity, written as a string."""

DnsLabel = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=63)]
ObjectName = Annotated[str, Field(pattern=r"^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$", max_length=253)]
SqlName = Annotated[str, Field(pattern=r"^[a-z_][a-z0-9_]*$", min_length=1, max_length=48)]
Duration = Annotated[
    str,
    Field(
        # An object that was stored formerly may hold a longer one: as long as Python's dates can reckon with.
        pattern=r"^([0-9]{1,7}h|[0-9]{1,9}[ms])+$",
        min_length=2,
        max_length=32,
        json_schema_extra={"pattern": "^([0-9]{1,6}h)?([0-9]{1,7}m|[0-9]{1,9}s){0,2}$"},
    ),
]
"""A duration as Go writes it: `90m`, `2160h`. A new one is no longer than Go and CEL can reckon with, 292 years."""
ImageName = Annotated[
    str,
    Field(
        max_length=512,
        json_schema_extra={
            "pattern": "^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?(:[0-9]{1,5})?(/[a-z0-9]+([._-]+[a-z0-9]+)*)*"
            "(:[A-Za-z0-9_][A-Za-z0-9._-]{0,127})?(@sha(256:[0-9a-f]{64}|512:[0-9a-f]{128}))?$"
        },
    ),
]
"""An image's name with a registry, a tag and a digest, as the container runtime reads it."""


class LocalReference(ApiModel):
    """A Secret in the object's namespace."""

    name: ObjectName
    """Name of a Secret in the object's namespace."""


class ResourceAmounts(ApiModel):
    cpu: Quantity | None = None
    """CPU, for instance `500m`."""
    memory: Quantity | None = None
    """Memory, for instance `1Gi`."""


class OnDelete(StrEnum):
    """What becomes of volumes when the object that they belong to is deleted."""

    RETAIN = "Retain"
    DELETE = "Delete"
