"""Who may connect how: pg_hba.conf and pg_ident.conf (PostgreSQL 15 manual, chapter 21).

No `trust` anywhere; over TCP only TLS; people and the application by scram-sha-256, the superuser, replication and the
controller's reader only by a client certificate of the database's own CA.
"""

from medianest_operator import naming


def rules(reader: str) -> list[str]:
    """Lines of pg_hba.conf, the first that fits wins.

    Args:
        reader: the role of `logins.controller_name`.
    """
    by_certificate = f"cert map={naming.CERT_MAP}"
    return [
        f"local all {naming.SUPERUSER} peer",
        f"local replication {naming.SUPERUSER} peer",
        f"hostssl replication {naming.REPLICATION_ROLE} all {by_certificate}",
        f"hostssl all {naming.SUPERUSER},{naming.REPLICATION_ROLE} all {by_certificate}",
        f"hostssl all {reader} all {by_certificate}",
        "hostssl all all all scram-sha-256",
        "host all all all reject",
    ]


def identity_map(reader: str) -> list[str]:
    """Lines of pg_ident.conf: which certificate name may be which role.

    Args:
        reader: the role of `logins.controller_name`.
    """
    return [
        f"{naming.CERT_MAP} {naming.CERT_PATRONI} {naming.REPLICATION_ROLE}",
        f"{naming.CERT_MAP} {naming.CERT_PATRONI} {naming.SUPERUSER}",
        f"{naming.CERT_MAP} {naming.CERT_CONTROLLER} {naming.SUPERUSER}",
        f"{naming.CERT_MAP} {naming.CERT_CONTROLLER} {reader}",
    ]
