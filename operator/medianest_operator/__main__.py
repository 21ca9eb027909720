"""The controller's command line: `medianest-operator run`, and `crd`, which prints the resource definition."""

import asyncio
import contextlib
import ctypes
import gc
import ipaddress
import linecache
import logging
import os
import signal
import socket
from collections.abc import Coroutine
from pathlib import Path
from typing import Annotated, Any

import typer

from medianest_operator import __version__, naming
from medianest_operator.settings import Settings

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__)
log = logging.getLogger(naming.OPERATOR)

_NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_TRIM_EVERY = 60.0
"""Seconds."""


@app.command()
def run(
    postgres_image: Annotated[str, typer.Option(envvar="POSTGRES_IMAGE", help="Image of databases that name none.")],
    namespaces: Annotated[
        str, typer.Option(envvar="WATCH_NAMESPACES", help="Namespaces to watch, separated by commas; all where empty.")
    ] = "",
    metrics_port: Annotated[int, typer.Option(envvar="METRICS_PORT")] = naming.METRICS_PORT,
    health_port: Annotated[int, typer.Option(envvar="HEALTH_PORT")] = naming.HEALTH_PORT,
    probe_interval: Annotated[
        float, typer.Option(envvar="PROBE_INTERVAL", min=1, help="Seconds between two probes of a database.")
    ] = 15,
    workers: Annotated[int, typer.Option(envvar="WORKERS", min=1, help="Databases reconciled at a time.")] = 16,
    leader_election: Annotated[
        bool, typer.Option(envvar="LEADER_ELECTION", help="Act only while holding the Lease.")
    ] = True,
    instance_role: Annotated[
        str, typer.Option(envvar="INSTANCE_ROLE", help="Kind/name of the role that the databases' pods are bound to.")
    ] = naming.INSTANCE_ROLE,
    webhook_allow: Annotated[
        str,
        typer.Option(
            envvar="WEBHOOK_ALLOW",
            help="Networks (CIDR, separated by commas) that notifications may reach although they are not public.",
        ),
    ] = "",
    log_level: Annotated[str, typer.Option(envvar="LOG_LEVEL", help="debug, info, warning or error.")] = "info",
    log_format: Annotated[str, typer.Option(envvar="LOG_FORMAT", help="json or text.")] = "json",
) -> None:
    """Reconcile until told to stop."""
    from medianest_operator.observability import logging as logs

    logs.configure(log_level, json_lines=log_format == "json")
    settings = Settings(
        postgres_image=postgres_image,
        namespaces=tuple(name.strip() for name in namespaces.split(",") if name.strip()),
        instance_role=instance_role,
        operator_namespace=os.environ.get("POD_NAMESPACE") or _own_namespace(),
        identity=os.environ.get("POD_NAME") or f"{socket.gethostname()}-{os.getpid()}",
        probe_interval=probe_interval,
        workers=workers,
        metrics_port=metrics_port,
        health_port=health_port,
        leader_election=leader_election,
        webhook_networks=_networks(webhook_allow),
    )
    raise typer.Exit(asyncio.run(_serve(settings)))


@app.command()
def crd() -> None:
    """Print the CustomResourceDefinitions."""
    import yaml

    from medianest_operator.api.crd import custom_resource_definitions

    typer.echo(yaml.safe_dump_all(custom_resource_definitions().values(), sort_keys=False, width=120), nl=False)


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(__version__)


def _networks(text: str) -> tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]:
    try:
        return tuple(ipaddress.ip_network(item.strip()) for item in text.split(",") if item.strip())
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--webhook-allow") from error


def _own_namespace() -> str:
    return _NAMESPACE_FILE.read_text().strip() if _NAMESPACE_FILE.exists() else "medianest-system"


async def _keep_small() -> None:
    """Give memory that is free again back to the system: glibc keeps what a burst of work needed (malloc_trim(3))."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    while trim:
        await asyncio.sleep(_TRIM_EVERY)
        trim(0)


async def _serve(settings: Settings) -> int:
    """Stand by, lead, and stop in good order. Returns the exit code: 1 where the Lease was lost."""
    from medianest_operator.controller.health import Health
    from medianest_operator.controller.lease import Lease
    from medianest_operator.kubernetes.access import Access
    from medianest_operator.kubernetes.client import KubernetesClient
    from medianest_operator.observability import metrics

    stop = asyncio.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(name, stop.set)
    health = Health()
    await health.start(settings.health_port)
    metrics.serve(settings.metrics_port)
    log.info("starting", extra={"version": __version__, "identity": settings.identity})
    async with KubernetesClient(Access.load()) as client:
        health.ready = True
        lease = Lease(client, settings.operator_namespace, settings.identity)
        if settings.leader_election and not await _until(lease.acquire(), stop):
            return 0
        # Only the one that leads needs kopf and all the rest: a standby stays small.
        from medianest_operator.controller import handlers
        from medianest_operator.controller.loop import Loop

        # The models' sources were read for their descriptions. What was imported stays; and a cache of thousands of
        # objects isn't searched for cycles with every few of them.
        linecache.clearcache()
        gc.collect()
        gc.freeze()
        gc.set_threshold(20_000, 20, 50)
        metrics.LEADER.set(1)
        if settings.leader_election:
            client.may_write = lambda: lease.is_held
        loop = Loop(settings, client)
        health.alive = loop.is_alive
        working = asyncio.create_task(handlers.run(settings, client, stop, loop))
        trimming = asyncio.create_task(_keep_small())
        holding = asyncio.create_task(lease.hold()) if settings.leader_election else None
        done, _ = await asyncio.wait({task for task in (working, holding) if task}, return_when="FIRST_COMPLETED")
        lost = holding is not None and holding in done
        if lost:
            # Another replica may act from now on: leave at once, with nothing written any more.
            log.error("leaving: the lease is lost")
            os._exit(1)
        await working
        trimming.cancel()
        if holding:
            holding.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await holding
            await lease.release()
    await health.stop()
    log.info("stopped")
    return 0 if stop.is_set() else 1


async def _until(work: Coroutine[Any, Any, None], stop: asyncio.Event) -> bool:
    """Run `work` unless `stop` comes first. Returns whether it ended."""
    task = asyncio.create_task(work)
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait({task, stopping}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if not task.done():
        task.cancel()
        return False
    task.result()
    return True


def main() -> None:
    """Entry point of the console script."""
    app()


if __name__ == "__main__":
    main()
