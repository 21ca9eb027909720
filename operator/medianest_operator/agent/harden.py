"""`medianest-dbctl harden`: bring the operator's own objects to what `spec.hardening` wants."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pydantic

from medianest_operator.api.hardening import Hardening

if TYPE_CHECKING:
    from medianest_operator.results.hardening import HardeningResult


def harden(text: str, app_role: str, wait: float, say: Callable[[str], None]) -> HardeningResult:
    """Run once; whatever happens ends in a result.

    Args:
        text: `spec.hardening` as JSON.
        app_role: the role that the application logs in as.
        wait: how long to wait for the server to let us in, seconds.
        say: called with a line of text for people at each step.
    """
    from medianest_operator.hardening.run import HardeningRun
    from medianest_operator.postgres.connect import ConnectError, connect, conninfo_from
    from medianest_operator.results.hardening import HardeningResult, Reason

    try:
        options = Hardening.model_validate_json(text)
        conninfo = conninfo_from()
    except pydantic.ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
        return HardeningResult.of(Reason.INVALID_OPTIONS, f"Nothing was changed. In the options: {problems}.")
    except ValueError as error:
        return HardeningResult.of(Reason.INVALID_OPTIONS, f"Nothing was changed. DATABASE_URL: {error}.")
    try:
        connection = connect(conninfo, wait, say, "harden")
    except ConnectError as error:
        return HardeningResult.of(Reason.CONNECT_FAILED, f"No connection within {wait:g} s: {error}")
    with connection:
        return HardeningRun(connection, options, app_role, report=say).run()
