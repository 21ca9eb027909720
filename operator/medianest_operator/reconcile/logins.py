"""The login roles' Secrets: the password in the Secret is the truth, the server follows."""

import asyncio
import secrets as random

from medianest_operator.kubernetes.kinds import SECRET
from medianest_operator.postgres import logins
from medianest_operator.reconcile.context import Run
from medianest_operator.resources import secrets

_BYTES = 24


async def reconcile(run: Run) -> None:
    """Leave a Secret for every login role; leave the passwords in the run.

    A password that a person wrote into the Secret stays and is taken over; a removed one, or a removed Secret, gets a
    new random one.
    """
    passwords: dict[str, str] = {}

    async def one(role: logins.LoginRole) -> None:
        name = run.names.role_secret(role.suffix)
        live = run.services.cache.get(SECRET, run.names.namespace, name)
        password = (secrets.decode(live, "password") if live else None) or random.token_urlsafe(_BYTES)
        passwords[role.suffix] = password
        manifest = secrets.login_secret(
            run.names, run.spec, role, password, run.notes["server_ca"], run.owner, replicas=run.spec.instances > 1
        )
        await run.services.applier.apply(SECRET, manifest)

    await asyncio.gather(*(one(role) for role in logins.LOGIN_ROLES))
    run.notes["passwords"] = passwords
