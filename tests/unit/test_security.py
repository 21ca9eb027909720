"""Passwords, certificates, connection strings."""

from __future__ import annotations

import base64
import hashlib
import hmac
from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from cryptography import x509
from hypothesis import given, settings
from hypothesis import strategies as st

from medianest_operator.api.database import DatabaseSpec
from medianest_operator.naming import Names
from medianest_operator.postgres import certificates, hba, logins, scram
from medianest_operator.postgres.roles import LiveRole, WantedRole, role_statements
from medianest_operator.resources import secrets

NOW = datetime(2026, 1, 2, tzinfo=UTC)


@settings(deadline=None)
@given(st.text(min_size=1).filter(lambda text: "\x00" not in text and text.isascii()))
def test_a_verifier_matches_its_password_only(password: str) -> None:
    verifier = scram.verifier(password)
    assert scram.matches(password, verifier)
    assert not scram.matches(password + "x", verifier)


def test_the_verifier_is_the_one_of_rfc_5803() -> None:
    # Recomputed from the RFC's formulas, step by step.
    scheme, parameters, keys = scram.verifier("pencil").split("$")
    iterations, salt = parameters.split(":")
    salted = hashlib.pbkdf2_hmac("sha256", b"pencil", base64.b64decode(salt), int(iterations))
    stored = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    assert scheme == "SCRAM-SHA-256"
    assert keys.split(":")[0] == base64.b64encode(stored).decode()


@pytest.mark.parametrize("stored", [None, "", "md5abc", "SCRAM-SHA-256$broken", "SCRAM-SHA-256$x:y$z"])
def test_anything_else_matches_no_password(stored: str | None) -> None:
    assert not scram.matches("password", stored)


def test_a_right_role_needs_no_statement() -> None:
    wanted = WantedRole("m", "secret", frozenset({"owner"}), acts_as="owner")
    live = LiveRole(True, scram.verifier("secret"), ("role=owner",), frozenset({"owner"}))
    assert role_statements(wanted, live) == []


def test_a_changed_password_never_reaches_the_log() -> None:
    live = LiveRole(True, scram.verifier("old"), (), frozenset())
    (statement,) = role_statements(WantedRole("app", "new password"), live)
    text = statement.as_string(None)
    assert "new password" not in text
    assert "SCRAM-SHA-256$" in text


def test_certificates_are_signed_renewable_and_named() -> None:
    authority = certificates.new_ca("db authority", NOW)
    server = certificates.issue(authority, "db", NOW, timedelta(days=90), ("db-rw.ns.svc",))
    assert certificates.signed_by(server.certificate, authority.certificate)
    assert certificates.dns_names(server.certificate) == {"db-rw.ns.svc"}
    assert certificates.key_matches(server.certificate, server.key)
    assert server.not_after() == NOW + timedelta(days=90)
    renewed = certificates.new_ca("db authority", NOW + timedelta(days=3000), authority)
    assert renewed.certificate != authority.certificate
    assert certificates.signed_by(server.certificate, renewed.certificate)
    stranger = certificates.new_ca("db authority", NOW)
    assert not certificates.signed_by(server.certificate, stranger.certificate)
    client = certificates.issue(authority, "medianest-patroni", NOW, timedelta(days=1))
    usage = x509.load_pem_x509_certificate(client.certificate.encode()).extensions.get_extension_for_class(
        x509.ExtendedKeyUsage
    )
    assert [item.dotted_string for item in usage.value] == ["1.3.6.1.5.5.7.3.2"]


def test_nobody_is_trusted() -> None:
    lines = hba.rules("medianest_controller")
    assert not any("trust" in line or "password" in line or "md5" in line for line in lines)
    assert lines[-1] == "host all all all reject"
    assert all(line.split()[0] in {"local", "hostssl"} for line in lines[:-1])


@given(st.text(min_size=1, max_size=40).filter(lambda text: text.isprintable()))
def test_any_password_survives_the_connection_strings(password: str) -> None:
    manifest = secrets.login_secret(Names("ns", "db"), DatabaseSpec(), logins.APP, password, "CA", {}, replicas=False)
    data = {key: base64.b64decode(value).decode() for key, value in manifest["data"].items()}
    for key in ("uri", "DATABASE_URL"):
        parts = urlsplit(data[key])
        assert unquote(parts.password or "") == password
        assert (parts.hostname, parts.port, parts.path) == ("db-rw.ns.svc", 5432, "/medianest")
    query = parse_qs(urlsplit(data["DATABASE_URL"]).query)
    assert query["connection_limit"] == ["50"]
    assert query["pool_timeout"] == ["60"]
    assert query["sslmode"] == ["require"]
    assert parse_qs(urlsplit(data["jdbc-uri"].removeprefix("jdbc:")).query)["password"] == [password]
