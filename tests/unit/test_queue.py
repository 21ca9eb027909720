"""The work queue: one run a key at a time, nothing lost, nothing twice."""

from __future__ import annotations

import asyncio

from medianest_operator.controller.queue import WorkQueue
from medianest_operator.naming import Key

A, B = ("ns", "a"), ("ns", "b")


async def test_a_key_added_while_it_runs_runs_once_more() -> None:
    queue, runs, started, go = WorkQueue(), [], asyncio.Event(), asyncio.Event()
    done = asyncio.Event()

    async def run(key: Key) -> None:
        runs.append(key)
        started.set()
        await go.wait()
        if len(runs) == 2:
            done.set()

    workers = [asyncio.create_task(queue.work(run)) for _ in range(3)]
    queue.add(A)
    await started.wait()
    for _ in range(5):
        queue.add(A)
    assert runs == [A]
    go.set()
    await asyncio.wait_for(done.wait(), 5)
    assert runs == [A, A]
    for worker in workers:
        worker.cancel()


async def test_waiting_keys_are_not_doubled() -> None:
    queue, runs, done = WorkQueue(), [], asyncio.Event()

    async def run(key: Key) -> None:
        runs.append(key)
        if key == B:
            done.set()

    queue.add(A)
    queue.add(A)
    queue.add(B)
    worker = asyncio.create_task(queue.work(run))
    await asyncio.wait_for(done.wait(), 5)
    assert runs == [A, B]
    worker.cancel()


async def test_backoff_doubles_and_starts_anew_after_success() -> None:
    queue = WorkQueue()
    first, second = queue.retry(A), queue.retry(A)
    assert 0.4 <= first <= 0.6
    assert 0.8 <= second <= 1.2
    for _ in range(30):
        last = queue.retry(A)
    assert last <= 360
    queue.forget(A)
    assert queue.retry(A) <= 0.6
    queue.stop()


async def test_a_run_that_breaks_does_not_stop_the_worker() -> None:
    queue, done = WorkQueue(), asyncio.Event()

    async def run(key: Key) -> None:
        if key == A:
            raise RuntimeError("broken")
        done.set()

    worker = asyncio.create_task(queue.work(run))
    queue.add(A)
    queue.add(B)
    await asyncio.wait_for(done.wait(), 5)
    worker.cancel()
    queue.stop()
