"""Roles and their rights inside the server: passwords follow the Secrets, grants let the login roles in."""

from __future__ import annotations

from typing import Final

from medianest_operator import naming
from medianest_operator.kubernetes.kinds import digest
from medianest_operator.postgres import roles
from medianest_operator.reconcile.concern import Announcement, Concern, Needs, Outcome
from medianest_operator.reconcile.contents.logins import Passwords
from medianest_operator.reconcile.contents.reading import application_database
from medianest_operator.reconcile.context import Run
from medianest_operator.reconcile.instances.servers import Servers

_CHECK_EVERY: Final = 600.0
"""Seconds after which roles and grants are compared although nothing changed here."""


async def reconcile(run: Run) -> Outcome:
    """Make the login roles what they should be."""
    passwords, primary = run.facts.get(Passwords), run.facts.require(Servers).primary
    if passwords is None or primary is None:
        return Outcome()
    memory = run.services.memory
    server = run.facts.require(Servers).of_primary
    token = (primary.uid, digest(passwords.by_suffix), server.roles if server else None)
    if memory.recall(run.key, "roles", token, _CHECK_EVERY) is not None:
        return Outcome()
    wanted = roles.wanted_roles(run.spec, passwords.by_suffix)
    instance = run.instance(primary, naming.MAINTENANCE_DATABASE)
    async with run.services.sessions.use(instance, run.credentials) as connection:
        changed = await roles.reconcile_roles(connection, wanted)
    memory.keep(run.key, "roles", token, True)
    if not changed:
        return Outcome()
    return Outcome(events=(Announcement("PasswordRotated", f"Roles follow their Secrets: {', '.join(changed)}."),))


async def reconcile_grants(run: Run) -> Outcome:
    """Let the login roles into the application's database, and to what they need there."""
    primary, memory, name = run.facts.require(Servers).primary, run.services.memory, run.spec.database.name
    server = run.facts.require(Servers).of_primary
    token = (primary.uid, server.databases if server else None) if primary else None
    if primary is None or memory.recall(run.key, "grants", token, _CHECK_EVERY) is not None:
        return Outcome()
    sessions, credentials = run.services.sessions, run.credentials
    async with sessions.use(run.instance(primary, naming.MAINTENANCE_DATABASE), credentials) as connection:
        await roles.ensure_connect(connection, run.spec, name)
    async with application_database(run, primary, naming.SUPERUSER) as connection:
        await roles.ensure_grants(connection, run.spec)
    memory.keep(run.key, "grants", token, True)
    return Outcome()


CONCERN = Concern("roles", Needs.PRIMARY, reconcile)
GRANTS = Concern("grants", Needs.DATABASE, reconcile_grants)
