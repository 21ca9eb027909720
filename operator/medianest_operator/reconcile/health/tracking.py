"""The findings of a database between runs: each concern that observes something adds what it found here."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from medianest_operator.api.conditions import Reason
from medianest_operator.health.findings import Finding, Known, Level, Tracker
from medianest_operator.reconcile.concern import Verdict
from medianest_operator.reconcile.context import Run

SHOWN: Final = 10
"""Findings in the status, which people read."""


def tracker(run: Run) -> Tracker:
    """The database's; after a restart of the operator it begins with what the status says."""
    token = run.database["metadata"].get("uid")
    known: Tracker | None = run.services.memory.recall(run.key, "findings", token, math.inf)
    if known is None:
        told = _told(run.database.get("status") or {})
        known = Tracker(told, more=len(told) >= SHOWN)
        run.services.memory.keep(run.key, "findings", token, known)
    return known


def observed(
    run: Run, source: str, found: Sequence[Finding], *, settled: bool = False, unseen: Collection[str] = ()
) -> None:
    """Take in what one look at a source found.

    Args:
        settled: as in `Tracker.observe`.
        unseen: likewise.
    """
    now = datetime.now(UTC).replace(microsecond=0)
    tracker(run).observe(source, found, now, settled=settled, unseen=unseen)


def verdict(known: Sequence[Known], healthy: Verdict) -> Verdict:
    """A condition that follows from findings: what the worst of them says, and how many more there are.

    Args:
        known: what counts, the worst first.
        healthy: what it says where nothing but hints is known.
    """
    bad = [item.finding for item in known if item.finding.level is not Level.HINT]
    if not bad:
        return healthy
    more = len(bad) - 1
    rest = f" And {more} other finding{'' if more == 1 else 's'} (status.findings)." if more else ""
    return Verdict("False", bad[0].reason, f"{bad[0].message}{rest}")


def _told(status: Mapping[str, Any]) -> list[Known]:
    """What an earlier process wrote; what it doesn't know any more, or a newer one wrote, is left out."""
    known = []
    for item in status.get("findings", []):
        try:
            finding = Finding(
                Reason(item["reason"]), item["object"], item["message"], item.get("fix"), item.get("bytes")
            )
            known.append(Known(finding, item["source"], datetime.fromisoformat(item["since"])))
        except (KeyError, TypeError, ValueError):
            continue
    return known
