import jax.numpy as jnp
import numpy as np
import optax

from alexnet_jax import optim


def test_the_papers_rule_over_a_drop_of_the_rate():
    """§5 in float64: v ← 0.9·v - 0.0005·ε·w - ε·g; w ← w + v, the rate inside the velocity."""
    rng = np.random.default_rng(0)
    w, gradients = rng.standard_normal(5), rng.standard_normal((6, 5))  # four of a kernel, one bias: decay on both
    rates = [0.01, 0.01, 0.01, 0.001, 0.001, 0.0001]
    optimizer = optim.sgd(optim.step_schedule(0.01, [3, 5]), momentum=0.9, weight_decay=0.0005)

    def tree(values):
        return {"kernel": jnp.array(values[:4], jnp.float32), "bias": jnp.array(values[4:], jnp.float32)}

    def vector(tree):
        return np.concatenate([tree["kernel"], tree["bias"]])

    params = tree(w)
    state = optimizer.init(params)
    v = np.zeros(5)
    for rate, g in zip(rates, gradients, strict=True):
        v = 0.9 * v - 0.0005 * rate * w - rate * g
        w = w + v
        updates, state = optimizer.update(tree(g), state, params)
        params = optax.apply_updates(params, updates)
        np.testing.assert_allclose(vector(updates), v, rtol=1e-5)
        np.testing.assert_allclose(vector(params), w, rtol=1e-6)


def test_it_differs_from_the_usual_heavy_ball_where_the_rate_drops():
    params, gradient = {"w": jnp.ones(1)}, {"w": jnp.ones(1)}
    schedule = optim.step_schedule(0.1, [1])
    ours, usual = optim.sgd(schedule, weight_decay=0.0), optax.sgd(schedule, momentum=0.9)
    moves = []
    for optimizer in (ours, usual):
        state = optimizer.init(params)
        _, state = optimizer.update(gradient, state, params)
        moves.append(optimizer.update(gradient, state, params)[0]["w"].item())
    np.testing.assert_allclose(moves, [-(0.9 * 0.1 + 0.01), -0.01 * 1.9], rtol=1e-6)
