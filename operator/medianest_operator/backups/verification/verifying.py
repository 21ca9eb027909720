"""The verification that belongs to a backup's own run."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from medianest_operator.backups.ending import result_of
from medianest_operator.backups.logical.finding import Wanted
from medianest_operator.backups.repository.client import Repository
from medianest_operator.backups.repository.layout import Origin
from medianest_operator.backups.verification.verify import VerifyOptions, VerifyRun
from medianest_operator.postgres.sandbox import Sandbox
from medianest_operator.results.backup import Outcome, Reason, Result
from medianest_operator.results.text import cut

PAUSES = (5.0, 10.0)
"""Seconds before the second try, and before the third and last."""


def verify_taken(
    origin: Origin,
    repositories: Sequence[Repository],
    result: Result,
    work: Path,
    identities: Sequence[str],
    report: Callable[[str], None],
    pauses: Sequence[float] = PAUSES,
    sandbox: Sandbox | None = None,
) -> None:
    """Verify the backup that a run has just taken, in all repositories that have it, and tell it in the result.

    What may pass is tried again here: another run would take another backup first. A backup that could not be verified
    stays, and counts as unverified.
    """
    told = result.more.get("repositories", {})
    holding = [repository for repository in repositories if told.get(repository.name, {}).get("ok")]
    if not holding or "backup" not in result.more:
        return
    wanted = Wanted(origin.namespace, origin.name, origin.system_identifier)
    options = VerifyOptions(wanted, str(result.more["backup"]), work, identities, sandbox=sandbox)

    def patiently() -> Result:
        for pause in pauses:
            tried = VerifyRun(holding, options, report).run()
            if tried.outcome is not Outcome.TRANSIENT or tried.reason is Reason.INTERRUPTED:
                return tried
            report(f"not verified: {tried.message} Trying again.")
            time.sleep(pause)
        return VerifyRun(holding, options, report).run()

    verified = result_of(patiently, "The verification was asked to stop; it says nothing.", {})
    ok = verified.outcome is Outcome.SUCCEEDED
    seconds = round(sum(verified.more.get("seconds", {}).values()), 1)
    result.more["verification"] = {"ok": ok, "seconds": seconds, "message": cut(verified.message, 500)}
    if ok:
        result.message += f" {verified.message}"
    elif result.outcome is Outcome.SUCCEEDED:
        stopped = verified.reason is Reason.INTERRUPTED
        result.outcome = Outcome.TRANSIENT if stopped else Outcome.FAILED
        result.reason = Reason.INTERRUPTED if stopped else Reason.VERIFICATION_FAILED
        result.message = f"{result.more['backup']} is stored, but not verified: {verified.message}"
