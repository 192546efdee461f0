import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from alexnet_jax.config import PRESETS, Config
from alexnet_jax.paper import optim


def run(optimizer, params, gradients, **scales):
    """The parameters after each step, as float64 NumPy."""
    params = jax.tree.map(lambda w: jnp.array(w, jnp.float32), params)
    state, history = optimizer.init(params), []
    update = jax.jit(optimizer.update)
    for number, gradient in enumerate(gradients):
        gradient = jax.tree.map(lambda g: jnp.array(g, jnp.float32), gradient)
        updates, state = update(gradient, state, params, **{name: values[number] for name, values in scales.items()})
        params = optax.apply_updates(params, updates)
        history.append(jax.tree.map(np.float64, params))
    return history


def oracle(w, gradients, rates, decay=0.0005):
    """§5 in float64: v ← 0.9·v - 0.0005·ε·w - ε·g; w ← w + v, the rate inside the velocity."""
    v, history = np.zeros_like(w), []
    for rate, g in zip(rates, gradients, strict=True):
        v = 0.9 * v - decay * rate * w - rate * g
        w = w + v
        history.append(w)
    return history


def tensors(steps, *names, seed=0):
    """Parameters under "conv1/kernel" and so on, and a gradient of the same form for each of the steps."""
    rng = np.random.default_rng(seed)

    def tree():
        out = {}
        for name in names:
            layer, kind = name.split("/")
            out.setdefault(layer, {})[kind] = rng.standard_normal(4)
        return out

    return tree(), [tree() for _ in range(steps)]


def follows(history, params, gradients, name, rates, decay=0.0005):
    layer, kind = name.split("/")
    expected = oracle(params[layer][kind], [gradient[layer][kind] for gradient in gradients], rates, decay)
    np.testing.assert_allclose([step[layer][kind] for step in history], expected, rtol=1e-5, atol=1e-6)


def test_the_papers_rule_over_drops_of_the_rate():
    params, gradients = tensors(6, "conv1/kernel", "conv1/bias")
    history = run(optim.sgd(optim.step_schedule(0.01, [3, 5])), params, gradients)
    for name in ("conv1/kernel", "conv1/bias"):  # decay on both: the paper makes no exception
        follows(history, params, gradients, name, [0.01, 0.01, 0.01, 0.001, 0.001, 0.0001])


def test_it_differs_from_the_usual_heavy_ball_where_the_rate_drops():
    params, gradient = {"fc1": {"kernel": np.ones(1)}}, {"fc1": {"kernel": np.ones(1)}}
    schedule = optim.step_schedule(0.1, [1])
    ours = run(optim.sgd(schedule, weight_decay=0.0), params, [gradient] * 2)
    usual = run(optax.sgd(schedule, momentum=0.9), params, [gradient] * 2)
    moves = [(history[1]["fc1"]["kernel"] - history[0]["fc1"]["kernel"]).item() for history in (ours, usual)]
    np.testing.assert_allclose(moves, [-(0.9 * 0.1 + 0.01), -0.01 * 1.9], rtol=1e-5)


def test_parameters_have_rates_of_their_own():
    rates = {"kernel": 0.01, "bias": 0.02, "conv1/kernel": optim.step_schedule(0.01, [2], freeze=4)}
    names = ("conv1/kernel", "conv1/bias", "conv2/kernel", "conv2/bias")
    params, gradients = tensors(6, *names)
    history = run(optim.sgd(rates, decay_biases=False), params, gradients)
    follows(history, params, gradients, "conv2/kernel", [0.01] * 6)
    follows(history, params, gradients, "conv1/bias", [0.02] * 6, decay=0)
    follows(history, params, gradients, "conv2/bias", [0.02] * 6, decay=0)
    first = {"conv1": {"kernel": params["conv1"]["kernel"]}}
    follows(history[:4], first, gradients[:4], "conv1/kernel", [0.01, 0.01, 0.001, 0.001])
    for step in history[4:]:  # frozen: its velocity does not carry it on either
        np.testing.assert_array_equal(step["conv1"]["kernel"], history[3]["conv1"]["kernel"])


def test_parameters_have_decays_of_their_own():
    decays = {"kernel": 0.0, "bias": 0.0, "fc2/kernel": 3.0}
    names = ("conv1/kernel", "conv1/bias", "fc2/kernel", "fc2/bias")
    params, gradients = tensors(4, *names)
    history = run(optim.sgd({"kernel": 0.01, "bias": 0.02}, weight_decay=decays), params, gradients)
    for name in names:
        rate = 0.02 if name.endswith("bias") else 0.01
        follows(history, params, gradients, name, [rate] * 4, decay=3.0 if name == "fc2/kernel" else 0)


