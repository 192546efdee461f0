"""Networks of which each device holds columns only, against the same network on one device."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import CROP, TINY, small_config

from alexnet_jax import AlexNet, Conv, Dense, dropout, papers_rule, relu, takes_key, with_classes
from alexnet_jax.device.spread import Spread, mean_in_bfloat16, spread_over
from alexnet_jax.device.tuned import tuned
from alexnet_jax.options import InputError
from alexnet_jax.paper.architectures import PAPER
from alexnet_jax.paper.table import Local
from alexnet_jax.paper.train_state import TrainState, init_params
from alexnet_jax.paper.train_step import make_train_step

pytestmark = pytest.mark.usefixtures("quickly_compiled")
DEVICES, IMAGES, STEPS, SEEDS = jax.devices(), 8, 10, 5
WAYS = {"dense, 4": (4, "dense_parallel"), "dense, 2": (2, "dense_parallel"), "columns": (2, "columns_parallel")}
# Layer 2 reads the maps of its own half, layer 3 those of both, as conv2 and conv3 of the paper.
LAYERS = (
    *TINY[:2],
    Conv(8, 3, padding=1, std=0.1, then=(relu,)),
    Dense(16, std=0.1, then=(relu, dropout)),
    Dense(12, std=0.1, then=(relu, dropout)),
    Dense(4, std=0.1),
)


def softmax(x):  # of all features: no device can do it alone
    return jax.nn.softmax(x)


@takes_key
def noisy(x, keys):
    return x if keys is None else x + jax.vmap(lambda key: jax.random.normal(key, x.shape[1:], x.dtype))(keys)


# The last layer has classes that no number of devices divides, and steps of one's own; the rule mixes all parameters.
ODD = (*TINY[:2], Dense(16, std=0.1, then=(softmax, noisy)), Dense(8, std=1.0), Dense(3, std=0.1, then=(jnp.tanh,)))
LARS = optax.chain(optax.clip_by_global_norm(0.5), optax.lars(0.1))


def keeping_gradients():
    """An optimizer's state: the last gradients."""
    return optax.GradientTransformation(
        lambda params: jax.tree.map(jnp.zeros_like, params), lambda gradients, _, params=None: (gradients, gradients)
    )


class Ended(NamedTuple):
    losses: list[float]
    gradients: dict
    params: dict


def trained(layers, spread, dtype, rule):
    """The function (seed) → loss and gradients of the first step, and the parameters after ten."""
    net = AlexNet(tuned(layers, spread.devices), dtype)
    on_all = net.clone(layers=spread.layers(net.layers))

    def augment(draws, images):  # without rounding, in both types
        brighter = jax.vmap(lambda key: jax.random.randint(key, (1, 1, 1), -150, -50))(draws.keys())
        return (images[:, :CROP, :CROP].astype(jnp.int32) + brighter.astype(jnp.int32)).astype(dtype)

    optimizer = optax.chain(keeping_gradients(), rule)
    step = make_train_step(
        on_all, optimizer, spread.augmentation(augment), axis_name=spread.axis,
        metrics={"norm": lambda seen: sum(jnp.sum(jnp.abs(of)) for of in jax.tree.leaves(seen.gradients))},
    )  # fmt: skip
    compiled = spread.step(step)
    init = jax.jit(lambda key: init_params(AlexNet(layers), key, CROP))

    def ended(seed):
        rng = np.random.default_rng(seed)
        batches = [
            (rng.integers(0, 256, (IMAGES, 40, 40, 3), np.uint8), rng.integers(0, 3, IMAGES).astype(np.int32))
            for _ in range(STEPS)
        ]
        params = jax.tree.map(lambda x: np.asarray(x, dtype), init(jax.random.key(seed)))
        state = spread.put(TrainState(np.int32(100 * seed), params, optimizer.init(params)))
        losses, gradients = [], None
        for batch in spread.sent(batches):
            state, found = compiled(state, batch)
            losses.append(jax.device_get(found))
            gradients = gradients or jax.device_get(state.opt_state[0])
        return Ended(losses, gradients, jax.device_get(state.params))

    return ended


def spread(way, layers=LAYERS):
    number, flag = WAYS[way]
    return spread_over(DEVICES[:number], layers, small_config(**{flag: True}))


@functools.cache
def on_one(layers, dtype, rule):
    return functools.cache(trained(layers, Spread(DEVICES[:1]), jnp.dtype(dtype), rule))


def equal(found, expected, tolerance):
    """Each array by its norm."""
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        difference = np.linalg.norm(np.asarray(one, np.float64) - other)
        assert difference <= tolerance * np.linalg.norm(np.asarray(other, np.float64))


