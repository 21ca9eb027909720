"""Where the API server is, and how this process logs in there."""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")


class NoAccess(Exception):
    """Neither a service account nor a usable kubeconfig; the message says which is missing."""


@dataclass(frozen=True)
class Access:
    """The address of an API server, and what is shown to it.

    Attributes:
        server: its URL without a slash at the end.
        ca_file: the CA that its certificate has to be of, as PEM; `None`: the machine's.
        certificate_file: the client certificate, as PEM, with its key in `key_file`.
        token: a fixed value of the Authorization header.
        token_file: a bearer token that is read again for each request, since the kubelet rotates it.
    """

    server: str
    ca_file: str | None = None
    certificate_file: str | None = None
    key_file: str | None = None
    token: str | None = None
    token_file: Path | None = None

    @classmethod
    def load(cls, account: Path = _ACCOUNT) -> Access:
        """In a pod its service account, elsewhere $KUBECONFIG (Kubernetes manual, Accessing the API from a pod).

        Raises:
            NoAccess: there is neither.
        """
        host, port = os.environ.get("KUBERNETES_SERVICE_HOST"), os.environ.get("KUBERNETES_SERVICE_PORT")
        if host and port and (account / "token").exists():
            server = f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"
            return cls(server, ca_file=str(account / "ca.crt"), token_file=account / "token")
        return cls.of_kubeconfig()

    @classmethod
    def of_kubeconfig(cls, path: Path | None = None) -> Access:
        """The current context of a kubeconfig; without a path, of $KUBECONFIG or ~/.kube/config.

        Raises:
            NoAccess: there is none.
        """
        # Here, since the package brings hundreds of modules and 24 MiB, which no pod needs.
        import kubernetes.client
        import kubernetes.config

        configuration = kubernetes.client.Configuration()
        try:
            kubernetes.config.load_kube_config(  # type: ignore[no-untyped-call]
                config_file=str(path) if path else None, client_configuration=configuration
            )
        except kubernetes.config.ConfigException as error:
            raise NoAccess(str(error)) from error
        keys = configuration.api_key or {}
        # The first since version 36 of the package.
        token = keys.get("BearerToken") or keys.get("authorization")
        return cls(
            str(configuration.host).rstrip("/"),
            ca_file=configuration.ssl_ca_cert,
            certificate_file=configuration.cert_file,
            key_file=configuration.key_file,
            token=f"Bearer {token}" if token and " " not in token else token,
        )

    def authorization(self) -> str | None:
        """The Authorization header as it has to be now; `None` where a certificate or nothing is shown."""
        return f"Bearer {self.token_file.read_text().strip()}" if self.token_file else self.token

    def tls(self) -> ssl.SSLContext | None:
        """For connections to it; `None` for plain HTTP."""
        if not self.server.startswith("https://"):
            return None
        context = ssl.create_default_context(cafile=self.ca_file)
        if self.certificate_file:
            context.load_cert_chain(self.certificate_file, self.key_file)
        return context
