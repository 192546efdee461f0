"""The formulas are right under every transformation of JAX, on two devices: of the paper's network and that of 2012.

By default of their first and last two layers, which have all kinds of operations and compile in half of the time. Each
must give what one device gives: to 1e-5 of the largest in float32, to 1e-12 in float64.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable
from typing import Any
from unittest import mock

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import without_compilation_cache
from flax import nnx
from flax.nnx import bridge
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

from alexnet_jax.config import PRESETS
from alexnet_jax.data.images import Statistics
from alexnet_jax.device import onednn, parallel
from alexnet_jax.device.tuned import tuned
from alexnet_jax.paper.architectures import ARCHITECTURES
from alexnet_jax.paper.model import AlexNet
from alexnet_jax.paper.optim import configured_rule
from alexnet_jax.paper.table import with_column
from alexnet_jax.paper.train_state import TrainState
from alexnet_jax.paper.train_step import make_train_step, papers_augmentation

DEVICES = jax.devices()[:2]
SIZE, IMAGES, TRAINING_STEPS = 95, 4, 3
COLUMNS = {"features": (8, 16, 16, 16, 16, 32, 32, 10), "std": (0.05,) * 8}


def compiled(function):
    """In less than half of the time; none of these programs runs long."""
    options = {"xla_backend_optimization_level": 0}
    if not jax.config.values["jax_enable_x64"]:  # there the older code's `exp` is 1e-9 off
        options |= without_fusion_emitters()
    return jax.jit(function, compiler_options=options)


@functools.cache
def without_fusion_emitters():
    options = {"xla_cpu_use_fusion_emitters": False}
    try:
        jax.jit(lambda: 0, compiler_options=options).lower().compile()
    except jax.errors.JaxRuntimeError:  # jaxlib 0.12 has no other code
        return {}
    return options


@dataclasses.dataclass(frozen=True)
class Case:
    """A network, what it is asked, and what one device answers."""

    net: AlexNet
    params: Any
    images: jax.Array
    labels: jax.Array
    tolerance: float

    def forward(self, params, images):
        return self.net.apply({"params": params}, images, train=False)

    def loss(self, params, images, labels):
        """With dropout."""
        logits = self.net.apply({"params": params}, images, train=True, key=jax.random.key(3))
        return optax.softmax_cross_entropy(logits, jax.nn.one_hot(labels, 10, dtype=logits.dtype)).mean()

    @functools.cached_property
    def gradient_of(self) -> Callable:
        return compiled(jax.grad(self.loss))

    @functools.cached_property
    def logits(self):
        return compiled(self.forward)(self.params, self.images)

    @functools.cached_property
    def gradients(self):
        return self.gradient_of(self.params, self.images, self.labels)

    @property
    def along(self):
        """A direction of the parameters, in which the loss changes."""
        random = np.random.default_rng(2)
        return jax.tree.map(lambda of: jnp.asarray(0.01 * random.standard_normal(of.shape), of.dtype), self.params)

    def close(self, found, expected, tolerance=None):
        close(found, expected, tolerance or self.tolerance)


def close(found, expected, tolerance):
    """Each array to so much of the largest in it."""
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    paths, _ = jax.tree_util.tree_flatten_with_path(expected)
    for one, (path, other) in zip(jax.tree.leaves(found), paths, strict=True):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
        largest = np.abs(np.asarray(other)).max()
        assert largest > 0
        assert np.abs(np.asarray(one) - np.asarray(other)).max() / largest < tolerance, jax.tree_util.keystr(path)


def table(name):
    whole = with_column(ARCHITECTURES[name.removeprefix("whole ")], **COLUMNS)
    return whole if name.startswith("whole ") else whole[:2] + whole[-2:]


@functools.cache
def built(name: str, precision: str) -> Case:
    dtype = jnp.dtype(precision)
    net = AlexNet(table(name), dtype)
    images = jnp.asarray(50 * np.random.default_rng(0).standard_normal((IMAGES, SIZE, SIZE, 3)), dtype)
    params = compiled(lambda key: net.init(key, images[:1], train=False))(jax.random.key(1))["params"]
    params = jax.tree.map(lambda of: of.astype(dtype), params)
    labels = jnp.array([0, 1, 2, 3], jnp.int32)
    return Case(net, params, images, labels, {"float32": 1e-5, "float64": 1e-12}[precision])


def cases(*by_default):
    """This one; and both networks as a whole, slowly."""
    of_all = [by_default, ("whole paper", "float32"), ("whole original", "float64")]
    params = [pytest.param(of, marks=() if of == by_default else pytest.mark.slow) for of in of_all]
    return {"params": params, "ids": ["-".join(of) for of in of_all]}


@pytest.fixture(**cases("paper", "float32"))
def case(request):
    with jax.enable_x64(request.param[1] == "float64"):
        yield built(*request.param)


@pytest.fixture(params=[pytest.param("whole paper", marks=pytest.mark.slow), "original"])
def double(request):
    """In float64, for differences of near points."""
    with jax.enable_x64(True):
        yield built(request.param, "float64")


def dot(one, other):
    return sum(jnp.vdot(a, b) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True))


def difference(function, case, step=1e-6):
    """Of a function of the parameters: its derivative along `case.along`, by central differences."""

    def at(distance):
        return function(jax.tree.map(lambda of, along: of + distance * along, case.params, case.along))

    return jax.tree.map(lambda ahead, behind: (ahead - behind) / (2 * step), at(step), at(-step))


def test_gradients_are_those_of_differences(double):
    value = compiled(double.loss)
    found = difference(lambda params: value(params, double.images, double.labels), double)
    assert float(dot(double.gradients, double.along)) == pytest.approx(float(found), rel=1e-7)


def test_jvp(case):
    along = case.gradients  # so that nothing cancels
    found = compiled(
        lambda params, along: jax.jvp(lambda of: case.loss(of, case.images, case.labels), (params,), (along,))
    )
    case.close(found(case.params, along)[1], dot(along, along))


def test_jacfwd(case):
    """Of the logits, by some of the biases: against jacrev."""

    def logits(biases):
        params = {layer: {**of, "bias": biases.get(layer, of["bias"])} for layer, of in case.params.items()}
        return case.forward(params, case.images[:2])

    biases = {layer: case.params[layer]["bias"] for layer in [*case.params][:-1:2]}
    case.close(compiled(jax.jacfwd(logits))(biases), compiled(jax.jacrev(logits))(biases))


def hessian_times(case, params, along):
    """Forward over reverse."""
    return jax.jvp(lambda of: jax.grad(case.loss)(of, case.images, case.labels), (params,), (along,))[1]


def test_hessian_vector_product(case):
    def reverse_over_forward(params, along):
        def of_loss(params):
            return jax.jvp(lambda of: case.loss(of, case.images, case.labels), (params,), (along,))[1]

        return jax.grad(of_loss)(params)

    found = compiled(functools.partial(hessian_times, case))(case.params, case.along)
    case.close(found, compiled(reverse_over_forward)(case.params, case.along))


def test_hessian_vector_products_are_those_of_differences(double):
    found = compiled(functools.partial(hessian_times, double))(double.params, double.along)
    expected = difference(lambda params: double.gradient_of(params, double.images, double.labels), double)
    double.close(found, expected, 1e-6)


def test_vmap_over_seeds(case):
    def of_seed(key):
        params = case.net.init(key, case.images[:1], train=False)["params"]
        params = jax.tree.map(lambda of: of.astype(case.images.dtype), params)
        return params, jax.value_and_grad(case.loss)(params, case.images, case.labels)

    keys = jax.random.split(jax.random.key(7), 3)
    params, (losses, gradients) = compiled(jax.vmap(of_seed))(keys)
    assert len(np.unique(losses)) == 3
    for seed in range(3):
        own = jax.tree.map(lambda of, seed=seed: of[seed], (params, gradients))
        case.close(own[1], case.gradient_of(own[0], case.images, case.labels))


def test_remat(case):
    gradients = compiled(jax.grad(jax.checkpoint(case.loss)))(case.params, case.images, case.labels)
    case.close(gradients, case.gradients)


@pytest.mark.parametrize("kind", [AxisType.Explicit, AxisType.Auto], ids=lambda kind: kind.name)
def test_jit_over_a_mesh(case, kind):
    mesh = jax.make_mesh((2,), ("batch",), (kind,), devices=DEVICES)
    images, labels = jax.device_put((case.images, case.labels), NamedSharding(mesh, P("batch")))
    params = jax.device_put(case.params, NamedSharding(mesh, P()))
    logits = compiled(case.forward)(params, images)
    assert [shard.data.shape for shard in logits.addressable_shards] == [(2, 10)] * 2  # divided to the end
    case.close(logits, case.logits)
    case.close(compiled(jax.grad(case.loss))(params, images, labels), case.gradients)


def test_shard_map(case):
    mesh = jax.make_mesh((2,), ("batch",), devices=DEVICES)
    images = jax.device_put(case.images, NamedSharding(mesh, P("batch")))
    params = jax.device_put(case.params, NamedSharding(mesh, P()))

    def forward(params, images):
        logits = case.forward(params, images)
        return logits, lax.pmean(logits.mean(0), "batch")

    mapped = jax.shard_map(forward, mesh=mesh, in_specs=(P(), P("batch")), out_specs=(P("batch"), P()))
    case.close(compiled(mapped)(params, images), (case.logits, case.logits.mean(0)))


def test_export(case):
    """For any number of images."""
    (n,) = jax.export.symbolic_shape("n")
    params = jax.tree.map(lambda of: jax.ShapeDtypeStruct(of.shape, of.dtype), case.params)
    images = jax.ShapeDtypeStruct((n, *case.images.shape[1:]), case.images.dtype)
    written = jax.export.export(jax.jit(case.forward), platforms=["cpu", "cuda", "tpu"])(params, images).serialize()
    read = jax.export.deserialize(written)
    case.close(read.call(case.params, case.images), case.logits)
    case.close(read.call(case.params, case.images[:3]), case.logits[:3])


def test_nnx_bridge(case):
    images = case.images
    net = nnx.eval_shape(lambda: bridge.ToNNX(case.net).lazy_init(images[:1], rngs=nnx.Rngs(0), train=False))
    for layer, parts in case.params.items():
        for part, value in parts.items():
            assert getattr(net, layer)[part].shape == value.shape
            getattr(net, layer)[part].set_value(value)

    def loss(forward, images):
        logits = forward(images)
        return (logits**2).sum(), logits

    of_nnx = nnx.grad(lambda net, images: loss(lambda of: net(of, train=False), images), has_aux=True)
    gradients, logits = nnx.jit(of_nnx)(net, images)
    case.close(logits, case.logits)
    of_params = jax.grad(lambda params: loss(lambda of: case.forward(params, of), images), has_aux=True)
    expected, _ = compiled(of_params)(case.params)
    found = {layer: {part: gradients[layer][part].get_value() for part in parts} for layer, parts in expected.items()}
    case.close(found, expected)


# The training step, with §4.1's augmentation and §5's rule as the presets have them.


@dataclasses.dataclass(frozen=True)
class Training:
    """state: the first one. batches: one a step, in one array each."""

    make_step: Callable
    state: Any
    batches: Any
    tolerance: float

    @property
    def each(self):
        return list(zip(*self.batches, strict=True))

    @functools.cached_property
    def expected(self):
        """On one device: the state after all steps, and what each has reported."""
        return self.after(compiled(self.make_step()))

    def after(self, step, put=lambda state: state, divide=lambda batch: batch):
        state, reported = put(self.state), []
        for batch in self.each:
            state, metrics = step(state, divide(batch))
            reported.append(metrics)
        return jax.device_get((state, jax.tree.map(lambda *of: np.stack(of), *jax.device_get(reported))))

    def equals_one_device(self, found):
        (state, reported), (expected, expected_reports) = found, self.expected
        close(state.params, expected.params, self.tolerance)
        assert state.step == expected.step == TRAINING_STEPS
        velocities = [
            [of for of in jax.tree.leaves(opt_state) if of.ndim] for opt_state in (state.opt_state, expected.opt_state)
        ]
        close(*velocities, self.tolerance)
        assert set(reported) == {"loss", "top1_error", "norm"}
        for name, values in reported.items():
            np.testing.assert_allclose(values, expected_reports[name], rtol=self.tolerance, err_msg=name)


@functools.cache
def trained(name: str, precision: str) -> Training:
    case = built(name, precision)
    rng = np.random.default_rng(1)
    size = SIZE + 8
    config = dataclasses.replace(PRESETS[name.removeprefix("whole ")], crop_size=SIZE, crop_chunk=2)
    if precision == "float64":  # the colours are float32, and rounded as the compiler puts them together
        config = dataclasses.replace(config, color_scale=0.0)
    statistics = Statistics(np.full((size, size, 3), 120.0), 100 * np.eye(3))
    optimizer = configured_rule(config, steps_per_epoch=10.0)
    state = TrainState(jnp.zeros((), jnp.int32), case.params, optimizer.init(case.params))
    images = rng.integers(0, 256, (TRAINING_STEPS, IMAGES, size, size, 3), dtype=np.uint8)
    labels = rng.integers(0, 10, (TRAINING_STEPS, IMAGES)).astype(np.int32)
    make_step = functools.partial(
        make_train_step, case.net, optimizer, papers_augmentation(config, statistics, 10.0), seed=1,
        metrics={"norm": lambda seen: jnp.sqrt(dot(seen.gradients, seen.gradients))},
    )  # fmt: skip
    return Training(make_step, state, (jnp.asarray(images), jnp.asarray(labels)), case.tolerance)


@pytest.fixture(**cases("original", "float64"))
def training(request):
    with jax.enable_x64(request.param[1] == "float64"):
        yield trained(*request.param)


def test_the_first_steps_change_something(training):
    state, reported = training.expected
    moved = jax.tree.map(lambda now, before: np.abs(now - before).max(), state.params, training.state.params)
    assert min(jax.tree.leaves(moved)) > 0
    assert len(np.unique(reported["loss"])) == TRAINING_STEPS


def test_scan_over_training_steps(training):
    scanned = compiled(lambda state, batches: lax.scan(training.make_step(), state, batches))
    training.equals_one_device(jax.device_get(scanned(training.state, training.batches)))


@pytest.mark.parametrize(
    "kind", [AxisType.Explicit, pytest.param(AxisType.Auto, marks=pytest.mark.slow)], ids=lambda kind: kind.name
)
def test_training_steps_under_jit_over_a_mesh(training, kind):
    mesh = jax.make_mesh((2,), ("batch",), (kind,), devices=DEVICES)
    put = functools.partial(jax.device_put, device=NamedSharding(mesh, P()))
    divide = functools.partial(jax.device_put, device=NamedSharding(mesh, P("batch")))
    training.equals_one_device(training.after(compiled(training.make_step()), put, divide))


def test_training_steps_under_pmap(training):
    step = jax.pmap(training.make_step(axis_name="batch"), "batch", in_axes=(None, 0), out_axes=None, devices=DEVICES)
    put, divide = (functools.partial(of, devices=DEVICES) for of in (parallel.replicate, parallel.shard))
    training.equals_one_device(training.after(compiled(lambda *of: step(*of)), put, divide))


def test_training_steps_under_shard_map(training):
    mesh = jax.make_mesh((2,), ("batch",), devices=DEVICES)
    put = functools.partial(jax.device_put, device=NamedSharding(mesh, P()))
    divide = functools.partial(jax.device_put, device=NamedSharding(mesh, P("batch")))
    step = training.make_step(axis_name="batch")
    mapped = jax.shard_map(step, mesh=mesh, in_specs=(P(), P("batch")), out_specs=P())
    training.equals_one_device(training.after(compiled(mapped), put, divide))


# The fast forms.


@pytest.mark.parametrize("name", ["paper", pytest.param("whole original", marks=pytest.mark.slow)])
@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_the_tables_tuned_for_other_devices_are_the_plain_one(name, platform):
    case = built(name, "float32")
    devices = [mock.Mock(spec=jax.Device, platform=platform)]
    fast = dataclasses.replace(case, net=case.net.clone(layers=tuned(table(name), devices)))
    case.close(fast.logits, case.logits, 1e-6)
    case.close(fast.gradients, case.gradients, 1e-5)


@pytest.mark.parametrize("name", ["paper", pytest.param("whole original", marks=pytest.mark.slow)])
@pytest.mark.parametrize("convolution", ["XLA", "oneDNN"])
def test_the_tuned_table_is_the_plain_one(name, convolution):
    case = built(name, "float32")
    logits, gradients = case.logits, case.gradients
    with without_compilation_cache() if convolution == "oneDNN" else contextlib.nullcontext():
        if convolution == "oneDNN" and onednn.missing():
            pytest.skip(onednn.missing())
        fast = dataclasses.replace(case, net=case.net.clone(layers=tuned(table(name), DEVICES)))
        program = compiled(fast.forward).lower(case.params, case.images).as_text()
        assert ("onednn" in program) == (convolution == "oneDNN")
        case.close(fast.logits, logits, 1e-6)
        case.close(fast.gradients, gradients, 1e-5)
