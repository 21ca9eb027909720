"""The ConfigMap with what the status has no room for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from medianest_operator import naming
from medianest_operator.kubernetes.kinds import CONFIG_MAP, Manifest
from medianest_operator.naming import Names
from medianest_operator.resources.meta import manifest


def report(names: Names, owner: Mapping[str, Any], data: Mapping[str, str]) -> Manifest:
    """The database's report, which goes with it."""
    return manifest(CONFIG_MAP, names, names.report, owner, component=naming.COMPONENT_POSTGRES, data=dict(data))
