"""Checkpoints by orbax: save, restore, and the signals that ask for one.

Each has three items: `params`, all that it takes to use the network; `optimizer`, its state and the number of steps;
`log`, JSON. The first two carry a checksum, and `params` the network's table as well.
"""

import contextlib
import copy
import itertools
import math
import os
import shutil
import signal
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import PyTree
from orbax.checkpoint import checkpoint_managers as policies

from alexnet_jax.config import InputError
from alexnet_jax.device import parallel
from alexnet_jax.paper.train_state import TrainState
from alexnet_jax.paper.written import Written, differences, listed
from alexnet_jax.shown import say


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
        handlers = {
            "params": ocp.StandardCheckpointHandler(),
            "optimizer": ocp.StandardCheckpointHandler(),
            "log": ocp.JsonCheckpointHandler(),
            "state": ocp.PyTreeCheckpointHandler(),  # of version 0.1
        }
        self._folder, self._handlers = folder, handlers
        with _named_errors(folder, "opened"):
            self._manager = ocp.CheckpointManager(folder.absolute(), options=options, item_handlers=handlers)

    def save(
        self, step: int, state: TrainState, layers: Written, log: Mapping[str, Any], top1_error: float = math.inf
    ) -> None:
        """Starts saving; `state` and `log` may be overwritten as soon as it returns. Raises InputError where it cannot.

        layers: the network's table, written out. log: any JSON. top1_error: on the validation split, where it is known.
        """
        params, optimizer = _on_host((state.params, {"step": state.step, "state": state.opt_state}))
        needed, free = sum(leaf.nbytes for leaf in jax.tree.leaves((params, optimizer))), self._free()
        if free < needed:  # asked first, since a write that fails makes TensorStore's threads print pages
            megabytes = f"{needed / 1e6:.0f} MB are needed, {free / 1e6:.0f} MB free"
            raise InputError(f"{self._folder}: the checkpoint cannot be written (the disk is full: {megabytes})")
        items = ocp.args.Composite(
            params=ocp.args.StandardSave(params, custom_metadata={"layers": layers, **_digest(params)}),
            optimizer=ocp.args.StandardSave(optimizer, custom_metadata=_digest(optimizer)),
            log=ocp.args.JsonSave(copy.deepcopy(dict(log))),  # written while the caller goes on
        )
        with _named_errors(self._folder):
            if not self._manager.save(step, args=items, metrics={"top1_error": top1_error}):
                raise ValueError(f"orbax did not take that of step {step}")

    def _free(self) -> int:
        return shutil.disk_usage(self._folder).free

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

    def restore_latest(self, like: TrainState, layers: Written) -> tuple[TrainState, dict[str, Any]] | None:
        """The newest checkpoint that is whole, as (state on the host, log); None where there has been none.

        Damaged ones after it are set aside, with a warning. Raises InputError where all are damaged, or are of another
        table than `layers`, or have other parameters than `like`.
        """
        damaged = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                found = self.restore(step, like, layers)
            except Damaged as error:
                damaged[step] = error
                continue
            self._set_aside(damaged)
            return found
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
            say(f"warning: {place}: is damaged ({error}); it is now {aside}", error=True)
        parallel.wait_for_all("set aside")
        self._manager.reload()

    def restore(self, step: int, like: TrainState, layers: Written) -> tuple[TrainState, dict[str, Any]]:
        """The state of that step, on the host, with the structure and types of `like`; and the log.

        Raises Damaged where it cannot be read, InputError where it is of another network or optimizer.
        """
        params = self.restore_params(step, like.params, layers)
        optimizer = self._item(step, "optimizer", {"step": like.step, "state": like.opt_state})
        with _as_damaged():
            log = self._manager.restore(step, args=ocp.args.Composite(log=ocp.args.JsonRestore()))["log"]
        return TrainState(optimizer["step"], params, optimizer["state"]), log

    def restore_params(self, step: int, like: PyTree, layers: Written) -> PyTree:
        """The parameters alone. like: their shapes and types. Raises as `restore` does."""
        folder = self._folder / str(step)
        if not (folder / "params").exists() and (folder / "state").exists():
            return self._params_of_version_01(step, like)
        return self._item(step, "params", like, layers)

    def _item(self, step: int, name: str, like: PyTree, layers: Written | None = None) -> PyTree:
        folder = self._folder / str(step)
        wanted, like = like, _empty(like)
        with _as_damaged():
            metadata = self._handlers[name].metadata(folder.absolute() / name)
            saved = dict(metadata.custom_metadata)
            if layers is not None and (differing := differences(saved["layers"], layers)):
                raise InputError(f"{folder}: is of another network: {listed(differing)}")
            _compare(folder, name, metadata.tree, like)
            args = ocp.args.Composite(**{name: ocp.args.StandardRestore(like)})
            found = self._manager.restore(step, args=args)[name]
        if saved.get("crc32") != _digest(found)["crc32"]:  # TensorStore does not notice a changed byte
            raise Damaged("its numbers are not those that were saved")
        return jax.tree.map(_as_keys, wanted, found)

    def _params_of_version_01(self, step: int, like: PyTree) -> PyTree:
        like, folder = {"params": _empty(like)}, self._folder / str(step)
        with _as_damaged():
            tree = self._handlers["state"].metadata(folder.absolute() / "state").tree
            _compare(folder, "params", tree["params"], like["params"])
            types = jax.tree.map(lambda leaf: ocp.RestoreArgs(restore_type=np.ndarray, dtype=leaf.dtype), like)
            args = ocp.args.PyTreeRestore(like, restore_args=types, partial_restore=True)
            return self._manager.restore(step, args=ocp.args.Composite(state=args))["state"]["params"]

    def reached_preemption(self, step: int) -> bool:
        """Whether the hosts are to stop after this step: the same answer on all."""
        return self._manager.reached_preemption(step)

    def close(self) -> None:
        """Waits until what is being saved is on disk. Raises InputError where it could not be written."""
        with _named_errors(self._folder):
            self._manager.close()


