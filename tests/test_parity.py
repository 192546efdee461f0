"""The paper's network against PyTorch's operations, with the same weights: outputs and gradients of every layer."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from alexnet_jax import model

torch = pytest.importorskip("torch", reason="PyTorch is not installed; pip install 'alexnet_jax[parity]' brings it")

functional = torch.nn.functional


def torch_network(params, images):
    """Figure 2 and §3 in PyTorch, evaluation mode (dropout: outputs times one half). Returns logits."""

    def convolve(x, name, **options):
        layer = params[name]
        return functional.relu(functional.conv2d(x, layer["kernel"].permute(3, 2, 0, 1), layer["bias"], **options))

    def normalize(x):  # PyTorch divides alpha by the size; the two GPUs' halves are normalised apart
        halves = x.chunk(2, dim=1)
        return torch.cat([functional.local_response_norm(half, 5, alpha=5e-4, beta=0.75, k=2.0) for half in halves], 1)

    def pool(x):
        return functional.max_pool2d(x, 3, 2)

    x = functional.pad(images.permute(0, 3, 1, 2), (0, 3, 0, 3))
    x = pool(normalize(convolve(x, "conv1", stride=4)))
    x = pool(normalize(convolve(x, "conv2", padding=2, groups=2)))
    x = convolve(x, "conv3", padding=1)
    x = convolve(x, "conv4", padding=1, groups=2)
    x = pool(convolve(x, "conv5", padding=1, groups=2))
    x = x.permute(0, 2, 3, 1).flatten(1)
    x = 0.5 * functional.relu(x @ params["fc6"]["kernel"] + params["fc6"]["bias"])
    x = 0.5 * functional.relu(x @ params["fc7"]["kernel"] + params["fc7"]["bias"])
    return x @ params["fc8"]["kernel"] + params["fc8"]["bias"]


def test_logits_loss_and_gradients_of_the_paper_network_equal_pytorchs():
    net = model.AlexNet(model.PAPER)
    images = 60 * jax.random.normal(jax.random.key(1), (2, 224, 224, 3))
    labels = np.array([3, 777])
    params = jax.jit(lambda key: net.init(key, images[:1], train=False))(jax.random.key(0))["params"]

    def loss(params):
        logits = net.apply({"params": params}, images, train=False)
        return optax.softmax_cross_entropy_with_integer_labels(logits, jnp.array(labels)).mean(), logits

    (value, logits), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)

    # In float64, so that all of the difference is ours.
    theirs = jax.tree.map(lambda x: torch.tensor(np.asarray(x), dtype=torch.float64, requires_grad=True), params)
    their_logits = torch_network(theirs, torch.tensor(np.asarray(images), dtype=torch.float64))
    their_loss = functional.cross_entropy(their_logits, torch.tensor(labels))
    their_loss.backward()

    np.testing.assert_allclose(logits, their_logits.detach(), rtol=1e-4, atol=1e-5)
    assert float(value) == pytest.approx(their_loss.item(), rel=1e-6)
    for name, layer in gradients.items():
        for kind, gradient in layer.items():
            expected = theirs[name][kind].grad.numpy()
            error = np.linalg.norm(gradient - expected) / np.linalg.norm(expected)
            assert error < 1e-5, f"{name}/{kind}: {error:.1e}"
