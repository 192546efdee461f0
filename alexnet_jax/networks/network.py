"""A trained network, with all that it takes to ask it."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float, PyTree, UInt8

from alexnet_jax.config import Config
from alexnet_jax.data.ahead import one_behind, read_ahead
from alexnet_jax.data.datasets import Dataset, open_dataset
from alexnet_jax.data.images import read_file
from alexnet_jax.data.pictures import MAX_PIXELS
from alexnet_jax.data.preprocessing import OWN, Pixels, Preprocessing
from alexnet_jax.device import xla
from alexnet_jax.device.tuned import tuned
from alexnet_jax.options import InputError
from alexnet_jax.paper import evaluate
from alexnet_jax.paper.augment import center_view, subtract_mean
from alexnet_jax.paper.model import AlexNet, configured_network, outputs
from alexnet_jax.paper.table import Layers, output_names
from alexnet_jax.paper.train_state import shapes_of_params
from alexnet_jax.shown import reason, short

# Files, or pixels (height, width, 3), uint8, of any sizes.
Pictures = Sequence[str | Path | bytes | np.ndarray] | np.ndarray | Array


@dataclasses.dataclass(frozen=True)
class Trained:
    """A network, and what it must be fed.

    source: the run's folder, or the file. step: how many it was trained. config: with which settings. dataset: name of
    the data set, where it is known. class_names: of its outputs. mean_image: of its training images, which are as
    large. net: of the formulas; what computes here uses `tuned`. params: as `net.apply` takes them. preprocessing: how
    a picture becomes an image.
    """

    source: Path
    step: int
    config: Config
    dataset: str
    class_names: tuple[str, ...] = dataclasses.field(repr=False)
    mean_image: Float[np.ndarray, "size size 3"] = dataclasses.field(repr=False)
    net: AlexNet = dataclasses.field(repr=False)
    params: PyTree = dataclasses.field(repr=False)
    preprocessing: Preprocessing = OWN

    @property
    def size(self) -> int:
        """Side of the images, before views are cut out of them."""
        return len(self.mean_image)

    def preprocess(self, picture: str | Path | bytes | np.ndarray, max_pixels: int = MAX_PIXELS) -> Pixels:
        """A picture as `probabilities` takes it: RGB, (size, size, 3), uint8; see `preprocessing`.

        picture: a file's path or content, or pixels (height, width, 3). max_pixels: of a file. Raises InputError where
        a file is none, and ValueError where content or pixels are none.
        """
        rule, crop_size = self.preprocessing, self.config.crop_size
        if isinstance(picture, (str, Path)):
            return read_file(picture, self.size, max_pixels, preprocessing=rule, crop_size=crop_size)
        return rule(picture, self.size, crop_size, max_pixels)

    def described_images(self) -> str:
        """How `preprocess` makes them, in one line, for programs of another language."""
        return self.preprocessing.describe(self.size, self.config.crop_size)

    def read(
        self, pictures: Pictures, *, max_pixels: int = MAX_PIXELS
    ) -> Iterator[tuple[UInt8[np.ndarray, "batch size size 3"], list[Pixels | InputError]]]:
        """The pictures as `preprocess` makes them, in batches of one size, read ahead by threads.

        Of each batch the images, filled up with black ones at the end, and the pictures one by one: for one that cannot
        be read, an InputError that names it, and a black image.
        """

        on_host = np.asarray(pictures) if isinstance(pictures, jax.Array) else pictures

        def read(number: int) -> Pixels | InputError:
            try:
                return self.preprocess(on_host[number], max_pixels)
            except InputError as error:
                return error
            except ValueError as error:
                return InputError(f"picture {number}: {error}")

        batch_size = min(BATCH, len(pictures))
        found = read_ahead(read, range(len(pictures)), ahead=2 * batch_size)
        while some := [*itertools.islice(found, batch_size)]:
            images = np.zeros((batch_size, self.size, self.size, 3), np.uint8)  # one size, compiled once
            for image, pixels in zip(images, some, strict=False):
                image[...] = 0 if isinstance(pixels, InputError) else pixels
            yield images, some

    def probabilities(
        self, images: UInt8[np.ndarray | Array, "n size size 3"], *, views: int = 1
    ) -> Float[Array, "n classes"]:
        """The softmax outputs, of the centre of each image or (views=10) averaged over §4.1's ten views."""
        if views not in self._compiled:
            logits = self.make_logits(views=views)
            self._compiled[views] = _compiled(lambda params, images: jax.nn.softmax(logits(params, images)))
        return self._compiled[views](self.params, images)

    def features(
        self,
        pictures: Pictures,
        names: Sequence[str],
        *,
        max_pixels: int = MAX_PIXELS,
    ) -> dict[str, Float[np.ndarray, "n ..."]]:
        """The outputs of these names, as "fc7:relu", of the centre of each picture, in float32. See `model.outputs`.

        pictures: files, or pixels; all go through `preprocess`. Raises InputError for a name that there is not, or for
        what is no picture.
        """
        found: dict[str, list[np.ndarray]] = {name: [] for name in names}
        for rows, pixels in self.features_in_batches(pictures, names, max_pixels=max_pixels):
            for error in pixels:
                if isinstance(error, InputError):
                    raise error
            for name, of in rows.items():
                found[name].append(of)
        return {name: np.concatenate(rows) for name, rows in found.items()}

    def features_in_batches(
        self,
        pictures: Pictures,
        names: Sequence[str],
        *,
        max_pixels: int = MAX_PIXELS,
    ) -> Iterator[tuple[dict[str, Float[np.ndarray, "rows ..."]], list[Pixels | InputError]]]:
        """`features`, batch by batch, for more than there is memory for: rows of the pictures that could be read, and
        all of them one by one, or the InputError of each.
        """
        key = tuple(names)
        if key not in self._compiled:
            self._compiled[key] = _compiled(self.make_outputs(names))
        if not len(pictures):
            raise InputError("no picture is given")
        batches = self.read(pictures, max_pixels=max_pixels)
        for found, some in one_behind((self._compiled[key](self.params, images), some) for images, some in batches):
            good = [number for number, pixels in enumerate(some) if not isinstance(pixels, InputError)]
            yield {name: np.asarray(found[name], np.float32)[good] for name in names}, some

    @functools.cached_property
    def _compiled(self) -> dict[Any, Callable]:
        return {}

    @functools.cached_property
    def _tuned(self) -> AlexNet:
        return self.net.clone(layers=tuned(self.net.layers))

    def make_logits(
        self, *, views: int = 1, formulas: bool = False
    ) -> Callable[[PyTree, UInt8[Array, "n size size 3"]], Float[Array, "n classes"]]:
        """The function (params, images) → logits, as `evaluate.make_logits`: 1 view, or §4.1's 10.

        formulas: without this machine's faster forms, for programs that are to run on others.
        """
        net = self.net if formulas else self._tuned
        mean_image = jnp.asarray(self.mean_image, jnp.float32)
        return evaluate.make_logits(
            net.apply, mean_image, self.config.crop_size, views=views, center_mean=self.config.center_mean
        )

    def make_outputs(self, names: Sequence[str]) -> Callable[[PyTree, UInt8[Array, "n size size 3"]], dict[str, Array]]:
        """The function (params, images) → outputs by name, of the centre of each image. Raises InputError."""
        known = output_names(self.net.layers)
        for name in names:
            if name not in known:
                raise InputError(f"{self.source}: its network has no output {name}; there are {', '.join(known)}")
        mean_image = jnp.asarray(self.mean_image, jnp.float32)

        def of_images(params: PyTree, images: Array) -> dict[str, Array]:
            views = center_view(subtract_mean(images, mean_image), self.config.crop_size)
            return outputs(self._tuned, {"params": params}, views, names)

        return of_images

    def open_dataset(self, dataset: str = "") -> Dataset:
        """The named data set, or else the one it was trained on. Raises InputError where a file does not say that."""
        if not (dataset or self.dataset):
            raise InputError(f"--dataset=PATH is needed: {self.source} does not say where its images are")
        return open_dataset(dataset or self.dataset)

    def check_size(self, dataset: Dataset) -> None:
        """Raises InputError where the images of a data set have another size than those it was made for."""
        if self.size != dataset.size:
            raise InputError(
                f"{self.source}: is for images of {self.size} pixels, those of {dataset.path} have {dataset.size}"
            )


