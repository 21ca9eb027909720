"""`/healthz` and `/readyz` of the process, for the kubelet."""

from aiohttp import web


class Health:
    """Alive while the event loop answers; ready once the process stands by or leads."""

    def __init__(self) -> None:
        self.ready = False
        self._runner: web.AppRunner | None = None

    async def start(self, port: int) -> None:
        """Answer on `port`. Raises OSError where it is taken."""
        app = web.Application()
        app.router.add_get("/healthz", self._alive)
        app.router.add_get("/readyz", self._readiness)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        await web.TCPSite(self._runner, port=port).start()

    async def stop(self) -> None:
        if self._runner:
            await self._runner.cleanup()

    async def _alive(self, _: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _readiness(self, _: web.Request) -> web.Response:
        return web.Response(text="ok\n") if self.ready else web.Response(status=503, text="starting\n")
