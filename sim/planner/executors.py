"""Where many independent simulations run: processes of this machine, or a Ray cluster.

Both give every task's result exactly once, whatever happens to the processes in between; which of them computed it
changes no bit of it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from sim.errors import ConfigError

Task = TypeVar("Task")
Answer = TypeVar("Answer")

_MOST_DEATHS = 3
"""Times that processes may die under a task before the task is said to be at fault; the last time it is alone."""


class WorkersDied(Exception):
    """The processes that computed a task died, as when the kernel runs out of memory, as often as it was tried."""


class Executor(Protocol):
    """Runs a function over tasks, somewhere."""

    def run(
        self, function: Callable[[Task], Answer], tasks: Sequence[Task]
    ) -> Iterator[tuple[int, Answer | WorkersDied]]:
        """Pairs of a task's number and its answer, as they come in; WorkersDied in place of an answer never to come."""


class LocalExecutor:
    """Processes of this machine (joblib's loky); one job stays in this process."""

    def __init__(self, jobs: int | None = None) -> None:
        self.jobs = jobs or os.cpu_count() or 1

    def run(
        self, function: Callable[[Task], Answer], tasks: Sequence[Task]
    ) -> Iterator[tuple[int, Answer | WorkersDied]]:
        """A process that dies takes its pool with it: what is left is tried again, and at last one task at a time."""
        if self.jobs == 1 or len(tasks) < 2:
            yield from ((i, function(task)) for i, task in enumerate(tasks))
            return
        left = list(range(len(tasks)))
        for _ in range(_MOST_DEATHS - 1):
            for i, answer in _pool(function, tasks, left.copy(), self.jobs):
                left.remove(i)
                yield i, answer
        for i in left:
            answers = [answer for _, answer in _pool(function, tasks, [i], 2)]
            yield i, answers[0] if answers else WorkersDied(f"its process died {_MOST_DEATHS} times")


def _pool(
    function: Callable[[Task], Answer], tasks: Sequence[Task], chosen: Sequence[int], jobs: int
) -> Iterator[tuple[int, Answer]]:
    """Answers of some tasks until all are there or a process has died."""
    from joblib import Parallel, delayed
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    # Tasks one by one: an answer that waits for others of its batch would be lost with this process.
    parallel = Parallel(n_jobs=max(2, jobs), return_as="generator_unordered", batch_size=1)
    try:
        yield from parallel(delayed(_numbered)(function, i, tasks[i]) for i in chosen)
    except TerminatedWorkerError:
        return


def _numbered(function: Callable[[Task], Answer], i: int, task: Task) -> tuple[int, Answer]:
    return i, function(task)


class RayExecutor:
    """A Ray cluster: the one at `address` (`auto`, `host:port`), or one started here where there is none.

    Ray starts a task again elsewhere when its process or its node dies. Every node needs this package and, at the same
    paths, the files that a scenario names.
    """

    def __init__(self, address: str | None = None) -> None:
        self.address = address

    def run(
        self, function: Callable[[Task], Answer], tasks: Sequence[Task]
    ) -> Iterator[tuple[int, Answer | WorkersDied]]:
        """Answers as the cluster gives them. Raises ConfigError where there is no Ray, or no cluster."""
        ray = _ray(self.address)
        remote = ray.remote(max_retries=_MOST_DEATHS - 1)(_in_directory)
        here, shared = str(Path.cwd()), ray.put(list(tasks))
        waiting = {remote.remote(here, function, shared, i): i for i in range(len(tasks))}
        while waiting:
            [done], _ = ray.wait(list(waiting), num_returns=1)
            i = waiting.pop(done)
            try:
                yield i, ray.get(done)
            except (ray.exceptions.WorkerCrashedError, ray.exceptions.NodeDiedError, ray.exceptions.ObjectLostError):
                yield i, WorkersDied(f"its process died {_MOST_DEATHS} times")


def _in_directory(directory: str, function: Callable[[Any], Any], tasks: Sequence[Any], i: int) -> Any:
    """Relative paths mean what they mean where the command was given, if this node has that directory."""
    if Path(directory).is_dir():
        os.chdir(directory)
    return function(tasks[i])


def _ray(address: str | None) -> Any:
    try:
        import ray
    except ImportError:
        raise ConfigError(
            "Ray is not installed: pip install 'roofserve[ray]'", key="--executor", value="ray", choices=["local"]
        ) from None
    if not ray.is_initialized():
        try:
            ray.init(address=address, include_dashboard=False, log_to_driver=False, logging_level="error")
        except (ConnectionError, ValueError, TimeoutError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise ConfigError(f"no Ray cluster answers there ({reason})", key="--address", value=address) from error
    return ray


def executor_of(kind: str, *, jobs: int | None = None, address: str | None = None) -> Executor:
    """The executor meant by a word of the command line. Raises ConfigError for what does not go together."""
    if kind == "ray":
        if jobs is not None:
            raise ConfigError("belongs to the local executor: a Ray cluster knows its size", key="--jobs", value=jobs)
        return RayExecutor(address)
    if address is not None:
        raise ConfigError("belongs to --executor ray", key="--address", value=address)
    return LocalExecutor(jobs)
