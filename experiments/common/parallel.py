"""Run independent jobs in this process, in several, or on Ray; results as they are finished."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from traces.errors import InputError, missing

Shared = TypeVar("Shared")
Job = TypeVar("Job")
Result = TypeVar("Result")


def run_jobs(
    work: Callable[[Shared, Job], Result],
    shared: Shared,
    jobs: Sequence[Job],
    *,
    workers: int = 1,
    ray: str | None = None,
) -> Iterator[tuple[int, Result]]:
    """(index of the job, work(shared, job)) in order of completion.

    shared: what all jobs read, sent once. workers: local processes, through joblib. ray: "local" or
    the address of a cluster with GammaLab on its machines, which then sets the number of workers.
    Raises what `work` raises.
    """
    if ray is not None:
        return _on_ray(work, shared, jobs, ray)
    if workers == 1 or len(jobs) < 2:
        return ((index, work(shared, job)) for index, job in enumerate(jobs))
    return _in_processes(work, shared, jobs, workers)


def _numbered(work: Callable[[Any, Any], Any], shared: Any, index: int, job: Any) -> Any:
    return index, work(shared, job)


def _in_processes(
    work: Callable[[Shared, Job], Result], shared: Shared, jobs: Sequence[Job], workers: int
) -> Iterator[tuple[int, Result]]:
    from joblib import Parallel, delayed

    calls = (delayed(_numbered)(work, shared, index, job) for index, job in enumerate(jobs))
    # One job at a time: jobs differ in length by a factor of a hundred.
    yield from Parallel(min(workers, len(jobs)), batch_size=1, return_as="generator_unordered")(
        calls
    )


def _on_ray(
    work: Callable[[Shared, Job], Result], shared: Shared, jobs: Sequence[Job], address: str
) -> Iterator[tuple[int, Result]]:
    try:
        import ray
    except ImportError:
        raise missing("--ray", "Ray", "ray>=2.40") from None
    _ask(address)
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise InputError(f"--ray {address}: no Ray cluster answers there ({error})") from None
    try:
        remote, once = ray.remote(_numbered), ray.put(shared)
        waiting = [remote.remote(work, once, index, job) for index, job in enumerate(jobs)]
        while waiting:
            ready, waiting = ray.wait(waiting)
            yield from ray.get(ready)
    finally:
        ray.shutdown()


def _ask(address: str) -> None:
    """Raise InputError if nobody listens at HOST:PORT; Ray itself would wait for minutes."""
    if address in ("local", "auto"):
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except (OSError, ValueError, OverflowError) as error:
        raise InputError(f"--ray {address}: nobody answers there ({error})") from None
