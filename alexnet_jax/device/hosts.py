"""The other hosts of a run: how they come together, wait for each other, and end where one is missing.

A host is one process.
"""

import contextlib
import ctypes
import faulthandler
import math
import os
import re
import signal
import sys
import threading
import zlib
from collections.abc import Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils
from tqdm import tqdm

from alexnet_jax.options import InputError
from alexnet_jax.shown import Stream, say

HOST_TIMEOUT = 60.0  # seconds without a sign of life, after which a host counts as dead
# In errors of JAX and of what it exchanges by, where a partner has gone.
_OF_PARTNERS = re.compile(r"gloo|nccl|coordination|barrier|heartbeat|UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED", re.I)

started = ""  # by `start`: what is to be said where another host is missing


def start(coordinator: str, num_processes: int, process_id: int, timeout: float = HOST_TIMEOUT) -> None:
    """Joins the other processes of this run; before anything else of JAX. Empty or negative: as the cluster says.

    Raises InputError where they cannot be found. Where one does not come within `timeout` seconds, and later where one
    gives no sign of life for so long, this process ends with one line and exit code 2.
    """
    global started
    where = f"--coordinator={coordinator}" if coordinator else "--distributed"
    started = f"{where}: another process has not come, has ended or is silent (--host_timeout={timeout:g} seconds)"
    faulthandler.disable()  # whose pages would come before the one line
    _hear_aborts()
    patience = threading.Timer(timeout, _end_alone)
    patience.daemon = True
    patience.start()
    try:
        jax.distributed.initialize(
            coordinator or None,
            num_processes if num_processes > 0 else None,
            process_id if process_id >= 0 else None,
            initialization_timeout=math.ceil(timeout) + 60,
            # A host that is silent is found at its next heartbeat but one; there are two in this time.
            heartbeat_timeout_seconds=max(1, int(timeout / 2)),
            shutdown_timeout_seconds=math.ceil(timeout),
        )
    except (ValueError, RuntimeError) as error:
        raise InputError(f"{where}: the processes do not find each other ({str(error).splitlines()[0]})") from error
    finally:
        patience.cancel()


def _end_alone() -> None:
    with tqdm.external_write_mode(file=sys.stderr):  # without a bar on the same line
        say(f"error: {started}", error=True)
        os._exit(2)


def _hear_aborts() -> None:
    """JAX writes a page and aborts where a host is missing. From here on what is written to file 2 past Python is read
    here first, and an abort waits, for as many seconds as SIGABRT has a number: time to end with one line instead.
    """
    sys.stderr.flush()
    terminal, (read, write) = os.dup(2), os.pipe()
    os.dup2(write, 2)
    os.close(write)
    sys.stderr = Stream(os.fdopen(terminal, "w", encoding=sys.stderr.encoding, buffering=1), needed=False)

    def hear() -> None:
        theirs = False  # whether the message that is being read is of the hosts' service
        with os.fdopen(read, "rb") as pages:
            for line in pages:
                if re.match(rb"[IWEF]\d{4} |terminate called", line):
                    theirs = re.search(rb"coordination|preemption|distributed service|gloo::", line) is not None
                if theirs and line.startswith((b"F", b"terminate")):
                    _end_alone()
                if not theirs:
                    with contextlib.suppress(OSError):  # whoever read it has gone
                        os.write(terminal, line)

    threading.Thread(target=hear, daemon=True).start()
    system = ctypes.CDLL(None)
    system.signal(signal.SIGABRT, system.sleep)


@contextlib.contextmanager
def needed() -> Iterator[None]:
    """Within it, an error that comes from the end of another host is an InputError that says so."""
    try:
        yield
    except (ValueError, RuntimeError) as error:
        # Of a line that was made of it already, the cause.
        of_jax = error.__cause__ if isinstance(error, InputError) else error
        # What the system says of this host is its own: "temporarily unavailable" is a folder that is locked.
        if not started or isinstance(of_jax, OSError) or not _OF_PARTNERS.search(str(of_jax)):
            raise
        raise InputError(started) from error


def several_hosts() -> bool:
    """Whether this process is one of several."""
    return jax.process_count() > 1


def is_first_host() -> bool:
    """Whether this process is the one that writes and prints."""
    return jax.process_index() == 0


def wait_for_all(what: str) -> None:
    """Until every host has come to this point."""
    if several_hosts():
        multihost_utils.sync_global_devices(what)


def check_same(what: str, value: str) -> None:
    """Raises InputError, on every host, where the hosts do not have the same `value`."""
    found = multihost_utils.process_allgather(np.uint32(zlib.crc32(value.encode())))
    if len(set(found.ravel().tolist())) > 1:
        raise InputError(f"the processes differ in {what}")


def fail_together(error: InputError | None) -> None:
    """Raises `error`; and InputError on the hosts without one, where another one has one: so that none waits for it."""
    failed = several_hosts() and multihost_utils.process_allgather(np.uint32(error is not None)).any()
    if error:
        raise error
    if failed:
        raise InputError("another process of this run has ended; its own line says why")
