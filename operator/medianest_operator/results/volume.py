"""What `medianest-dbctl read-volume` found in the files of a stopped server."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from pydantic import BaseModel, ConfigDict, Field

from medianest_operator.results.text import RESULT_LIMIT

_LONGEST: Final = 100
"""Promotions that are told, the last ones."""


class VolumeState(BaseModel):
    """How far the data of a stopped server go.

    Attributes:
        is_empty: there is no server's data, or only a part of it: nothing can begin from it.
        system_identifier: the same for all copies of one database cluster.
        timeline: the one that its log is on.
        ends_at: up to which byte its log can be read.
        promotions: where the timelines before it ended, in bytes, by their numbers.
        begun: the first bytes of its timeline, in hex, as far as they are written; empty for the first one, or where
            they are not kept any more.
        written: when it last wrote its control file, as Kubernetes writes moments.
        message: the same for people.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    is_empty: bool = False
    system_identifier: str = ""
    timeline: int = Field(default=0, ge=0)
    ends_at: int = Field(default=0, ge=0)
    promotions: Mapping[int, int] = {}
    begun: str = ""
    written: str = ""
    message: str = ""

    def continues(self, other: VolumeState) -> bool:
        """Whether the other's data is an earlier state of these, or the same.

        That is so where all promotions that both know are the same, and where this one was promoted after all that the
        other has written. Two that were promoted from the same end have the same number and the same position; what
        they wrote first is different.
        """
        if self.is_empty or self.system_identifier != other.system_identifier:
            return False
        common = self.promotions.keys() & other.promotions.keys()
        if any(self.promotions[timeline] != other.promotions[timeline] for timeline in common):
            return False
        if self.timeline == other.timeline:
            return self._began_as(other) and other.ends_at <= self.ends_at
        return other.ends_at <= self.promotions.get(other.timeline, -1)

    def _began_as(self, other: VolumeState) -> bool:
        return self.begun.startswith(other.begun) or other.begun.startswith(self.begun)

    def to_json(self) -> str:
        """As JSON of at most 4096 bytes, with as many of the last promotions as that allows."""
        kept = dict(sorted(self.promotions.items())[-_LONGEST:])
        text = self.model_copy(update={"promotions": kept}).model_dump_json()
        if len(text.encode()) > RESULT_LIMIT:
            raise ValueError("the state of a volume is longer than a termination message")
        return text
