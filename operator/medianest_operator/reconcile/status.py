"""The status as it goes to the API server: each concern's part, and what was known where one did not speak. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from medianest_operator.api import status as api
from medianest_operator.api.conditions import Condition
from medianest_operator.api.model import ApiModel
from medianest_operator.reconcile.concern import StatusPart, Verdict
from medianest_operator.reconcile.conditions import Conditions, Report, condition_of
from medianest_operator.timestamps import stamp

Status = dict[str, Any]


def build(
    reports: Sequence[Report], conditions: Conditions, previous: Mapping[str, Any], generation: int, now: datetime
) -> Status:
    """The new status. A part that no concern spoke for is taken over as it is, also where a newer operator wrote it.

    Args:
        previous: the status so far.
        generation: of the spec that was acted on.
    """
    spoken: dict[str, StatusPart] = {}
    for report in reports:
        if report.outcome:
            spoken |= report.outcome.status
    status: Status = {
        "observedGeneration": generation,
        "phase": conditions[Condition.READY].reason.value,
        "conditions": [
            item.model_dump(mode="json", by_alias=True) for item in timed(conditions, previous, generation, now)
        ],
    }
    for name, field in api.DatabaseStatus.model_fields.items():
        key = field.serialization_alias or field.alias or name
        if key in status:
            continue
        attribute = name.rstrip("_")
        value = _dumped(spoken[attribute]) if attribute in spoken else previous.get(key)
        if value is not None and value != []:
            status[key] = value
    return status


def _dumped(part: StatusPart) -> Any:
    match part:
        case ApiModel():
            return api.present(part.model_dump(mode="json", by_alias=True, exclude_none=True))
        case None | str() | int():
            return part
    return [_dumped(item) for item in part]


def timed(
    conditions: Mapping[Condition, Verdict], previous: Mapping[str, Any], generation: int, now: datetime
) -> list[api.StatusCondition]:
    """Conditions as the status has them: their time moves only with their status.

    Args:
        previous: the status so far.
    """
    result = []
    for kind, verdict in conditions.items():
        known = condition_of(previous, kind)
        same = known is not None and known["status"] == verdict.status
        result.append(
            api.StatusCondition(
                type=kind,
                status=verdict.status,
                reason=verdict.reason,
                message=verdict.message,
                observed_generation=generation,
                last_transition_time=known["lastTransitionTime"] if known and same else stamp(now),
            )
        )
    return result
