"""Runs in a pod: rows of 256 KiB through the read-write Service, some 20 MB/s, and reads beside them.

A row counts as acknowledged when its COMMIT was answered. A session that is ended is made again at once; a read counts
as failed where that doesn't help. Prints `writing` when rows go in, `refused` when they don't any more, and at its end,
once there is a file /tmp/stop, an account as JSON.
"""

import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psycopg

ROW, RATE = 256 * 1024, 20 * 1024 * 1024
STOP = Path("/tmp/stop")
state: dict[str, Any] = {"reads": 0, "reads_while_refused": 0, "failed_reads": [], "refused": False}


def connect() -> psycopg.Connection:
    return psycopg.connect(os.environ["URI"], autocommit=True, connect_timeout=5)


def read() -> None:
    connection = None
    while not STOP.exists():
        for attempt in (1, 2):
            try:
                connection = connection or connect()
                connection.execute("SELECT count(*) FROM filling WHERE n < 10").fetchone()
                state["reads"] += 1
                state["reads_while_refused"] += state["refused"]
                break
            except psycopg.Error as error:
                if connection is not None:
                    connection.close()
                    connection = None
                if attempt == 2:
                    state["failed_reads"].append(str(error))
        time.sleep(0.1)


def write() -> list[int]:
    acknowledged: list[int] = []
    number, connection, told = 0, None, ""
    while not STOP.exists():
        started = time.monotonic()
        number += 1
        try:
            connection = connection or connect()
            connection.execute("INSERT INTO filling VALUES (%s, %s)", [number, os.urandom(ROW)])
            acknowledged.append(number)
            now = "writing"
        except psycopg.errors.ReadOnlySqlTransaction:
            now = "refused"
            time.sleep(0.5)
        except psycopg.Error as error:
            print(f"error {' '.join(str(error).split())}", flush=True)
            now = told
            if connection is not None:
                connection.close()
                connection = None
        state["refused"] = now == "refused"
        if now != told:
            print(now, flush=True)
            told = now
        time.sleep(max(0.0, ROW / RATE - (time.monotonic() - started)))
    return acknowledged


reader = threading.Thread(target=read)
reader.start()
rows = write()
reader.join()
print(json.dumps({**state, "acknowledged": rows}), flush=True)
sys.exit(0)
