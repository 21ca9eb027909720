"""An S3 server with TLS, beside the control plane, for backups that leave their cluster's volumes."""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass
from pathlib import Path

from cluster.components import DOMAIN, Component
from cluster.layout import Layout
from cluster.manifests import Manifest, external_service
from cluster.pki import Authority

NAMESPACE = "s3"
SERVICE = "s3"
HOST = f"{SERVICE}.{NAMESPACE}.svc"
PORT = 7070
REGION = "us-east-1"


@dataclass(frozen=True)
class ObjectStore:
    """How to reach the S3 server.

    Attributes:
        endpoint: its URL, for pods and for commands on the cluster's network.
        address: its address there, for :meth:`cluster.Cluster.forward`; the certificate is good for 127.0.0.1, too.
        port: its port at that address.
        region: what it calls its region.
        access_key: the name of its only user.
        secret_key: that user's password.
        authority: the file of the certificate authority that vouches for it, PEM.
        data: its folder, with a folder in it for each bucket.
    """

    endpoint: str
    address: str
    port: int
    region: str
    access_key: str
    secret_key: str
    authority: Path
    data: Path


def _root(layout: Layout) -> Path:
    return layout.root / "s3"


def prepare(layout: Layout) -> None:
    """Write the server's certificate and credentials, unless they are there."""
    root = _root(layout)
    (root / "data").mkdir(parents=True, exist_ok=True)
    authority = Authority(root / "pki")
    authority.create()
    names = [SERVICE, f"{SERVICE}.{NAMESPACE}", HOST, f"{HOST}.{DOMAIN}", "localhost", "127.0.0.1"]
    authority.issue("server", HOST, names=[*names, str(layout.addresses.control_plane)])
    credentials = root / "credentials.json"
    if not credentials.exists():
        credentials.touch(mode=0o600)
        keys = {"access_key": secrets.token_hex(10), "secret_key": secrets.token_urlsafe(30)}
        credentials.write_text(json.dumps(keys))


def access(layout: Layout) -> ObjectStore:
    """How to reach the server of a cluster that has one."""
    root = _root(layout)
    keys = json.loads((root / "credentials.json").read_text())
    return ObjectStore(
        endpoint=f"https://{HOST}",
        address=str(layout.addresses.control_plane),
        port=PORT,
        region=REGION,
        access_key=keys["access_key"],
        secret_key=keys["secret_key"],
        authority=root / "pki" / "ca.crt",
        data=root / "data",
    )


def component(binary: Path, layout: Layout) -> Component:
    """The server."""
    root, store = _root(layout), access(layout)
    flags = (
        f"--port={store.address}:{PORT}",
        f"--region={REGION}",
        f"--cert={root / 'pki' / 'server.crt'}",
        f"--key={root / 'pki' / 'server.key'}",
        "--quiet",
    )
    # In the environment, since everybody on the machine may read a command line.
    credentials = {"ROOT_ACCESS_KEY": store.access_key, "ROOT_SECRET_KEY": store.secret_key}
    return Component("s3", (str(binary), *flags, "posix", str(store.data)), credentials)


def manifests(layout: Layout) -> list[Manifest]:
    """A Service by which pods reach the server."""
    ports = [{"name": "https", "port": 443, "targetPort": PORT, "protocol": "TCP"}]
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}
    return [namespace, *external_service(SERVICE, NAMESPACE, str(layout.addresses.control_plane), ports)]
