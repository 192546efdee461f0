"""Checkpoints by orbax: save, restore, and the signals that ask for one."""

import contextlib
import itertools
import math
import os
import shutil
import signal
import sys
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import PyTree
from orbax.checkpoint import checkpoint_managers as policies

from alexnet_jax.config import InputError
from alexnet_jax.device import parallel


class Damaged(Exception):
    """A checkpoint cannot be read."""


class Checkpoints:
    """The checkpoints of one run, by step, in `folder`; saved in the background.

    Kept are the last `keep`, and the one with the lowest validation top-1 error. With `read_only` nothing is changed:
    another process may be saving.
    """

    def __init__(self, folder: Path, keep: int = 2, *, read_only: bool = False):
        options = ocp.CheckpointManagerOptions(
            create=not read_only,
            read_only=read_only,
            save_interval_steps=0 if read_only else 1,
            cleanup_tmp_directories=not read_only,  # what a kill left half-written is removed at the next start
            best_fn=lambda metrics: metrics["top1_error"],
            best_mode="min",
            preservation_policy=policies.AnyPreservationPolicy(
                [
                    policies.LatestN(keep),
                    policies.BestN(get_metric_fn=lambda metrics: -metrics["top1_error"], n=1),
                ]
            ),
        )  # fmt: skip
        handlers = {"state": ocp.StandardCheckpointHandler(), "digest": ocp.JsonCheckpointHandler()}
        self._folder, self._state_handler = folder, handlers["state"]
        with _named_errors(folder, "opened"):
            self._manager = ocp.CheckpointManager(folder.absolute(), options=options, item_handlers=handlers)

    def save(self, step: int, state: PyTree, top1_error: float = math.inf) -> None:
        """Starts saving; `state` may be overwritten as soon as this returns. Raises InputError where it cannot.

        top1_error: on the validation split, where it is known.
        """
        state = _on_host(state)
        needed, free = sum(leaf.nbytes for leaf in jax.tree.leaves(state)), shutil.disk_usage(self._folder).free
        if free < needed:  # asked first, since a write that fails makes TensorStore's threads print pages
            megabytes = f"{needed / 1e6:.0f} MB are needed, {free / 1e6:.0f} MB free"
            raise InputError(f"{self._folder}: the checkpoint cannot be written (the disk is full: {megabytes})")
        items = ocp.args.Composite(state=ocp.args.StandardSave(state), digest=ocp.args.JsonSave(_digest(state)))
        with _named_errors(self._folder):
            if not self._manager.save(step, args=items, metrics={"top1_error": top1_error}):
                raise ValueError(f"orbax did not take that of step {step}")

    def latest_step(self) -> int | None:
        """Step of the newest complete checkpoint."""
        return self._manager.latest_step()

    def best_step(self) -> int | None:
        """Step of the one with the lowest validation top-1 error."""
        return self._manager.best_step()

    def step_of(self, name: str) -> int:
        """The step of "latest", "best", or a number. Raises InputError where there is no such checkpoint."""
        steps = {str(step): step for step in sorted(self._manager.all_steps())}
        found = {**steps, "latest": self.latest_step(), "best": self.best_step()}.get(name)
        if found is None:
            there = f"there are latest, best, {', '.join(steps)}" if steps else "there is none"
            raise InputError(f"{self._folder}: has no checkpoint '{name}'; {there}")
        return found

    def restore_latest(self, like: PyTree) -> tuple[int, PyTree] | None:
        """The newest checkpoint that is whole, as (step, state on the host); None where there has been none.

        Damaged ones after it are set aside, with a warning. Raises InputError where all are damaged, or hold other
        parameters than `like` has.
        """
        damaged = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                state = self.restore(step, like)
            except Damaged as error:
                damaged[step] = error
                continue
            self._set_aside(damaged)
            return step, state
        if damaged:
            reasons = "; ".join(f"{step}: {error}" for step, error in damaged.items())
            raise InputError(f"{self._folder}: no checkpoint can be read ({reasons}); begin again in another --workdir")
        return None

    def _set_aside(self, damaged: Mapping[int, Exception]) -> None:
        if not damaged:
            return
        parallel.wait_for_all("restored")
        for step, error in damaged.items() if parallel.is_first_host() else ():
            place = self._folder / str(step)
            aside = next(name for n in itertools.count() if not (name := Path(f"{place}.damaged{n or ''}")).exists())
            place.rename(aside)
            print(f"warning: {place}: is damaged ({error}); it is now {aside}", file=sys.stderr, flush=True)
        parallel.wait_for_all("set aside")
        self._manager.reload()

    def restore(self, step: int, like: PyTree) -> PyTree:
        """The state of that step, on the host, with the structure and types of `like`.

        Raises Damaged where it cannot be read, InputError where it holds other parameters.
        """
        like, folder = _on_host(like), self._folder / str(step)
        items = ocp.args.Composite(state=ocp.args.StandardRestore(like), digest=ocp.args.JsonRestore())
        try:
            _compare(folder, self._state_handler.metadata(folder.absolute() / "state").tree, like)
            restored = self._manager.restore(step, args=items)
        except InputError:
            raise
        except Exception as error:  # orbax and TensorStore raise many types for damaged files
            raise Damaged(_reason(error)) from error
        if restored["digest"] != _digest(restored["state"]):  # TensorStore does not notice a changed byte
            raise Damaged("its numbers are not those that were saved")
        return restored["state"]

    def reached_preemption(self, step: int) -> bool:
        """Whether the hosts are to stop after this step: the same answer on all."""
        return self._manager.reached_preemption(step)

    def close(self) -> None:
        """Waits until what is being saved is on disk. Raises InputError where it could not be written."""
        with _named_errors(self._folder):
            self._manager.close()


