import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from alexnet_jax.config import PRESETS, Config
from alexnet_jax.paper import optim


def run(optimizer, params, gradients, errors=()):
    """The parameters after each step, as float64 NumPy. errors: of an evaluation after each step."""
    params = jax.tree.map(lambda w: jnp.array(w, jnp.float32), params)
    state, history = optimizer.init(params), []
    update = jax.jit(optimizer.update)
    for number, gradient in enumerate(gradients):
        gradient = jax.tree.map(lambda g: jnp.array(g, jnp.float32), gradient)
        updates, state = update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        history.append(jax.tree.map(np.float64, params))
        if errors:
            state = optim.plateau_after(state, errors[number])
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
    history = run(optim.papers_rule(optim.step_schedule(0.01, [3, 5])), params, gradients)
    for name in ("conv1/kernel", "conv1/bias"):  # decay on both: the paper makes no exception
        follows(history, params, gradients, name, [0.01, 0.01, 0.01, 0.001, 0.001, 0.0001])


def test_it_differs_from_the_usual_heavy_ball_where_the_rate_drops():
    params, gradient = {"fc1": {"kernel": np.ones(1)}}, {"fc1": {"kernel": np.ones(1)}}
    schedule = optim.step_schedule(0.1, [1])
    ours = run(optim.papers_rule(schedule, weight_decay=0.0), params, [gradient] * 2)
    usual = run(optax.sgd(schedule, momentum=0.9), params, [gradient] * 2)
    moves = [(history[1]["fc1"]["kernel"] - history[0]["fc1"]["kernel"]).item() for history in (ours, usual)]
    np.testing.assert_allclose(moves, [-(0.9 * 0.1 + 0.01), -0.01 * 1.9], rtol=1e-5)


def test_its_constants_are_arguments():
    params, gradients = tensors(3, "fc1/kernel")
    history = run(optim.papers_rule(0.01, 0.0, 0.3), params, gradients)
    w = params["fc1"]["kernel"]
    for step, gradient in zip(history, gradients, strict=True):
        w = w - 0.01 * (0.3 * w + gradient["fc1"]["kernel"])  # without momentum
        np.testing.assert_allclose(step["fc1"]["kernel"], w, rtol=1e-5, atol=1e-6)


def test_parameters_have_rates_of_their_own():
    rules = {
        "kernel": optim.papers_rule(0.01),
        "bias": optim.papers_rule(0.02, weight_decay=0.0),
        "conv1/kernel": optim.papers_rule(optim.step_schedule(0.01, [2], freeze=4)),
    }
    names = ("conv1/kernel", "conv1/bias", "conv2/kernel", "conv2/bias")
    params, gradients = tensors(6, *names)
    history = run(optim.by_parameter(rules), params, gradients)
    follows(history, params, gradients, "conv2/kernel", [0.01] * 6)
    follows(history, params, gradients, "conv1/bias", [0.02] * 6, decay=0)
    follows(history, params, gradients, "conv2/bias", [0.02] * 6, decay=0)
    first = {"conv1": {"kernel": params["conv1"]["kernel"]}}
    follows(history[:4], first, gradients[:4], "conv1/kernel", [0.01, 0.01, 0.001, 0.001])
    for step in history[4:]:  # frozen: its velocity does not carry it on either
        np.testing.assert_array_equal(step["conv1"]["kernel"], history[3]["conv1"]["kernel"])


def test_parameters_have_decays_of_their_own():
    rules = {
        "kernel": optim.papers_rule(0.01, weight_decay=0.0),
        "bias": optim.papers_rule(0.02, weight_decay=0.0),
        "fc2/kernel": optim.papers_rule(0.01, weight_decay=3.0),
    }
    names = ("conv1/kernel", "conv1/bias", "fc2/kernel", "fc2/bias")
    params, gradients = tensors(4, *names)
    history = run(optim.by_parameter(rules), params, gradients)
    for name in names:
        rate = 0.02 if name.endswith("bias") else 0.01
        follows(history, params, gradients, name, [rate] * 4, decay=3.0 if name == "fc2/kernel" else 0)


def test_every_parameter_may_be_named():
    params, gradients = tensors(2, "fc1/kernel", "fc1/bias")
    rules = {"fc1/kernel": optim.papers_rule(0.01), "fc1/bias": optim.papers_rule(0.02)}
    history = run(optim.by_parameter(rules), params, gradients)
    follows(history, params, gradients, "fc1/kernel", [0.01] * 2)
    follows(history, params, gradients, "fc1/bias", [0.02] * 2)
    rules = {name: optim.papers_rule(0.01, weight_decay=of) for name, of in (("fc1/kernel", 0.1), ("fc1/bias", 0.2))}
    history = run(optim.by_parameter(rules), params, gradients)
    follows(history, params, gradients, "fc1/kernel", [0.01] * 2, decay=0.1)
    follows(history, params, gradients, "fc1/bias", [0.01] * 2, decay=0.2)


