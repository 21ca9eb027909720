"""The verification that belongs to a backup's own run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from medianest_operator.backups.finding import Wanted
from medianest_operator.backups.layout import Origin
from medianest_operator.backups.repository import Repository
from medianest_operator.backups.result import Outcome, Reason, Result, cut
from medianest_operator.backups.verify import VerifyOptions, VerifyRun


def verify_taken(
    origin: Origin,
    repositories: Sequence[Repository],
    result: Result,
    work: Path,
    identities: Sequence[str],
    report: Callable[[str], None],
) -> None:
    """Verify the backup that a run has just taken, in all repositories that have it, and tell it in the result.

    A backup that could not be verified stays, and counts as unverified.
    """
    told = result.more.get("repositories", {})
    holding = [repository for repository in repositories if told.get(repository.name, {}).get("ok")]
    if not holding or "backup" not in result.more:
        return
    wanted = Wanted(origin.namespace, origin.name, origin.system_identifier)
    options = VerifyOptions(wanted, str(result.more["backup"]), work, identities)
    verified = VerifyRun(holding, options, report).run()
    ok = verified.outcome is Outcome.SUCCEEDED
    seconds = round(sum(verified.more.get("seconds", {}).values()), 1)
    result.more["verification"] = {"ok": ok, "seconds": seconds, "message": cut(verified.message, 500)}
    if ok:
        result.message += f" {verified.message}"
    elif result.outcome is Outcome.SUCCEEDED:
        result.outcome = verified.outcome
        result.reason = verified.reason if verified.outcome is Outcome.TRANSIENT else Reason.VERIFICATION_FAILED
        result.message = f"{result.more['backup']} is stored, but not verified: {verified.message}"
