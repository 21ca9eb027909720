"""Two releases of the operator in one cluster: which of them a namespace belongs to.

Helm refuses a second release for the whole cluster, and a second one for the same namespace, by the names of their
roles. What it can't refuse is one for the whole cluster beside one for some namespaces: there the latter goes first.
"""

from __future__ import annotations

import logging
import time
from typing import Final

from medianest_operator import naming
from medianest_operator.kubernetes.client import KubernetesClient
from medianest_operator.kubernetes.kinds import ROLE_BINDING
from medianest_operator.settings import Settings

log = logging.getLogger(__name__)

LOOK_EVERY: Final = 60.0
"""Seconds after which a namespace is looked at again."""
_BELIEVED: Final = 45.0
"""Seconds for which an answer is believed: less, since the queue may come earlier than asked."""


class Territory:
    """The namespaces that are this release's."""

    def __init__(self, settings: Settings, client: KubernetesClient) -> None:
        self._settings = settings
        self._client = client
        self._known: dict[str, tuple[float, str | None]] = {}

    async def is_anothers(self, namespace: str) -> bool:
        """Whether a release that watches some namespaces alone has a right of its own in this one.

        Raises:
            ApiError: that can't be known now.
        """
        if self._settings.namespaces:
            return False
        learnt, owner = self._known.get(namespace, (-_BELIEVED, None))
        if time.monotonic() - learnt >= _BELIEVED:
            before, owner = owner, await self._owner(namespace)
            self._known[namespace] = time.monotonic(), owner
            if owner != before:
                whose = f"the operator of namespace {owner}" if owner else "this operator"
                log.warning("from now on the databases of namespace %s are looked after by %s", namespace, whose)
        return owner is not None

    async def _owner(self, namespace: str) -> str | None:
        """The namespace of the other release; `None` where there is none."""
        found = await self._client.get(ROLE_BINDING, namespace, naming.OPERATOR)
        for subject in (found or {}).get("subjects") or []:
            where = subject.get("namespace")
            if subject.get("name") == naming.OPERATOR and where not in {None, self._settings.operator_namespace}:
                return str(where)
        return None