PAPERS = papers_rule(0.002)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float64", 1e-12)])
@pytest.mark.parametrize("way", ["dense, 4", pytest.param("dense, 2", marks=pytest.mark.slow), "columns"])
def test_loss_gradients_and_ten_updates_are_those_of_one_device(way, dtype, tolerance):
    with jax.enable_x64(dtype == "float64"):
        on_all = trained(LAYERS, spread(way), jnp.dtype(dtype), PAPERS)
        for seed in range(SEEDS):
            equal(on_all(seed), on_one(LAYERS, dtype, PAPERS)(seed), tolerance)


@pytest.mark.parametrize("way", ["dense, 2", pytest.param("columns", marks=pytest.mark.slow)])
def test_any_step_optimizer_and_number_of_classes(way):
    on_all = trained(ODD, spread(way, ODD), jnp.dtype("float32"), LARS)
    equal(on_all(0), on_one(ODD, "float32", LARS)(0), 1e-5)


@pytest.mark.parametrize("way", WAYS)
def test_each_device_holds_its_columns_and_their_momentum(way):
    of_all = spread(way)
    net = AlexNet(LAYERS)
    params = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), jax.eval_shape(
        lambda: init_params(net, jax.random.key(0), CROP)))  # fmt: skip
    state = of_all.put(TrainState(np.int32(0), params, PAPERS.init(params)))
    for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]:
        name = jax.tree_util.keystr(path)
        divided = "'fc" in name or ("columns" in way and "'conv" in name)
        shape = (*leaf.shape[:-1], leaf.shape[-1] // len(of_all.devices)) if divided else leaf.shape
        assert {part.data.shape for part in leaf.addressable_shards} == {shape}, name


@pytest.mark.parametrize("seed", range(3))
def test_the_mean_in_bfloat16_is_that_of_what_was_sent(seed):
    rng = np.random.default_rng(seed)
    gradients = {"odd": rng.standard_normal((4, 3, 5), np.float32), "one": rng.standard_normal(4, np.float32)}

    def rounded(x):
        return np.asarray(jnp.asarray(x).astype(jnp.bfloat16).astype(jnp.float32))

    found = jax.pmap(functools.partial(mean_in_bfloat16, axis_name="i"), "i", devices=DEVICES)(gradients)
    for name, of_each in gradients.items():
        expected = rounded(rounded(of_each).astype(np.float64).mean(0).astype(np.float32))
        for of_device in np.asarray(found[name]):
            np.testing.assert_array_equal(of_device, expected)


@pytest.mark.parametrize(
    ("devices", "layers", "flags", "message"),
    [
        (3, PAPER, {"dense_parallel": True}, "--dense_parallel: the 3 devices do not divide the 4096 features of fc6"),
        (4, LAYERS, {"columns_parallel": True}, "--columns_parallel: is of 2 devices, and there are 4"),
        (1, LAYERS, {"columns_parallel": True}, "--columns_parallel: is of 2 devices, and there are 1"),
        (2, (Conv(9, 3), Dense(3)), {"columns_parallel": True}, "do not divide the 9 features of conv1"),
        (2, (Conv(6, 3, groups=3), Dense(3)), {"columns_parallel": True}, "conv1 has 3 groups"),
        (2, (Local(8, 3), Dense(3)), {"columns_parallel": True}, "local1 is locally connected"),
    ],
)
def test_what_these_devices_cannot_do_is_one_line(devices, layers, flags, message):
    with pytest.raises(InputError, match=message):
        spread_over([DEVICES[0]] * devices, layers, small_config(**flags))


@pytest.mark.parametrize("devices", [4, 16])
def test_classes_that_the_devices_do_not_divide_are_no_fault(devices):
    spread = spread_over([DEVICES[0]] * devices, with_classes(PAPER, 10), small_config(dense_parallel=True))
    assert dict(spread.divided) == {"fc6": 4096, "fc7": 4096}
    spread = spread_over([DEVICES[0]] * devices, PAPER, small_config(dense_parallel=True))
    assert dict(spread.divided) == {"fc6": 4096, "fc7": 4096, **({} if devices == 16 else {"fc8": 1000})}


def test_on_one_device_there_is_nothing_to_divide():
    assert type(spread_over(DEVICES[:1], LAYERS, small_config(dense_parallel=True))) is Spread


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"dense_parallel": True, "columns_parallel": True}, "--dense_parallel: cannot be with --columns_parallel"),
        ({"dense_parallel": True, "exchange_precision": "bfloat16"}, "=bfloat16: cannot be with --dense_parallel"),
        ({"exchange_precision": "float16"}, "--exchange_precision=float16: must be float32 or bfloat16"),
    ],
)
def test_flags_that_exclude_each_other_are_one_line(flags, message):
    with pytest.raises(InputError, match=message):
        small_config(**flags)