BATCH = 16  # pictures at once


def _compiled(function: Callable) -> Callable:
    return jax.jit(function, compiler_options=xla.compiler_options())


def built(file: Path, layers: Layers, config: Config) -> tuple[AlexNet, PyTree]:
    """The network of a table, and its parameters' shapes. Raises InputError, naming the file, where there is none."""
    try:
        net = configured_network(layers, config)
        return net, shapes_of_params(net, config.crop_size)
    except Exception as error:  # JAX raises many types for shapes that cannot be
        raise InputError(f"{file}: its network cannot be built (layers: {reason(error)})") from error


def check_mean(file: Path, mean_image: np.ndarray, config: Config) -> None:
    """Raises InputError where the network's images are smaller than what it sees of them."""
    if len(mean_image) < config.crop_size:
        raise InputError(
            f"{file}: its mean_image of {len(mean_image)} pixels is smaller than crops of {config.crop_size}"
        )


def network_of_arrays(
    file: Path,
    config: Config,
    step: int,
    class_names: tuple[str, ...],
    mean_image: np.ndarray,
    layers: Layers,
    parameters: Mapping[str, np.ndarray],
    preprocessing: Preprocessing = OWN,
) -> Trained:
    """A network of parameters by their names, as "conv1/kernel".

    Raises InputError, naming the file and the parameter, where one does not fit the table.
    """
    net, like = built(file, layers, config)
    check_mean(file, mean_image, config)
    if len(class_names) != layers[-1].features:
        raise InputError(f"{file}: has {layers[-1].features} outputs, and {len(class_names)} class names")
    shapes = {name: leaf.shape for name, leaf in flatten_dict(like, sep="/").items()}
    for name in sorted({*shapes, *parameters}):
        if name not in shapes or name not in parameters:
            raise InputError(f"{file}: {short(name)} {'is one too many' if name in parameters else 'is missing'}")
        if parameters[name].shape != shapes[name]:
            raise InputError(f"{file}: {name} has the shape {parameters[name].shape}, where {shapes[name]} is expected")
    for name, values in {**parameters, "mean_image": mean_image}.items():
        if np.iscomplexobj(values):
            raise InputError(f"{file}: {name} has complex numbers")
        with np.errstate(over="ignore"):
            if not np.isfinite(np.asarray(values, np.float32)).all():
                raise InputError(f"{file}: {name} is not finite")
    params = unflatten_dict({name: jnp.asarray(of, jnp.float32) for name, of in parameters.items()}, sep="/")
    return Trained(file, step, config, "", class_names, np.asarray(mean_image), net, params, preprocessing)
