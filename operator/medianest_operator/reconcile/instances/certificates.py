"""The CA and the certificates: issued, renewed before they expire, loaded without a restart."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from medianest_operator import naming
from medianest_operator.api import status as api
from medianest_operator.api.conditions import Reason
from medianest_operator.api.quantity import to_timedelta
from medianest_operator.errors import Permanent
from medianest_operator.kubernetes.kinds import SECRET
from medianest_operator.observability import metrics
from medianest_operator.postgres import certificates
from medianest_operator.postgres.certificates import KeyPair
from medianest_operator.postgres.sessions import Credentials
from medianest_operator.reconcile.concern import Concern, Needs, Outcome
from medianest_operator.reconcile.context import Run
from medianest_operator.resources import secrets
from medianest_operator.timestamps import stamp

_GIVEN_CA: Final = "given-server-ca"
_GIVEN_SECRET_EVERY: Final = 60.0
"""Seconds after which an admin's Secret is read again."""
_SOONEST_RENEWAL: Final = 60.0
"""Seconds: a certificate that is due although it was just issued must not make a busy loop."""


def server_names(run: Run) -> tuple[str, ...]:
    """The names that clients, the operator and the other members connect by."""
    names = run.names
    hosts = [names.read_write_service, names.read_only_service, f"*.{names.pods_service}"]
    found: list[str] = []
    for host in hosts:
        found += [f"{host}.{names.namespace}.svc", f"{host}.{names.namespace}.svc.cluster.local"]
    found += [names.read_write_service, names.read_only_service, f"{names.read_write_service}.{names.namespace}"]
    return (*found, "localhost")


@dataclass(frozen=True)
class ServerIdentity:
    """The server's certificate.

    Attributes:
        ca: the CA that clients verify it with, as PEM; `None` where the admin's Secret can't be used and none was seen
            before.
    """

    ca: str | None


async def reconcile(run: Run) -> Outcome:
    """Leave valid certificates in their Secrets; hand on the controller's credentials and the server's CA.

    An admin's Secret that can't be used is a problem of its own: the operator's certificates are renewed all the same.
    """
    now = datetime.now(UTC)
    names = run.names
    issuer = await _ca(run, now)
    own = [
        await _issued(run, names.patroni_tls_secret, naming.CERT_PATRONI, issuer, now),
        await _issued(run, names.controller_tls_secret, naming.CERT_CONTROLLER, issuer, now),
    ]
    problem: Permanent | None = None
    server: KeyPair | None = None
    ca: str | None = issuer.certificate
    if run.spec.tls.server_secret:
        try:
            server, ca = await _given_server(run, run.spec.tls.server_secret)
            run.services.memory.keep(run.key, _GIVEN_CA, None, ca)
        except Permanent as error:
            problem, ca = error, run.services.memory.recall(run.key, _GIVEN_CA, None, math.inf)
    else:
        server = await _issued(run, names.server_tls_secret, names.database, issuer, now, server_names(run))
        own.append(server)
    facts: list[object] = [ServerIdentity(ca)]
    if ca is not None:
        facts.append(Credentials(own[1].certificate, own[1].key, ca))
    if server is not None:
        metrics.CERTIFICATE_NOT_AFTER.labels(*run.key).set(server.not_after().timestamp())
    return Outcome(
        facts=tuple(facts),
        status={"certificates": api.Certificates(server_not_after=stamp(server.not_after()))} if server else {},
        problem=problem,
        next_look=_until_renewal(run, own, now),
    )


async def observe(run: Run) -> Outcome:
    """Only read what is there, for a database that nothing may be changed of."""
    controller = await _read(run, run.names.controller_tls_secret)
    issuer = await _read(run, run.names.ca_secret)
    if controller is None or issuer is None:
        return Outcome()
    server_ca = issuer.certificate
    if run.spec.tls.server_secret:
        _, server_ca = await _given_server(run, run.spec.tls.server_secret)
    return Outcome(facts=(ServerIdentity(server_ca), Credentials(controller.certificate, controller.key, server_ca)))


def _until_renewal(run: Run, own: Iterable[KeyPair], now: datetime) -> float:
    """Seconds until the first of the operator's own certificates is due; an admin's is renewed by the admin."""
    if run.spec.tls.server_secret:
        # Nobody watches an admin's Secret.
        return _GIVEN_SECRET_EVERY
    due = min(pair.not_after() for pair in own) - to_timedelta(run.spec.tls.renew_before)
    return max(_SOONEST_RENEWAL, (due - now).total_seconds())


