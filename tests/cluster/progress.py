"""Lines that tell a waiting person what is being done and how long it took."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from typing import Any

HEARTBEAT_SECONDS = 30.0
_lock = threading.Lock()


def say(line: str) -> None:
    """Print one line to standard error, whole, whatever else prints at the time."""
    with _lock:
        print(line, file=sys.stderr, flush=True)


@contextmanager
def step(what: str) -> Iterator[None]:
    """Tell how long the block took; while it takes long, tell that it still runs."""
    start = time.monotonic()
    done = threading.Event()

    def heartbeat() -> None:
        while not done.wait(HEARTBEAT_SECONDS):
            say(f"  ... {what} ({time.monotonic() - start:.0f} s so far)")

    thread = threading.Thread(target=heartbeat, daemon=True)
    thread.start()
    try:
        yield
    except BaseException:
        say(f"  !!  {what} failed after {time.monotonic() - start:.1f} s")
        raise
    else:
        say(f"  ok  {what} ({time.monotonic() - start:.1f} s)")
    finally:
        done.set()
        thread.join()


def together(tasks: Mapping[str, Callable[[], Any]]) -> dict[str, Any]:
    """Run functions side by side and return their results by name.

    Raises:
        Exception: what the first task to fail raised; the others are waited for before that.
    """
    if not tasks:
        return {}
    with ThreadPoolExecutor(max_workers=len(tasks)) as pool:
        futures = {pool.submit(task): name for name, task in tasks.items()}
        return {futures[future]: future.result() for future in as_completed(futures)}
