"""What is saved of a state: its arrays on the host, their names and shapes, and sums by which damage is seen."""

import json
import zlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from alexnet_jax.device import parallel
from alexnet_jax.options import InputError
from alexnet_jax.paper.written import Written


def on_host(state: PyTree) -> PyTree:
    """As it is saved."""
    return jax.tree.map(np.asarray, parallel.on_host(jax.tree.map(_numbers, state)))


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _numbers(leaf: Any) -> Any:
    """What is saved of a leaf: of JAX's keys, which some optimizers have, their numbers."""
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def as_keys(wanted: Any, found: Any) -> Any:
    """The inverse of `_numbers`."""
    return jax.random.wrap_key_data(found, impl=jax.random.key_impl(wanted)) if _is_key(wanted) else found


def sums(state: PyTree, layers: Written | None = None) -> dict[str, str]:
    """Both, as they stand beside it."""
    return {"crc32": digest(state), "form_crc32": form_crc(state, layers)}


def form_crc(state: PyTree, layers: Written | None) -> str:
    """Of names and shapes, and of the table."""
    return crc([[(name, [*shape]) for name, shape in sorted(named_shapes(state).items())], layers])


def crc(content: Any) -> str:
    """Of what JSON keeps."""
    return f"{zlib.crc32(json.dumps(content, sort_keys=True).encode()):08x}"


def digest(state: PyTree) -> str:
    """Of all numbers."""
    value = 0
    for leaf in jax.tree.leaves(state):
        value = zlib.crc32(np.ascontiguousarray(leaf).view(np.uint8).reshape(-1).data, value)
    return f"{value:08x}"


def shapes(like: PyTree) -> PyTree:
    """With their types, as they are saved."""
    return jax.eval_shape(lambda tree: jax.tree.map(_numbers, tree), like)


def compare(folder: Path, name: str, found: PyTree, like: PyTree) -> None:
    """Raises InputError naming the first array of another shape than in the checkpoint, or which is missing."""
    before, now = named_shapes(found), named_shapes(like)
    for leaf in [*now, *before]:
        if before.get(leaf) != now.get(leaf):
            raise InputError(
                f"{folder}: is of another {'network' if name == 'params' else 'optimizer'}: {name}/{leaf} is "
                f"{before.get(leaf, 'missing')} there, {now.get(leaf, 'missing')} here"
            )


def named_shapes(tree: PyTree) -> dict[str, tuple[int, ...]]:
    """Shapes by name, as "conv1/kernel"."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda leaf: hasattr(leaf, "shape"))
    # Keys of dictionaries, fields and places in tuples are all text in a checkpoint.
    return {jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape) for path, leaf in leaves}
