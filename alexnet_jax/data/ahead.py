"""Keeping everybody busy: threads read the files that come next, and a device has its next batch before its last one is
looked at."""

import collections
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from alexnet_jax.data.shards import cores

Item = TypeVar("Item")
Result = TypeVar("Result")


def read_ahead(read: Callable[[Item], Result], items: Sequence[Item], *, ahead: int) -> Iterator[Result]:
    """`read` of each item, in order. Threads, one for each core, have begun with the next `ahead` of them."""
    waiting: collections.deque[Future[Result]] = collections.deque()
    pool = ThreadPoolExecutor(min(cores(), 32))
    try:
        for item in items:
            waiting.append(pool.submit(read, item))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:  # also where nobody takes the rest
        pool.shutdown(cancel_futures=True)


def one_behind(begun: Iterable[Item]) -> Iterator[Item]:
    """Each item once the next one is made, so that a device which computes it has more to do while it is looked at.

    Where making the next one fails, the error comes after the item before it.
    """
    waiting: collections.deque[Item] = collections.deque()
    try:
        for item in begun:
            waiting.append(item)
            if len(waiting) > 1:
                yield waiting.popleft()
    except Exception:
        yield from waiting
        raise
    yield from waiting
