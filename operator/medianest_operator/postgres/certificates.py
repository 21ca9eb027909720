"""The database's own certificate authority, and the certificates that it issues.

P-256 keys; the CA lives ten years and its certificate is renewed with the same key, so that trust goes on.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

CA_LIFETIME: Final = timedelta(days=3650)
CA_RENEW_BEFORE: Final = timedelta(days=730)
_SKEW: Final = timedelta(minutes=5)
"""A certificate starts this much in the past, for nodes whose clock is a little behind."""


_REMEMBERED: Final = 8192
"""Answers kept of each question below: they never change, and asking costs more than the rest of an idle run."""


@dataclass(frozen=True)
class KeyPair:
    """A certificate and its private key, as PEM."""

    certificate: str
    key: str

    def not_after(self) -> datetime:
        """The certificate's end, in UTC. Raises ValueError where it isn't a certificate."""
        return not_after(self.certificate)


@lru_cache(maxsize=_REMEMBERED)
def not_after(certificate: str) -> datetime:
    """The end of a PEM certificate, in UTC. Raises ValueError where it isn't one."""
    return x509.load_pem_x509_certificate(certificate.encode()).not_valid_after_utc


def _pem(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> KeyPair:
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return KeyPair(certificate.public_bytes(serialization.Encoding.PEM).decode(), private.decode())


def _load_key(pair: KeyPair) -> ec.EllipticCurvePrivateKey:
    key = serialization.load_pem_private_key(pair.key.encode(), None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError("the CA's key is not an elliptic curve key")
    return key


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def new_ca(common_name: str, now: datetime, previous: KeyPair | None = None) -> KeyPair:
    """A self-signed CA; with `previous`, its successor with the same key."""
    key = _load_key(previous) if previous else ec.generate_private_key(ec.SECP256R1())
    certificate = (
        x509.CertificateBuilder()
        .subject_name(_name(common_name))
        .issuer_name(_name(common_name))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SKEW)
        .not_valid_after(now + CA_LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(is_ca=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return _pem(certificate, key)


def issue(
    issuer: KeyPair, common_name: str, now: datetime, lifetime: timedelta, dns_names: tuple[str, ...] = ()
) -> KeyPair:
    """A certificate signed by the CA: for a server where it has names, else for a client."""
    ca = x509.load_pem_x509_certificate(issuer.certificate.encode())
    ca_key = _load_key(issuer)
    key = ec.generate_private_key(ec.SECP256R1())
    usage = ExtendedKeyUsageOID.SERVER_AUTH if dns_names else ExtendedKeyUsageOID.CLIENT_AUTH
    builder = (
        x509.CertificateBuilder()
        .subject_name(_name(common_name))
        .issuer_name(ca.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SKEW)
        .not_valid_after(min(now + lifetime, ca.not_valid_after_utc))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(is_ca=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
    )
    if dns_names:
        names = x509.SubjectAlternativeName([x509.DNSName(name) for name in dns_names])
        builder = builder.add_extension(names, critical=False)
    return _pem(builder.sign(ca_key, hashes.SHA256()), key)


def _key_usage(*, is_ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=is_ca,
        crl_sign=is_ca,
        encipher_only=False,
        decipher_only=False,
    )


@lru_cache(maxsize=_REMEMBERED)
def signed_by(certificate: str, issuer: str) -> bool:
    """Whether the certificate was issued by this CA (its key, whatever certificate it has now)."""
    try:
        child = x509.load_pem_x509_certificate(certificate.encode())
        parent = x509.load_pem_x509_certificate(issuer.encode())
        child.verify_directly_issued_by(parent)
    except Exception:
        return False
    return True


@lru_cache(maxsize=_REMEMBERED)
def dns_names(certificate: str) -> frozenset[str]:
    """The names that a server certificate is for. Raises ValueError where it isn't a certificate."""
    loaded = x509.load_pem_x509_certificate(certificate.encode())
    try:
        extension = loaded.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return frozenset()
    return frozenset(extension.value.get_values_for_type(x509.DNSName))


@lru_cache(maxsize=_REMEMBERED)
def key_matches(certificate: str, key: str) -> bool:
    """Whether the private key is the certificate's. Raises ValueError where either can't be read."""
    public = x509.load_pem_x509_certificate(certificate.encode()).public_key()
    private = serialization.load_pem_private_key(key.encode(), None)
    encoding = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    return public.public_bytes(*encoding) == private.public_key().public_bytes(*encoding)
