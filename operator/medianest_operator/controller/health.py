"""`/healthz` and `/readyz` of the process, for the kubelet."""

from __future__ import annotations

from collections.abc import Callable

from aiohttp import web


class Health:
    """Ready once the process stands by or leads; alive while the event loop answers and the loop's tasks do, too."""

    def __init__(self) -> None:
        self.ready = False
        self.alive: Callable[[], bool] = lambda: True
        """Whether what runs in the process still does what it should."""
        self._runner: web.AppRunner | None = None

    async def start(self, port: int) -> None:
        """Answer on `port`. Raises OSError where it is taken."""
        app = web.Application()
        app.router.add_get("/healthz", self._liveness)
        app.router.add_get("/readyz", self._readiness)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        await web.TCPSite(self._runner, port=port).start()

    async def stop(self) -> None:
        """Stop answering."""
        if self._runner:
            await self._runner.cleanup()

    async def _liveness(self, _: web.Request) -> web.Response:
        return web.Response(text="ok\n") if self.alive() else web.Response(status=503, text="the loop hangs\n")

    async def _readiness(self, _: web.Request) -> web.Response:
        return web.Response(text="ok\n") if self.ready else web.Response(status=503, text="starting\n")
