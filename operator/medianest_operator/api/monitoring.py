"""`spec.monitoring` of a `MediaNestDatabase`: what counts as slow, and from when on volumes are too full."""

from typing import Annotated

from pydantic import Field

from medianest_operator.api.model import ApiModel


class Monitoring(ApiModel):
    """Thresholds of the findings in status.findings."""

    slow_query: Annotated[str, Field(pattern=r"^([1-9][0-9]{0,2}ms|1s)$")] = "50ms"
    """What a hot query of the application may take, for instance `50ms`; a new connection may take ten times as
    long, but no more than 2 s. At most `1s`. A slower one is the finding QuerySlow or ConnectSlow."""
    storage_warning: Annotated[int, Field(ge=50, le=88)] = 80
    """Percent of a volume from which on StorageHealthy is False. A volume that would be full within a day is
    a finding before."""
