"""Networks against PyTorch's modules in float64, with the same weights: outputs and gradients of every layer."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from alexnet_jax.paper import model
from alexnet_jax.paper.architectures import ARCHITECTURES, CAFFE_IMAGE_SIZE
from alexnet_jax.paper.table import named, output_names

torch = pytest.importorskip("torch", reason="PyTorch is not installed; pip install 'alexnet_jax[parity]' brings it")
nn = torch.nn


class ByGPU(nn.Module):
    """A module for each half of the channels, as on two GPUs."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, x):
        return torch.cat([self.module(half) for half in x.chunk(2, dim=1)], dim=1)


class Halve(nn.Module):
    """§4.2 at test time: "multiply their outputs by 0.5"."""

    def forward(self, x):
        return 0.5 * x


class Rows(nn.Module):
    """Flattens in the order height, width, channel."""

    def forward(self, x):
        return x.permute(0, 2, 3, 1).flatten(1)


def paper():
    """§3 and Figure 2. PyTorch divides alpha by the size."""
    norm = ByGPU(nn.LocalResponseNorm(5, alpha=5 * 1e-4, beta=0.75, k=2.0))
    return {
        "conv1": [nn.ZeroPad2d((0, 3, 0, 3)), nn.Conv2d(3, 96, 11, 4), nn.ReLU(), norm, nn.MaxPool2d(3, 2)],
        "conv2": [nn.Conv2d(96, 256, 5, padding=2, groups=2), nn.ReLU(), norm, nn.MaxPool2d(3, 2)],
        "conv3": [nn.Conv2d(256, 384, 3, padding=1), nn.ReLU()],
        "conv4": [nn.Conv2d(384, 384, 3, padding=1, groups=2), nn.ReLU()],
        "conv5": [nn.Conv2d(384, 256, 3, padding=1, groups=2), nn.ReLU(), nn.MaxPool2d(3, 2)],
        "fc6": [Rows(), nn.Linear(9216, 4096), nn.ReLU(), Halve()],
        "fc7": [nn.Linear(4096, 4096), nn.ReLU(), Halve()],
        "fc8": [nn.Linear(4096, 1000)],
    }


class SpatialNorm(nn.Module):
    """The extra normalisation of 2012; the mean over 5 × 5 counts the zeros around the image."""

    def forward(self, x):
        return x * (1 + 4e-5 * 25 * nn.functional.avg_pool2d(x**2, 5, 1, padding=2)) ** -0.75


def original():
    """Net 145 of 2012's code, where α is divided by n, as it is in PyTorch."""
    norm, pool = ByGPU(nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=2.0)), nn.MaxPool2d(3, 2)
    return {
        **paper(),
        "conv1": [nn.ZeroPad2d((0, 3, 0, 3)), nn.Conv2d(3, 96, 11, 4), norm, pool, nn.ReLU()],
        "conv2": [nn.Conv2d(96, 256, 5, padding=2, groups=2), nn.ReLU(), norm, SpatialNorm(), pool],
        "conv5": [nn.Conv2d(384, 256, 3, padding=1, groups=2), pool, nn.ReLU()],
    }


def caffe():
    """BVLC's train_val.prototxt: 227 × 227, local_size 5, alpha 0.0001, beta 0.75, and Caffe's k of 1."""
    norm = nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=1.0)
    return {
        **paper(),
        "conv1": [nn.Conv2d(3, 96, 11, 4), nn.ReLU(), norm, nn.MaxPool2d(3, 2)],
        "conv2": [nn.Conv2d(96, 256, 5, padding=2, groups=2), nn.ReLU(), norm, nn.MaxPool2d(3, 2)],
        "fc6": [Rows(), nn.Linear(9216, 4096), nn.ReLU(), nn.Dropout()],
        "fc7": [nn.Linear(4096, 4096), nn.ReLU(), nn.Dropout()],
    }


def torchvision():
    """torchvision.models.alexnet."""
    return {
        "conv1": [nn.Conv2d(3, 64, 11, 4, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)],
        "conv2": [nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)],
        "conv3": [nn.Conv2d(192, 384, 3, padding=1), nn.ReLU()],
        "conv4": [nn.Conv2d(384, 256, 3, padding=1), nn.ReLU()],
        "conv5": [nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2), nn.AdaptiveAvgPool2d(6),
                  nn.Dropout()],
        "fc6": [Rows(), nn.Linear(9216, 4096), nn.ReLU(), nn.Dropout()],
        "fc7": [nn.Linear(4096, 4096), nn.ReLU()],
        "fc8": [nn.Linear(4096, 1000)],
    }  # fmt: skip


