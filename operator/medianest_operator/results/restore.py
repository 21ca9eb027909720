"""What the controller reads of a restore's end, or of a dry run's."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from medianest_operator.api.operation import Estimate
from medianest_operator.results.backup import Name, Report, Text


class RestoreReport(Report):
    """The result of a Job that restored a backup, imported a database, or said what a restore would do."""

    outcome: Name | None = None
    reason: Name | None = None
    message: Text | None = None
    backup: Name | None = None
    repository: Name | None = None
    differences: list[Text] = []
    extensions: Annotated[dict[Name, Name], Field(max_length=50)] = {}
    """That a superuser has to make beforehand, and their schemas."""
    estimate: Estimate | None = None
    schema_name: Annotated[Name | None, Field(alias="schema")] = None
    """That holds the tables that were brought back."""

    @property
    def is_final(self) -> bool:
        """Whether it would fail again."""
        return self.outcome == "Failed"