def test_rules_of_other_kinds_may_be_mixed():
    params, gradients = tensors(3, "fc1/kernel", "fc1/bias")
    history = run(optim.by_parameter({"kernel": optim.papers_rule(0.01), "bias": optax.sgd(0.5)}), params, gradients)
    follows(history, params, gradients, "fc1/kernel", [0.01] * 3)
    moved = params["fc1"]["bias"] - 0.5 * np.cumsum([gradient["fc1"]["bias"] for gradient in gradients], axis=0)
    np.testing.assert_allclose([step["fc1"]["bias"] for step in history], moved, rtol=1e-5, atol=1e-6)


def test_a_plateau_multiplies_every_rate_inside_the_velocity():
    params, gradients = tensors(4, "conv1/kernel", "conv1/bias")
    rules = {"kernel": optim.papers_rule(0.01, patience=1), "bias": optim.papers_rule(0.02, patience=1)}
    history = run(optim.by_parameter(rules), params, gradients, errors=[0.5, 0.5, 0.6, 0.4])
    scales = [1, 1, 0.1, 0.01]  # from the step after the evaluation on
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
    params = {"fc1": {"kernel": jnp.ones(2)}}
    state, seen = optim.with_plateau(optax.adam(0.1), patience=3).init(params), []
    assert optim.plateaus(state)[0].scale == 1
    for error in errors:
        state = optim.plateau_after(state, error)
        seen.append(float(optim.plateaus(state)[0].scale))
    np.testing.assert_allclose(seen, scales, rtol=1e-5)


@jax.numpy_dtype_promotion("standard")  # which optax's Adam needs
def test_any_rule_can_be_wrapped_and_only_its_updates_shrink():
    params, gradients = jax.tree.map(jnp.float32, tensors(4, "fc1/kernel", "fc1/bias"))
    plain, wrapped = optax.adamw(0.1), optim.with_plateau(optax.adamw(0.1), patience=1)
    states, scales = [plain.init(params), wrapped.init(params)], [1, 1, 0.1, 0.01]
    for gradient, scale in zip(gradients, scales, strict=True):
        expected, states[0] = plain.update(gradient, states[0], params)
        found, states[1] = wrapped.update(gradient, states[1], params)
        for kind in ("kernel", "bias"):
            np.testing.assert_allclose(found["fc1"][kind], scale * expected["fc1"][kind], rtol=1e-6)
        states[1] = optim.plateau_after(states[1], 0.5)


def test_a_wrapped_rule_is_given_the_loss():
    def update(updates, state, params=None, *, value, **others):
        return jax.tree.map(lambda update: value * update, updates), state

    scaled_by_loss = optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)
    wrapped = optim.with_plateau(scaled_by_loss, patience=2)
    params = {"kernel": jnp.ones(2)}
    updates, _ = wrapped.update(params, wrapped.init(params), params, value=jnp.float32(7))
    np.testing.assert_array_equal(updates["kernel"], [7, 7])


def test_every_plateau_in_a_rule_sees_the_errors_each_with_its_own_patience():
    rule = optax.chain(
        optax.clip(1.0), optim.with_plateau(optax.adam(0.1), patience=2), optim.with_plateau(optax.trace(0.9), 3)
    )
    state = rule.init({"kernel": jnp.ones(2)})
    seen = []
    for _ in range(4):
        state = optim.plateau_after(state, 0.5)
        seen.append([float(of.scale) for of in optim.plateaus(state)])
    np.testing.assert_allclose(seen, [[1, 1], [1, 1], [0.1, 1], [0.1, 0.1]], rtol=1e-5)
    assert optim.plateaus(optax.adam(0.1).init({"kernel": jnp.ones(2)})) == []


def test_the_configured_rule_has_the_configs_rates_decays_and_momentum():
    names = ("conv1/kernel", "conv1/bias", "fc2/kernel", "fc2/bias")
    params, gradients = tensors(6, *names)
    config = dataclasses.replace(
        PRESETS["original"], learning_rate_drops=(2.0,), conv1_learning_rate_drops=(1.0,), conv1_frozen_from=2.0
    )
    history = run(optim.configured_rule(config, steps_per_epoch=2), params, gradients)
    follows(history, params, gradients, "fc2/kernel", [0.01] * 4 + [0.001] * 2)
    follows(history, params, gradients, "fc2/bias", [0.02] * 6, decay=0)
    follows(history[:4], params, gradients[:4], "conv1/kernel", [0.01] * 2 + [0.001] * 2)
    follows(history[:4], params, gradients[:4], "conv1/bias", [0.02] * 4, decay=0)
    for step in history[4:]:
        jax.tree.map(np.testing.assert_array_equal, step["conv1"], history[3]["conv1"])