def fill(layers, params):
    """Puts our parameters in: kernels are HWIO here and OIHW there, dense ones transposed."""
    for name, modules in layers.items():
        for module in modules:
            module.double().eval()
            if hasattr(module, "weight"):
                kernel = np.asarray(params[name]["kernel"], np.float64)
                kernel = kernel.transpose(3, 2, 0, 1) if kernel.ndim == 4 else kernel.T
                module.weight = nn.Parameter(torch.tensor(kernel))
                module.bias = nn.Parameter(torch.tensor(np.asarray(params[name]["bias"], np.float64)))


def gradient(modules):
    """Of the kernel and bias of a layer, in our order."""
    (module,) = (module for module in modules if hasattr(module, "weight"))
    kernel = module.weight.grad.numpy()
    return {
        "kernel": kernel.transpose(2, 3, 1, 0) if kernel.ndim == 4 else kernel.T,
        "bias": module.bias.grad.numpy(),
    }


def channels_last(x):
    x = x.detach().numpy()
    return x.transpose(0, 2, 3, 1) if x.ndim == 4 else x


def error(ours, theirs):
    return np.linalg.norm(np.asarray(ours, np.float64) - theirs) / np.linalg.norm(theirs)


@pytest.mark.parametrize(
    ("name", "build"),
    [
        ("paper", paper), pytest.param("original", original, marks=pytest.mark.slow),
        pytest.param("caffe", caffe, marks=pytest.mark.slow),
        pytest.param("torchvision", torchvision, marks=pytest.mark.slow),  # its outputs: networks/test_weights.py
    ],
)  # fmt: skip
def test_outputs_and_gradients_of_every_layer_equal_pytorchs(name, build):
    table, size = ARCHITECTURES[name], CAFFE_IMAGE_SIZE if name == "caffe" else 224
    of_layer = {
        layer: [of for of in output_names(table) if of.partition(":")[0] == layer][-1] for layer in named(table)
    }
    images = 60 * jax.random.normal(jax.random.key(1), (2, size, size, 3))
    labels = np.array([3, 777])
    params = jax.jit(lambda key: model.AlexNet(table).init(key, images[:1], train=False))(jax.random.key(0))["params"]
    # Biases of all values: equal ones would hide a wrong order.
    params = jax.tree.map(
        lambda w: w + 0.1 * jax.random.normal(jax.random.key(2), w.shape) if w.ndim == 1 else w, params
    )

    def outputs(params, images, dtype):
        found = model.outputs(model.AlexNet(table, dtype), {"params": params}, images, [*of_layer.values()])
        return {layer: found[of] for layer, of in of_layer.items()}

    def loss(params, images):
        logits = model.AlexNet(table, jnp.float64).apply({"params": params}, images, train=False)
        return optax.softmax_cross_entropy_with_integer_labels(logits, jnp.array(labels)).mean()

    single = jax.jit(functools.partial(outputs, dtype=jnp.float32))(params, images)
    with jax.enable_x64(True):  # in float32 two values in a pooling window may be too near to tell which is larger
        wide = jax.tree.map(lambda x: jnp.array(x, jnp.float64), (params, images))
        double = jax.jit(functools.partial(outputs, dtype=jnp.float64))(*wide)
        value, (gradients, of_images) = jax.jit(jax.value_and_grad(loss, (0, 1)))(*wide)

    layers = build()
    fill(layers, params)
    their_images = torch.tensor(np.asarray(images, np.float64), requires_grad=True)
    x = their_images.permute(0, 3, 1, 2)
    for layer, modules in layers.items():
        x = nn.Sequential(*modules)(x)
        theirs = channels_last(x)
        assert single[layer].shape == theirs.shape
        assert error(single[layer], theirs) < 1e-5, layer
        assert error(double[layer], theirs) < 1e-12, layer
    their_loss = nn.functional.cross_entropy(x, torch.tensor(labels))
    their_loss.backward()

    assert float(value) == pytest.approx(their_loss.item(), rel=1e-12)
    for layer, modules in layers.items():
        for kind, expected in gradient(modules).items():
            found = error(gradients[layer][kind], expected)
            assert found < 1e-11, f"{layer}/{kind}: {found:.1e}"
    assert error(of_images, their_images.grad.numpy()) < 1e-11
