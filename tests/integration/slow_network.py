"""A server's socket as one finds it at the far end of a slow network."""

import socket
import socketserver
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_NAME = ".s.PGSQL.5432"


@contextmanager
def slow_network(folder: Path, server: Path, delay: float) -> Iterator[Path]:
    """The folder of a socket that leads to a server's, where each thing that a client says takes some time.

    Args:
        folder: an empty one.
        server: the folder of the server's own socket.
        delay: seconds.
    """

    class Relay(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with socket.socket(socket.AF_UNIX) as upstream:
                upstream.connect(str(server / _NAME))
                back = threading.Thread(target=_pass_on, args=(upstream, self.request), daemon=True)
                back.start()
                _pass_on(self.request, upstream, delay)
                back.join()

    with socketserver.ThreadingUnixStreamServer(str(folder / _NAME), Relay) as relay:
        thread = threading.Thread(target=relay.serve_forever)
        thread.start()
        try:
            yield folder
        finally:
            relay.shutdown()
            thread.join()


def _pass_on(source: socket.socket, target: socket.socket, delay: float = 0) -> None:
    try:
        while data := source.recv(65536):
            time.sleep(delay)
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        # One side is gone: the other hears it.
        for end in (source, target):
            end.close()
