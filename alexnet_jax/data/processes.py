"""Tasks shared out to worker processes, which end with the first one, however it ends."""

import contextlib
import functools
import multiprocessing
import signal
import sys
import types
from collections.abc import Callable, Iterable, Iterator
from multiprocessing import connection
from typing import Any

from alexnet_jax.options import InputError

Tell = Callable[[int], None]


def share(
    do: Callable[[Any, Tell], None],
    tasks: Iterable[Any],
    workers: int,
    progress: Tell,
    *,
    what: str,
    needs_script: bool,
) -> None:
    """Does all tasks, in `workers` processes; `do` is told how to tell of a part that is done, a number above 0.

    By pipes alone, which end with either process: so no worker outlives this one, and nothing is left to clean up.

    Args:
      what: is named where a worker is killed. needs_script: whether `do` or the tasks refer to the calling script.

    Raises the first error of a task; InputError where a worker is killed.
    """
    context = multiprocessing.get_context("spawn")  # JAX's threads do not survive a fork
    left = iter(tasks)
    pool: dict[Any, Any] = {}  # by the end of a pipe to it, each process
    try:
        with contextlib.nullcontext() if needs_script else _without_script():
            for _ in range(workers):
                ours, theirs = context.Pipe()
                pool[ours] = context.Process(target=_work, args=(theirs, do), daemon=True)
                pool[ours].start()
                theirs.close()
        while pool:
            here: Any
            for here in connection.wait([*pool]):
                told = here.recv()
                if isinstance(told, Exception):
                    raise told
                if told:
                    progress(told)
                    continue
                here.send(task := next(left, None))
                if task is None:
                    pool.pop(here).join()
                    here.close()
    except (EOFError, ConnectionError):
        guard = ", or the script that calls this has no `if __name__ == '__main__':` around the call"
        raise InputError(
            f"{what}: a worker process was killed (out of memory?){guard * needs_script}; the same command continues"
        ) from None
    finally:
        for here, process in pool.items():
            process.terminate()
            process.join()
            here.close()


def _work(first: Any, do: Callable[[Any, Tell], None]) -> None:
    """In a worker: does the tasks that it is sent; tells of what is done, and when it wants more (0)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the first one ends the others
    try:
        first.send(0)
        while (task := first.recv()) is not None:
            do(task, first.send)
            first.send(0)
    except (EOFError, ConnectionError):
        pass  # the first process has ended
    except Exception as error:
        first.send(error)


def is_of_the_script(function: Any) -> bool:
    """Whether a function is one of the calling script's, so that another process has to run the script to have it."""
    while isinstance(function, functools.partial):
        function = function.func
    return getattr(function, "__module__", "__main__") == "__main__"


@contextlib.contextmanager
def _without_script() -> Iterator[None]:
    """Processes that are started now do not run the calling script, which would do again all that it does."""
    script = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = script


def end_if_worker() -> None:
    """Ends a worker that runs the calling script again, up to a call: its first process then says what is amiss."""
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        sys.exit(1)