def test_what_is_taken_over_learns_more_slowly_or_not_at_all():
    names = ("conv1/kernel", "conv2/kernel", "conv2/bias", "fc3/kernel")
    params, gradients = tensors(5, *names)
    config = Config(frozen_layers=("conv1",), taken_rate_scale=0.25, plateau_patience=1)
    optimizer = optim.configured_rule(config, steps_per_epoch=2, taken=("conv1/kernel", "conv2/kernel", "conv2/bias"))
    history = run(optimizer, params, gradients, errors=[0.5] * 5)
    rates = np.array([0.01, 0.01, 0.001, 0.0001, 0.00001])
    follows(history, params, gradients, "conv2/kernel", 0.25 * rates)
    follows(history, params, gradients, "conv2/bias", rates)
    follows(history, params, gradients, "fc3/kernel", rates)
    for step in history:
        np.testing.assert_array_equal(step["conv1"]["kernel"], np.float32(params["conv1"]["kernel"]))


def lars_oracle(w, gradients, rates, denominator, trust=0.001, decay=0.0005):
    """Algorithm 1 of You et al. in float64: v ← 0.9·v + ε·η·‖w‖ / denominator · (g + d·w); w ← w - v."""
    v, history = np.zeros_like(w), []
    for rate, g in zip(rates, gradients, strict=True):
        v = 0.9 * v + rate * trust * np.linalg.norm(w) / denominator(g, decay * w) * (g + decay * w)
        w = w - v
        history.append(w)
    return history


def test_lars_gives_each_parameter_a_rate_in_units_of_its_norm():
    params, gradients = tensors(4, "fc1/kernel", "fc2/kernel")
    history = run(optim.lars_rule(optim.step_schedule(10.0, [2])), params, gradients)
    for layer in ("fc1", "fc2"):
        w, of_layer = params[layer]["kernel"], [gradient[layer]["kernel"] for gradient in gradients]
        expected = lars_oracle(w, of_layer, [10, 10, 1, 1], lambda g, decayed: np.linalg.norm(g + decayed))
        np.testing.assert_allclose([step[layer]["kernel"] for step in history], expected, rtol=1e-5)
    assert not np.allclose(history[0]["fc1"]["kernel"], oracle(params["fc1"]["kernel"], [of_layer[0]], [10])[0])


def test_lars_is_the_authors_own_formula_where_gradient_and_weights_are_parallel():
    w = np.random.default_rng(0).standard_normal(4)
    history = run(optim.lars_rule(10.0, weight_decay=0.5), {"fc1": {"kernel": w}}, [{"fc1": {"kernel": 3 * w}}])
    norm = np.linalg.norm
    of_authors = lars_oracle(w, [3 * w], [10], lambda g, decayed: norm(g) + norm(decayed), decay=0.5)
    np.testing.assert_allclose(history[0]["fc1"]["kernel"], of_authors[0], rtol=1e-5)


def test_with_a_trust_coefficient_the_weights_follow_lars_and_the_biases_the_papers_rule():
    params, gradients = tensors(3, "conv1/kernel", "conv1/bias", "fc2/kernel")
    config = Config(learning_rate=2.0, trust_coefficient=0.01, bias_learning_rate=0.02, plateau_patience=1)
    history = run(optim.configured_rule(config, steps_per_epoch=2), params, gradients, errors=[0.5] * 3)
    follows(history, params, gradients, "conv1/bias", [0.02, 0.02, 0.002])
    for layer in ("conv1", "fc2"):
        w, of_layer = params[layer]["kernel"], [gradient[layer]["kernel"] for gradient in gradients]
        expected = lars_oracle(w, of_layer, [2, 2, 0.2], lambda g, decayed: np.linalg.norm(g + decayed), trust=0.01)
        np.testing.assert_allclose([step[layer]["kernel"] for step in history], expected, rtol=1e-5)


def test_rates_rise_from_zero_and_fall_by_the_divisor():
    config = Config(learning_rate_drops=(2.0,), learning_rate_divisor=4.0, warmup_epochs=0.5, bias_learning_rate=0.04)
    rates = optim.learning_rates(config, steps_per_epoch=8)
    expected = [0.25, 0.5, 0.75, 1, 1, 1, 0.25]
    np.testing.assert_allclose(values(rates["kernel"], [0, 1, 2, 3, 4, 15, 16]), 0.01 * np.array(expected), rtol=1e-5)
    np.testing.assert_allclose(values(rates["bias"], [0, 3, 16]), 0.04 * np.array([0.25, 1, 1]), rtol=1e-5)


def test_the_rate_of_one_weird_trick_falls_to_a_250th():
    rates = optim.learning_rates(PRESETS["one_weird_trick"], steps_per_epoch=2)["kernel"]
    expected = 0.08 * 250 ** -np.array([0, 0, 1 / 3, 2 / 3, 1, 1])
    np.testing.assert_allclose(values(rates, [0, 44, 45, 90, 135, 179]), expected, rtol=1e-5)
