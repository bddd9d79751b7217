"""Work for several processes whose results come back in order, with one piece of it in each process and no more.

Every process has a pipe of its own. It ends when the pipe does, and so also when the process that started it is killed:
a pool of the standard library would live on, holding what its parent had locked.
"""

from __future__ import annotations

import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection
from typing import Any, Generic, TypeVar, cast

Task = TypeVar("Task")
Result = TypeVar("Result")


class WorkerDiedError(RuntimeError):
    """A process that works on the data has ended before its work was done; the message says how to go on."""


def in_processes(function: Callable[[Task], Result], tasks: Iterable[Task], num_proc: int) -> Iterator[Result]:
    """Applies a function to tasks, as `map` does, in several processes.

    Args:
        function: What to do; it reaches each process once.
        tasks: What to do it with, taken one by one as processes become free.
        num_proc: Number of processes.

    Yields:
        The results, in the order of the tasks.

    Raises:
        WorkerDiedError: If a process ends before its work is done.
        Exception: Whatever the function raises.
    """
    workers = [_Worker(function) for _ in range(num_proc)]
    busy: deque[_Worker[Task, Result]] = deque()
    try:
        for number, task in enumerate(tasks):
            if len(busy) == num_proc:
                yield busy.popleft().receive()
            worker = workers[number % num_proc]
            worker.send(task)
            busy.append(worker)
        while busy:
            yield busy.popleft().receive()
    finally:
        for worker in workers:  # all of them before any is waited for: a process holds the pipes of those before it
            worker.pipe.close()
        for worker in workers:
            worker.process.join()


class _Worker(Generic[Task, Result]):
    """One process and the pipe to it."""

    def __init__(self, function: Callable[[Task], Result]) -> None:
        self.pipe, theirs = multiprocessing.Pipe()
        self.process = multiprocessing.Process(target=_work, args=(function, theirs, self.pipe))
        self.process.start()
        theirs.close()

    def send(self, task: Task) -> None:
        try:
            self.pipe.send(task)
        except BrokenPipeError:
            raise self._death() from None

    def receive(self) -> Result:
        try:
            result, error = self.pipe.recv()
        except (EOFError, ConnectionResetError):
            raise self._death() from None
        if error is not None:
            raise error
        return cast(Result, result)

    def _death(self) -> WorkerDiedError:
        self.process.join()
        return WorkerDiedError(
            f"a process that works on the data ended before its work was done (exit code {self.process.exitcode}; -9: "
            "it was killed, often because memory ran out). Start again, with fewer processes if memory is short: what "
            "is finished is kept."
        )


def _work(function: Callable[[Task], Result], pipe: Connection[Any, Any], parents_end: Connection[Any, Any]) -> None:
    """Runs in the process, until the pipe ends."""
    parents_end.close()  # a forked process has it too, and would wait for itself
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # threads of one process would take the cores of the others
    while True:
        try:
            task = pipe.recv()
        except (EOFError, ConnectionResetError, KeyboardInterrupt):
            return
        try:
            answer: tuple[Result | None, Exception | None] = function(task), None
        except Exception as error:
            answer = None, error
        try:
            pipe.send(answer)
        except BrokenPipeError:  # whoever asked was killed meanwhile
            return
