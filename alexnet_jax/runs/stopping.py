"""The signals that ask a run to stop, or a cluster that announces it."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

from alexnet_jax.device import hosts
from alexnet_jax.runs.checkpoint import Checkpoints


@contextlib.contextmanager
def stop_requests(checkpoints: Checkpoints) -> Iterator[Callable[[int], bool]]:
    """Within it Ctrl-C and `kill` wait to be asked for, after each step; a second Ctrl-C stops at once.

    An exception raised just anywhere could be lost in another library's callback, or tear a checkpoint. Of several
    hosts all stop after the same step, whichever was told to; so they do where a cluster announces preemption.
    """
    received, several_hosts = [], hosts.several_hosts()

    def receive(number: int, _: Any) -> None:
        received.append(number)
        signal.signal(number, signal.default_int_handler)
        if several_hosts:
            os.kill(os.getpid(), signal.SIGTERM)  # which JAX has told the others of

    if threading.current_thread() is not threading.main_thread():  # only there may handlers be set
        yield lambda step: False
        return
    numbers = (signal.SIGINT,) if several_hosts else (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, receive) for number in numbers}
    try:
        yield checkpoints.reached_preemption if several_hosts else lambda step: bool(received)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