def _on_host(state: PyTree) -> PyTree:
    return jax.tree.map(np.asarray, jax.device_get(jax.tree.map(_numbers, state)))


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _numbers(leaf: Any) -> Any:
    """What is saved of a leaf: of JAX's keys, which some optimizers have, their numbers."""
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _as_keys(wanted: Any, found: Any) -> Any:
    return jax.random.wrap_key_data(found, impl=jax.random.key_impl(wanted)) if _is_key(wanted) else found


def _digest(state: PyTree) -> dict[str, str]:
    value = 0
    for leaf in jax.tree.leaves(state):
        value = zlib.crc32(np.ascontiguousarray(leaf).view(np.uint8).reshape(-1).data, value)
    return {"crc32": f"{value:08x}"}


def _empty(like: PyTree) -> PyTree:
    """Arrays of these shapes and types, whose memory nobody touches."""
    shapes = jax.eval_shape(lambda tree: jax.tree.map(_numbers, tree), like)
    return jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), shapes)


def _compare(folder: Path, name: str, found: PyTree, like: PyTree) -> None:
    """Raises InputError naming the first array of another shape than in the checkpoint, or which is missing."""

    def shapes(tree: PyTree) -> dict[str, tuple[int, ...]]:
        leaves, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda leaf: hasattr(leaf, "shape"))
        # Keys of dictionaries, fields and places in tuples are all text in a checkpoint.
        return {jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape) for path, leaf in leaves}

    before, now = shapes(found), shapes(like)
    for leaf in [*now, *before]:
        if before.get(leaf) != now.get(leaf):
            raise InputError(
                f"{folder}: is of another {'network' if name == 'params' else 'optimizer'}: {name}/{leaf} is "
                f"{before.get(leaf, 'missing')} there, {now.get(leaf, 'missing')} here"
            )


@contextlib.contextmanager
def _as_damaged() -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # orbax and TensorStore raise many types for damaged files
        raise Damaged(_reason(error)) from error


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
