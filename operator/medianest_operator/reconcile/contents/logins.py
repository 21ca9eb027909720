"""The login roles' Secrets: the password in the Secret is the truth, the server follows."""

import asyncio
import secrets as random
from collections.abc import Mapping
from dataclasses import dataclass, field

from medianest_operator import naming
from medianest_operator.api import status as api
from medianest_operator.kubernetes.kinds import SECRET
from medianest_operator.postgres import logins
from medianest_operator.reconcile.concern import Concern, Needs, Outcome
from medianest_operator.reconcile.context import Run
from medianest_operator.reconcile.instances.certificates import ServerIdentity
from medianest_operator.resources import secrets

_BYTES = 24


@dataclass(frozen=True)
class Passwords:
    """The passwords of the login roles, by the suffix of the role."""

    by_suffix: Mapping[str, str] = field(repr=False)


async def reconcile(run: Run) -> Outcome:
    """Leave a Secret for every login role, and hand the passwords on.

    A password that a person wrote into the Secret stays and is taken over; a removed one, or a removed Secret, gets a
    new random one.
    """
    identity = run.facts.get(ServerIdentity)
    if identity is None or identity.ca is None:
        # What the Secrets would say of the server's CA isn't known; they stay as they are.
        return Outcome()
    ca = identity.ca
    passwords: dict[str, str] = {}

    async def one(role: logins.LoginRole) -> None:
        name = run.names.role_secret(role.suffix)
        live = await run.services.applier.live(SECRET, run.names.namespace, name)
        password = (secrets.decode(live, "password") if live else None) or random.token_urlsafe(_BYTES)
        passwords[role.suffix] = password
        manifest = secrets.login_secret(
            run.names, run.spec, role, password, ca, run.owner, replicas=run.spec.instances > 1
        )
        await run.services.applier.apply(SECRET, manifest)

    await asyncio.gather(*(one(role) for role in logins.LOGIN_ROLES))
    return Outcome(
        facts=(Passwords(passwords),),
        status={
            "connection": api.Connection(
                secret=run.names.role_secret("app"),
                read_only_secret=run.names.role_secret("readonly"),
                migrator_secret=run.names.role_secret("migrator"),
                host=run.names.service_fqdn(run.names.read_write_service),
                read_only_host=run.names.service_fqdn(run.names.read_only_service),
                port=naming.POSTGRES_PORT,
                database=run.spec.database.name,
            )
        },
    )


CONCERN = Concern("logins", Needs.NOTHING, reconcile, stable=True)
