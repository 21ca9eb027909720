"""The application's database as the controller reads it: over a login that has nothing to lose there."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from medianest_operator.api.conditions import Reason
from medianest_operator.errors import Permanent, Transient
from medianest_operator.postgres.sessions import Connection, NotAdmitted
from medianest_operator.postgres.trusted import UntrustedContent, UntrustedRelation, Withheld
from medianest_operator.reconcile.context import Pod, Run
from medianest_operator.reconcile.instances import patroni


@contextlib.asynccontextmanager
async def application_database(run: Run, primary: Pod, user: str | None = None) -> AsyncIterator[Connection]:
    """A connection to the application's database.

    Args:
        user: as in `Run.instance`.

    Raises:
        Permanent: what is in there is not what the operator or Prisma made; the rest of the database is not concerned.
        Transient: the reader isn't let in yet; the database serves all the same.
        Unreachable: the server doesn't answer, or somebody's lock keeps the reader waiting.
    """
    try:
        instance = run.instance(primary, run.spec.database.name, user)
        async with run.services.sessions.use(instance, run.credentials) as connection:
            yield connection
    except NotAdmitted as error:
        # An object of an older operator: its pod has the new file within a minute or two, and Patroni reads it when
        # asked. The right to connect is given again at the next run.
        run.services.memory.drop(run.key, "grants")
        await patroni.reload(run, primary)
        raise Transient(
            Reason.CONFIGURING,
            f"{error}. Patroni was asked to load the configuration that admits it; this is tried again automatically",
        ) from error
    except Withheld as error:
        run.services.memory.drop(run.key, "grants")
        raise Transient(Reason.CONFIGURING, f"{error}; it is granted automatically") from error
    except (UntrustedRelation, UntrustedContent) as error:
        raise Permanent(Reason.UNTRUSTED_RELATION, str(error)) from error
