"""A network as a run left it in its folder, to be used."""

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float, PyTree, UInt8

from alexnet_jax.config import Config, InputError
from alexnet_jax.data.datasets import Dataset, open_dataset
from alexnet_jax.device import xla
from alexnet_jax.paper import evaluate, optim
from alexnet_jax.paper.architectures import ARCHITECTURES, Layers, with_classes
from alexnet_jax.paper.model import AlexNet
from alexnet_jax.paper.train_state import init_params, init_state
from alexnet_jax.runs import checkpoint
from alexnet_jax.runs import log as runlog


@dataclasses.dataclass(frozen=True)
class Trained:
    """A network, and what it must be fed.

    step: of the checkpoint. class_names: of its outputs. mean_image: of its training images, which are as large.
    params: as `net.apply` takes them.
    """

    workdir: Path
    step: int
    config: Config
    class_names: tuple[str, ...]
    mean_image: Float[np.ndarray, "size size 3"]
    net: AlexNet
    params: PyTree

    @property
    def size(self) -> int:
        """Side of the images, before views are cut out of them."""
        return len(self.mean_image)

    def open_dataset(self, dataset: str = "") -> Dataset:
        """The named data set, or else the one it was trained on. Raises InputError where a file does not tell that."""
        if not (dataset or self.config.dataset):
            raise InputError(f"--dataset=PATH is needed: {self.workdir} does not tell where its images are")
        return open_dataset(dataset or self.config.dataset)

    def check_size(self, dataset: Dataset) -> None:
        """Raises InputError where the images of a data set have another size than those it was made for."""
        if self.size != dataset.size:
            raise InputError(
                f"{self.workdir}: is for images of {self.size} pixels, those of {dataset.path} have {dataset.size}"
            )

    def make_logits(self, *, views: int = 1) -> Callable[[PyTree, UInt8[Array, "n size size 3"]], Array]:
        """As `evaluate.make_logits`: 1 view, or §4.1's 10."""
        mean_image = jnp.asarray(self.mean_image, jnp.float32)
        return evaluate.make_logits(
            self.net.apply, mean_image, self.config.crop_size, views=views, center_mean=self.config.center_mean
        )

    def make_probabilities(
        self, *, views: int = 1
    ) -> Callable[[UInt8[np.ndarray | Array, "n size size 3"]], Float[Array, "n classes"]]:
        """The compiled function images → softmax outputs, averaged over the views."""
        logits = self.make_logits(views=views)
        compiled = jax.jit(
            lambda params, images: jax.nn.softmax(logits(params, images)), compiler_options=xla.compiler_options()
        )
        return functools.partial(compiled, self.params)


def assembled(
    file: Path,
    config: Config,
    step: int,
    class_names: tuple[str, ...],
    mean_image: np.ndarray,
    layers: Layers,
    parameters: Mapping[str, np.ndarray],
) -> Trained:
    """A network of parameters by their names, as "conv1/kernel".

    Raises InputError, naming the file and the parameter, where one does not fit the table.
    """
    try:
        net = AlexNet(layers, jnp.dtype(config.precision))
        like = jax.eval_shape(lambda: init_params(net, jax.random.key(0), config.crop_size))
    except (TypeError, ValueError) as error:
        raise InputError(f"{file}: its network cannot be built ({error})") from error
    if len(mean_image) < config.crop_size:
        raise InputError(
            f"{file}: its mean_image of {len(mean_image)} pixels is smaller than crops of {config.crop_size}"
        )
    shapes = {name: leaf.shape for name, leaf in flatten_dict(like, sep="/").items()}
    for name in sorted({*shapes, *parameters}):
        if name not in shapes or name not in parameters:
            raise InputError(f"{file}: {name} {'is one too many' if name in parameters else 'is missing'}")
        if parameters[name].shape != shapes[name]:
            raise InputError(f"{file}: {name} has the shape {parameters[name].shape}, where {shapes[name]} is expected")
    for name, values in {**parameters, "mean_image": mean_image}.items():
        if not np.isfinite(values).all():
            raise InputError(f"{file}: {name} is not finite")
    params = unflatten_dict({name: jnp.asarray(of, jnp.float32) for name, of in parameters.items()}, sep="/")
    return Trained(file, step, config, class_names, np.asarray(mean_image), net, params)


def load(workdir: str | Path, checkpoint_step: str = "latest") -> Trained:
    """The network of a run, which may still be running; or of a .safetensors of `weights.save`.

    checkpoint_step: "latest", "best" (lowest validation top-1 error), or a step's number; a file has but one network.

    Raises InputError where the folder is not a run's, or the checkpoint is not there or damaged.
    """
    workdir = Path(workdir).expanduser()
    if workdir.suffix == ".safetensors":
        from alexnet_jax import weights  # which is above this

        if checkpoint_step not in ("latest", "best"):
            raise InputError(f"{workdir}: holds one network and has no checkpoint '{checkpoint_step}'")
        return weights.load(workdir)
    config, class_names, mean_image = _facts(workdir)
    if config.architecture not in ARCHITECTURES:
        raise InputError(f"{workdir}: its architecture '{config.architecture}' is unknown here")
    outputs = config.num_classes or len(class_names)
    class_names = evaluate.output_names(class_names, outputs)
    net = AlexNet(with_classes(ARCHITECTURES[config.architecture], outputs), jnp.dtype(config.precision))
    optimizer = optim.of_config(config, 1.0, taken=runlog.taken_over(workdir))
    like = init_state(net, optimizer, crop_size=config.crop_size, seed=0)
    checkpoints = checkpoint.Checkpoints(workdir / "checkpoints", read_only=True)
    try:
        step = checkpoints.step_of(checkpoint_step)
        state = checkpoints.restore(step, like)
    except checkpoint.Damaged as error:
        raise InputError(f"{workdir}: the checkpoint of step {step} is damaged ({error})") from error
    finally:
        checkpoints.close()
    return Trained(workdir, step, config, class_names, mean_image, net, jax.device_put(state.params))


def _facts(workdir: Path) -> tuple[Config, tuple[str, ...], np.ndarray]:
    """Its config, and of its training images the classes and the mean."""
    try:
        saved = json.loads((workdir / "config.json").read_text())
        config, fingerprint = Config.from_json(saved["config"]), saved["data"]
    except FileNotFoundError:
        raise InputError(f"{workdir}: there is no run (no config.json)") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{workdir / 'config.json'}: cannot be read ({error})") from error
    file = workdir / runlog.FACTS
    try:
        with np.load(file, allow_pickle=False) as facts:
            return config, tuple(map(str, facts["class_names"])), facts["mean_image"]
    except FileNotFoundError:  # of a run before there were such files
        dataset = open_dataset(config.dataset)
        if dataset.fingerprint() != fingerprint:
            raise InputError(
                f"{file}: is missing, and {config.dataset} holds other images than it was trained on"
            ) from None
        return config, dataset.class_names, dataset.statistics.mean_image
    except Exception as error:  # NumPy raises many types
        raise InputError(f"{file}: cannot be read ({error})") from error
