"""`autoGrow` of a volume: how far, when and by how much the operator makes it larger."""

from typing import Annotated, Final

from pydantic import Field

from medianest_operator.api.model import ApiModel, Duration, Quantity, or_default, with_rules

_MINIMUM_INTERVAL: Final = or_default("duration", "minimumInterval", "6h")


class AutoGrow(ApiModel):
    """Growth of a volume before it is full. Off where `maximum` is unset. `size` stays what the admin wrote."""

    model_config = with_rules(
        (
            f"{_MINIMUM_INTERVAL} >= duration('1m') && {_MINIMUM_INTERVAL} <= duration('720h')",
            "autoGrow.minimumInterval must be 1m to 720h",
        ),
    )

    maximum: Quantity | None = None
    """The size that the volume never exceeds; nothing grows automatically where it is unset."""
    trigger: Annotated[int, Field(ge=50, le=89)] = 85
    """Percent of the volume in use from which on it grows. Where something holds write-ahead log back that a person
    can let go, it grows only from 90 on."""
    increase: Annotated[
        str,
        Field(
            pattern=r"^([1-9][0-9]?%|100%|[0-9]+(\.[0-9]+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?)$",
            max_length=32,
        ),
    ] = "25%"
    """By how much it grows at a time: percent of its size, or a size such as `10Gi`."""
    minimum_interval: Duration = "6h"
    """How long it stays as it is after it has grown: some clouds change a volume once in six hours."""


_WARNING: Final = "(has(self.monitoring) && has(self.monitoring.storageWarning) ? self.monitoring.storageWarning : 80)"


def maximum_rule(path: str) -> tuple[str, str]:
    """CEL: the maximum of a volume's growth is at least its size.

    Args:
        path: of the volume in the spec, for the message.
    """
    return (
        "!has(self.autoGrow) || !has(self.autoGrow.maximum) || !has(self.size) || "
        "quantity(self.autoGrow.maximum).compareTo(quantity(self.size)) >= 0",
        f"{path}.autoGrow.maximum must be at least {path}.size",
    )


def _warns_before(volume: str) -> str:
    grow = f"{volume}.autoGrow"
    trigger = f"(has({grow}.trigger) ? {grow}.trigger : 85)"
    return f"!has({volume}) || !has({grow}) || !has({grow}.maximum) || {_WARNING} < {trigger}"


def _message(path: str) -> str:
    return f"{path}.autoGrow.trigger must be above monitoring.storageWarning (80 where unset) and below 90"


WARNING_RULES: Final[tuple[tuple[str, str], ...]] = (
    *((_warns_before(f"self.{path}"), _message(path)) for path in ("storage", "walStorage")),
    (
        "!has(self.backup) || !has(self.backup.repositories) || self.backup.repositories.all(item, "
        f"{_warns_before('item.volume')})",
        _message("backup.repositories[].volume"),
    ),
)
"""CEL of the whole spec: a volume warns before it grows."""
