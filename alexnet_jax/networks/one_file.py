"""A trained network in one file: as .safetensors, which stands for a run, or as a program of `jax.export`."""

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from flax.traverse_util import flatten_dict

from alexnet_jax.config import Config
from alexnet_jax.data.preprocessing import OWN, Preprocessing
from alexnet_jax.files import check_plain, versions, write_whole
from alexnet_jax.networks.network import Trained, network_of_arrays
from alexnet_jax.options import InputError
from alexnet_jax.paper.table import Layers
from alexnet_jax.paper.written import differences, listed, to_json
from alexnet_jax.reading import Count, checksum, from_json
from alexnet_jax.runs.workdir import Content, config_of, settings_of_version_01, table_of, written_table
from alexnet_jax.shown import reason, short

FORMATS = ("alexnet_jax 2", "alexnet_jax 1")  # in the metadata of our own files; the second is of version 0.1
CARD = "card"
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


class Card(Content, kw_only=True):
    """The form of what `save` says in the metadata, as far as it is read."""

    class_names: tuple[str, ...]
    step: Count
    preprocessing: Preprocessing = OWN  # of all, before there was this field


def save(network: Trained, file: str | Path, errors: Mapping[str, float] | None = None) -> None:
    """Writes a network with all that it takes to use it: parameters, mean image, and a card in the metadata (table,
    config, class names, step, `errors`, versions and commit).
    """
    # safetensors writes an array's memory, in whatever order it lies there.
    tensors = {name: np.ascontiguousarray(value) for name, value in flatten_dict(network.params, sep="/").items()}
    tensors["mean_image"] = np.ascontiguousarray(network.mean_image, np.float32)
    card = {
        "layers": to_json(network.net.layers),
        "config": network.config.to_json(),
        "class_names": network.class_names,
        "preprocessing": dataclasses.asdict(network.preprocessing),
        "step": network.step,
        "errors": dict(errors or {}),
        **versions(),
    }
    table, written = json.dumps(card["layers"]), json.dumps(card, ensure_ascii=False)
    sums = json.dumps({CARD: _sum(written), **{name: checksum(values) for name, values in tensors.items()}})
    metadata = {"format": FORMATS[0], CARD: written, "layers": table, "checksums": sums}
    write_whole(Path(file), safetensors.numpy.save(tensors, metadata))


def load(file: str | Path, steps: Mapping[str, Callable] | None = None) -> Trained:
    """What `save` wrote; see `loading.load`. Raises InputError where it did not write this, or the file is damaged."""
    file = Path(file)
    tensors, metadata = read_safetensors(file)
    card, config, layers = _described(file, metadata, steps)
    _check_sums(file, tensors, metadata)
    mean_image = tensors.pop("mean_image", np.zeros(0))
    if mean_image.ndim != 3 or mean_image.shape[0] != mean_image.shape[1] or mean_image.shape[2] != 3:
        raise InputError(f"{file}: mean_image is missing, or no square colour image")
    return network_of_arrays(file, config, card.step, card.class_names, mean_image, layers, tensors, card.preprocessing)


def table(file: Path) -> tuple[Layers, int]:
    """The layers, and the size of the crops, without the parameters. Raises InputError as `load` does."""
    _, config, layers = _described(file, read_metadata(file), None)
    return layers, config.crop_size


def _described(
    file: Path, metadata: Mapping[str, str], steps: Mapping[str, Callable] | None
) -> tuple[Card, Config, Layers]:
    if metadata.get("format") not in FORMATS:
        raise InputError(f"{file}: was not written by alexnet_jax.weights; it reads the file as --source")
    what = f"{file}: its card"
    card = from_json(metadata.get(CARD, ""), Card, what)
    if card.of_version_01:
        config, layers, _ = settings_of_version_01(card, len(card.class_names), file)
        return card, config, layers
    now = written_table(card.layers, what)
    rows = from_json(metadata.get("layers", ""), list[Any], f"{file}: its layers")
    if differing := differences(written_table(rows, f"{file}: its layers"), now):
        raise InputError(f"{what} is of another network: {listed(differing)}")
    return card, config_of(card.config, what), table_of(card.layers, what, steps)


def _check_sums(file: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Raises InputError for an array, or a card, that is not as `save` wrote it. Version 0.1 wrote no sums."""
    sums = from_json(metadata.get("checksums", "{}"), dict[str, str], f"{file}: its checksums")
    now = {CARD: _sum(metadata[CARD]), **{name: checksum(values) for name, values in tensors.items()}}
    for name, of in now.items():
        if sums.get(name, of) != of:
            raise InputError(f"{file}: {short(name)} is not what was written, by its checksums")


def _sum(text: str) -> str:
    return checksum(np.frombuffer(text.encode(), np.uint8))


def read_safetensors(file: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Tensors and metadata. Raises InputError where the file is damaged; nothing in it is run."""
    with _opened(file) as opened:
        return {name: opened.get_tensor(name) for name in opened.keys()}, opened.metadata() or {}  # noqa: SIM118


def read_metadata(file: Path) -> dict[str, str]:
    """Alone, at once; as `read_safetensors`."""
    with _opened(file) as opened:
        return opened.metadata() or {}


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[Any]:
    check_plain(file)
    try:
        with safetensors.safe_open(file, framework="numpy") as opened:
            yield opened
    except Exception as error:  # the library has types of its own
        raise InputError(f"{file}: is damaged, or no .safetensors ({reason(error)})") from error


def is_ours(file: Path) -> bool:
    """Whether `save` wrote it."""
    return file.suffix == ".safetensors" and read_metadata(file).get("format") in FORMATS


def program(network: Trained, *, views: int = 1) -> bytes:
    """The function images (uint8, (n, size, size, 3), for any n) → probabilities ((n, classes), float32) with all its
    parameters, as `jax.export` serializes it: it runs on CPUs, GPUs and TPUs, without this package.

    It takes images as `Trained.preprocess` makes them. Its name, `Exported.fun_name`, says how that is.
    """
    logits = network.make_logits(views=views, formulas=True)
    (n,) = jax.export.symbolic_shape("n")
    images = jax.ShapeDtypeStruct((n, network.size, network.size, 3), jnp.uint8)

    def answers(images: jax.Array) -> jax.Array:
        return jax.nn.softmax(logits(network.params, images))

    answers.__name__ = f"probabilities of images: {network.described_images()}"
    return bytes(jax.export.export(jax.jit(answers), platforms=PLATFORMS)(images).serialize())
