"""Runs in a pod: one INSERT every 50 ms through the read-write Service, each with a deadline of a second.

A row counts as acknowledged when its COMMIT was answered. Prints the acknowledged numbers and the longest gap as JSON
when its time is up, or once there is a file /tmp/stop.
"""

import asyncio
import json
import os
import sys
import time
from itertools import pairwise
from pathlib import Path

import psycopg

PERIOD, DEADLINE = 0.05, 1.0
STOP = Path("/tmp/stop")


async def main(seconds: float) -> None:
    acknowledged: list[tuple[int, float]] = []
    connection = None
    number = 0
    end = time.monotonic() + seconds
    while time.monotonic() < end and not STOP.exists():
        started = time.monotonic()
        try:
            async with asyncio.timeout(DEADLINE):
                if connection is None:
                    connection = await psycopg.AsyncConnection.connect(
                        os.environ["URI"], autocommit=True, connect_timeout=2, target_session_attrs="read-write"
                    )
                number += 1
                await connection.execute("INSERT INTO writes VALUES (%s)", [number])
                acknowledged.append((number, time.monotonic()))
        except (psycopg.Error, TimeoutError, OSError):
            if connection is not None:
                connection.pgconn.finish()
                connection = None
        if len(acknowledged) == 1:
            print("writing", flush=True)
        await asyncio.sleep(max(0.0, PERIOD - (time.monotonic() - started)))
    times = [moment for _, moment in acknowledged]
    gap = max((later - earlier for earlier, later in pairwise(times)), default=seconds)
    print(json.dumps({"acknowledged": [n for n, _ in acknowledged], "gap": round(gap, 2)}), flush=True)


asyncio.run(main(float(sys.argv[1])))