async def _read(run: Run, name: str) -> KeyPair | None:
    # What the cache lacks may only have lost its labels: clients trust the CA in there.
    secret = await run.services.applier.live(SECRET, run.names.namespace, name)
    if secret is None:
        return None
    certificate, key = secrets.decode(secret, naming.TLS_CERT), secrets.decode(secret, naming.TLS_KEY)
    return KeyPair(certificate, key) if certificate and key else None


async def _ca(run: Run, now: datetime) -> KeyPair:
    name = run.names.ca_secret
    issuer = await _read(run, name)
    try:
        if issuer is None or issuer.not_after() - now < certificates.CA_RENEW_BEFORE:
            issuer = certificates.new_ca(f"{run.names.database} CA", now, issuer)
    except ValueError:
        issuer = certificates.new_ca(f"{run.names.database} CA", now)
    await _store(run, name, issuer, issuer.certificate)
    return issuer


async def _issued(
    run: Run, name: str, common_name: str, issuer: KeyPair, now: datetime, dns_names: tuple[str, ...] = ()
) -> KeyPair:
    pair = await _read(run, name)
    if pair is None or _due(run, pair, issuer, now, dns_names):
        renewing = pair is not None
        pair = certificates.issue(issuer, common_name, now, to_timedelta(run.spec.tls.duration), dns_names)
        if renewing and dns_names:
            until = pair.not_after().strftime("%Y-%m-%d %H:%M UTC")
            message = f"The server certificate was renewed; it is valid until {until}. Open connections stay."
            await run.services.recorder.record(run.database, "Normal", "CertificateRenewed", message)
    await _store(run, name, pair, issuer.certificate)
    return pair


def _due(run: Run, pair: KeyPair, issuer: KeyPair, now: datetime, dns_names: tuple[str, ...]) -> bool:
    try:
        # A certificate never outlives its CA: what is left of the CA's time is all that a new one could have.
        longest = min(to_timedelta(run.spec.tls.duration), issuer.not_after() - now)
        return (
            pair.not_after() - now < min(to_timedelta(run.spec.tls.renew_before), longest / 2)
            or pair.not_after() - now > longest + timedelta(minutes=1)
            or not certificates.signed_by(pair.certificate, issuer.certificate)
            or not certificates.key_matches(pair.certificate, pair.key)
            or not certificates.dns_names(pair.certificate) >= set(dns_names)
        )
    except ValueError:
        return True


async def _store(run: Run, name: str, pair: KeyPair, ca: str) -> None:
    await run.services.applier.apply(
        SECRET, secrets.tls_secret(run.names, name, pair.certificate, pair.key, ca, run.owner)
    )


async def _given_server(run: Run, name: str) -> tuple[KeyPair, str]:
    field = "tls.serverSecret"
    secret = await run.services.client.get(SECRET, run.names.namespace, name)
    if secret is None:
        raise Permanent(Reason.INVALID_CERTIFICATE, f"{field}: there is no Secret {name} in this namespace")
    keys = naming.TLS_CERT, naming.TLS_KEY, naming.TLS_CA
    certificate, key, ca = (secrets.decode(secret, item) for item in keys)
    if not (certificate and key and ca):
        raise Permanent(Reason.INVALID_CERTIFICATE, f"{field}: Secret {name} must hold {', '.join(keys)}")
    try:
        pair = KeyPair(certificate, key)
        ended = pair.not_after() <= datetime.now(UTC)
        fits = certificates.key_matches(certificate, key)
        have = certificates.dns_names(certificate)
        certificates.not_after(ca)
    except ValueError as error:
        raise Permanent(Reason.INVALID_CERTIFICATE, f"{field}: Secret {name} can't be read: {error}") from error
    if ended:
        raise Permanent(
            Reason.INVALID_CERTIFICATE,
            f"{field}: the certificate in Secret {name} expired at {stamp(pair.not_after())}; put a valid one there",
        )
    if not fits:
        raise Permanent(
            Reason.INVALID_CERTIFICATE, f"{field}: the private key in Secret {name} does not match the certificate"
        )
    needed = {
        run.names.service_fqdn(run.names.read_write_service),
        f"*.{run.names.pods_service}.{run.names.namespace}.svc",
    }
    if missing := sorted(needed - have):
        raise Permanent(
            Reason.INVALID_CERTIFICATE, f"{field}: the certificate in Secret {name} doesn't name {', '.join(missing)}"
        )
    return pair, ca


CONCERN = Concern("certificates", Needs.NOTHING, reconcile, observe, stable=True)