def _on_host(state: PyTree) -> PyTree:
    return jax.tree.map(np.asarray, jax.device_get(state))


def _digest(state: PyTree) -> dict[str, str]:
    value = 0
    for leaf in jax.tree.leaves(state):
        value = zlib.crc32(np.ascontiguousarray(leaf).view(np.uint8).reshape(-1).data, value)
    return {"crc32": f"{value:08x}"}


def _compare(folder: Path, found: PyTree, like: PyTree) -> None:
    """Raises InputError naming the first parameter of another shape than in the checkpoint, or which is missing."""

    def shapes(tree: PyTree) -> dict[str, tuple[int, ...]]:
        leaves, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda leaf: hasattr(leaf, "shape"))
        # Keys of dictionaries, fields and places in tuples are all text in a checkpoint.
        return {jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape) for path, leaf in leaves}

    before, now = shapes(found), shapes(like)
    for leaf in [*now, *before]:
        if before.get(leaf) != now.get(leaf):
            raise InputError(
                f"{folder}: is of another network: {leaf} is {before.get(leaf, 'missing')} there, "
                f"{now.get(leaf, 'missing')} here"
            )


@contextlib.contextmanager
def _named_errors(folder: Path, what: str = "written") -> Iterator[None]:
    try:
        yield
    except Exception as error:  # of many types: a full disk is a ValueError of TensorStore
        raise InputError(f"{folder}: the checkpoint cannot be {what} ({_reason(error)})") from error


def _reason(error: Exception) -> str:
    return (str(error) or type(error).__name__).split("\n")[0].split(": ")[-1]


@contextlib.contextmanager
def stop_requests(checkpoints: Checkpoints) -> Iterator[Callable[[int], bool]]:
    """Within it Ctrl-C and `kill` wait to be asked for, after each step; a second Ctrl-C stops at once.

    An exception raised just anywhere could be lost in another library's callback, or tear a checkpoint. Of several
    hosts all stop after the same step, whichever was told to; so they do where a cluster announces preemption.
    """
    received, several_hosts = [], parallel.several_hosts()

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
