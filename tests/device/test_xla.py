import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_jax.device import parallel, xla


@pytest.mark.parametrize("values", [[0.0, 1.0], [1.0, 0.0], [np.nan, 1.0], []])
def test_on_its_own_both_branches_are_the_function(values):
    x = jnp.array(values)
    np.testing.assert_array_equal(jax.jit(lambda x: xla.on_its_own(lambda x: 2 * x + 1, x))(x), 2 * x + 1)


def test_on_its_own_is_not_computed_again_in_each_user():
    def of_two_users(keep):
        def function(x):
            y = keep(lambda x: jnp.maximum(x[:, 1:], x[:, :-1]) * 3, x)
            return y[:, :8].T + 1, y[:, 8:].T * 2

        return jax.jit(function).lower(jnp.ones((300, 17))).compile().as_text()

    # Where the maximum is computed: in both users; in each of the two branches, of which one is run.
    assert "conditional(" not in of_two_users(lambda function, x: function(x))
    kept = of_two_users(xla.on_its_own)
    assert "conditional(" in kept
    assert "maximum" not in kept[kept.index("ENTRY") :].split("conditional(")[1]


@pytest.mark.parametrize("several", [False, True])
def test_steps_on_cpu_leave_ynnpack_out(monkeypatch, several):
    """With a product that XLA would give to it: else this test says nothing."""

    def step(state, batch):
        return state @ batch

    matrix = jnp.ones((300, 300))
    if "__ynn_fusion" not in jax.jit(step).lower(matrix, matrix).compile().as_text():
        pytest.skip("this jaxlib leaves YNNPACK out by itself")
    monkeypatch.setattr(parallel, "several_hosts", lambda: several)
    devices = jax.devices()[:1]
    compiled = parallel.pmap_step(step, devices).lower(matrix, parallel.shard(np.ones((1, 300, 300)), devices))
    assert "__ynn_fusion" not in compiled.compile().as_text()