def test_every_parameter_may_be_named():
    params, gradients = tensors(2, "fc1/kernel", "fc1/bias")
    history = run(optim.sgd({"fc1/kernel": 0.01, "fc1/bias": 0.02}), params, gradients)
    follows(history, params, gradients, "fc1/kernel", [0.01] * 2)
    follows(history, params, gradients, "fc1/bias", [0.02] * 2)
    history = run(optim.sgd(0.01, weight_decay={"fc1/kernel": 0.1, "fc1/bias": 0.2}), params, gradients)
    follows(history, params, gradients, "fc1/kernel", [0.01] * 2, decay=0.1)
    follows(history, params, gradients, "fc1/bias", [0.01] * 2, decay=0.2)


def test_rate_scale_multiplies_every_rate():
    params, gradients = tensors(3, "conv1/kernel", "conv1/bias")
    scales = [1.0, 0.1, 0.01]
    history = run(optim.sgd({"kernel": 0.01, "bias": 0.02}), params, gradients, rate_scale=scales)
    follows(history, params, gradients, "conv1/kernel", [0.01 * scale for scale in scales])
    follows(history, params, gradients, "conv1/bias", [0.02 * scale for scale in scales])


def values(schedule, steps):
    return [float(schedule(step)) for step in steps]


def test_the_schedules_of_original_are_those_recorded_for_net_145():
    rates = optim.learning_rates(PRESETS["original"], steps_per_epoch=10)
    before_and_after = [0, 249, 250, 509, 510, 669, 670, 719, 720, 789, 790, 909]  # 25, 51, 67, 72, 79, 91 epochs
    expected = {
        "kernel": [1e-2, 1e-2, 1e-3, 1e-3, 1e-4, 1e-4, 1e-4, 1e-4, 1e-4, 1e-4, 1e-5, 1e-5],
        "conv1/kernel": [1e-2, 1e-2, 1e-3, 1e-3, 1e-4, 1e-4, 1e-5, 1e-5, 0, 0, 0, 0],
        "conv1/bias": [0.02] * 8 + [0] * 4,
        "bias": [0.02] * 12,  # as it ended in net 145's own file
    }
    assert set(rates) == set(expected)
    for name, schedule in rates.items():
        np.testing.assert_allclose(values(schedule, before_and_after), expected[name], rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("freeze", [1, 3, 5])
def test_a_layer_may_be_frozen_before_its_rate_would_drop(freeze):
    schedule = optim.step_schedule(1.0, [4, 2], freeze)
    expected = [rate if step < freeze else 0 for step, rate in enumerate([1, 1, 0.1, 0.1, 0.01, 0.01, 0.01])]
    np.testing.assert_allclose(values(schedule, range(7)), expected, rtol=1e-5)


def test_without_settings_of_their_own_all_parameters_have_one_rate():
    rates = optim.learning_rates(Config(learning_rate_drops=(2.0, 3.0)), steps_per_epoch=7.5)
    for schedule in rates.values():
        np.testing.assert_allclose(values(schedule, [14, 15, 21, 22]), [0.01, 0.001, 0.001, 0.0001], rtol=1e-5)


def test_the_biases_rate_can_drop_too():
    config = dataclasses.replace(PRESETS["original"], bias_learning_rate_drops=(45.0,))
    schedule = optim.learning_rates(config, steps_per_epoch=1)["bias"]
    np.testing.assert_allclose(values(schedule, [44, 45, 90]), [0.02, 0.002, 0.002], rtol=1e-5)


@pytest.mark.parametrize(
    ("errors", "scales"),
    [
        ([0.9, 0.8, 0.8, 0.9, 0.7, 0.7, 0.7], [1, 1, 1, 1, 1, 1, 1]),
        ([0.9, 0.8, 0.8, 0.81, 0.9, 0.7, 0.6], [1, 1, 1, 1, 0.1, 0.1, 0.1]),
        ([0.9] * 14, [1] * 3 + [0.1] * 3 + [0.01] * 3 + [0.001] * 5),  # three times, and no more
    ],
)
def test_the_rate_drops_after_three_evaluations_without_improvement(errors, scales):
    state, seen = optim.plateau_start(), []
    assert state.scale == 1
    for error in errors:
        state = optim.plateau_next(state, error, patience=3)
        seen.append(float(state.scale))
    np.testing.assert_allclose(seen, scales, rtol=1e-5)
