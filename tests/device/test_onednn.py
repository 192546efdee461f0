"""What oneDNN computes, which users of a CPU have by default; the other tests, with a compilation cache, use XLA's."""

import platform
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import without_compilation_cache
from hypothesis import example, given, strategies as st

from alexnet_jax.device import onednn
from alexnet_jax.device.forms import conv2d_of_onednn, dense_of_onednn

sys.path.insert(0, str(Path(__file__).parents[1] / "paper"))
from test_layers import check_gradients, conv2d_gradients, normal

pytestmark = pytest.mark.usefixtures("quickly_compiled")


@pytest.fixture(autouse=True, scope="module")
def has_onednn():
    with without_compilation_cache():
        if reason := onednn.missing():
            assert (platform.system(), platform.machine()) != ("Linux", "x86_64"), reason  # whose jaxlibs all have it
            pytest.skip(reason)
        yield
    assert onednn.missing() == "a compilation cache cannot keep programs that call them"


def program(*arguments, **options):
    return jax.jit(lambda x, kernel: conv2d_of_onednn(x, kernel, **options)).lower(*arguments).as_text()


@given(
    st.integers(1, 4), st.integers(1, 3), st.integers(0, 4), st.integers(0, 4), st.integers(1, 3), st.integers(1, 4),
    st.integers(1, 4), st.integers(0, 5), st.integers(0, 5), st.integers(0, 99),
)  # fmt: skip
@example(5, 1, 2, 2, 2, 24, 16, 8, 8, 0)  # conv2, in small
@example(3, 1, 1, 1, 2, 32, 48, 10, 10, 0)  # conv4
def test_convolution_and_its_gradients(window, stride, low, high, groups, channels, features, more, wider, seed):
    x = normal(seed, 2, window + more, window + wider, groups * channels)
    kernel = normal(seed + 1, window, window, channels, groups * features)
    options = {"stride": stride, "padding": (low, high), "groups": groups}
    assert "onednn" in program(x, kernel, **options)
    check_gradients(lambda x, kernel: conv2d_of_onednn(x, kernel, **options), conv2d_gradients(**options), x, kernel)


@given(st.integers(1, 9), st.integers(1, 40), st.integers(1, 20), st.integers(0, 99))
def test_product_and_its_gradients(n, inputs, features, seed):
    def oracle(g, x, kernel):
        return x @ kernel, g @ kernel.T, x.T @ g

    x, kernel = normal(seed, n, inputs), normal(seed + 1, inputs, features)
    text = jax.jit(jax.value_and_grad(lambda *of: dense_of_onednn(*of).sum(), (0, 1))).lower(x, kernel).as_text()
    assert text.count("__onednn$matmul") == 2
    check_gradients(dense_of_onednn, oracle, x, kernel)


def test_each_of_several_hosts_tries_it_on_a_device_of_its_own(monkeypatch):
    of_all = [object(), *jax.local_devices(backend="cpu")]  # the first one is another host's
    monkeypatch.setattr(jax, "devices", lambda *_: of_all)
    assert onednn._fault.__wrapped__() == ""


def test_other_types_are_given_to_xla():
    for dtype in (jnp.bfloat16, jnp.float16):
        assert "onednn" not in program(jnp.ones((1, 5, 5, 2), dtype), jnp.ones((3, 3, 2, 4), dtype))
        rows = jnp.ones((2, 2), dtype)
        assert "__onednn" not in jax.jit(dense_of_onednn).lower(rows, rows).as_text()


def test_images_one_by_one_and_none():
    x, kernel = jnp.array(normal(0, 4, 2, 7, 7, 6)), jnp.array(normal(1, 3, 3, 6, 5))
    together = conv2d_of_onednn(x.reshape(8, 7, 7, 6), kernel)
    one_by_one = jax.vmap(lambda x: conv2d_of_onednn(x, kernel))(x)
    np.testing.assert_allclose(one_by_one.reshape(together.shape), together, rtol=1e-5, atol=1e-5)
    assert conv2d_of_onednn(x[0, :0], kernel).shape == (0, 5, 5, 5)
    rows, matrix = jnp.array(normal(2, 3, 4, 5)), jnp.array(normal(3, 5, 6))
    np.testing.assert_allclose(
        jax.vmap(lambda x: dense_of_onednn(x, matrix))(rows), np.array(rows) @ matrix, rtol=1e-5, atol=1e-5
    )
    assert dense_of_onednn(rows[0, :0], matrix).shape == (0, 6)


def test_gradients_of_gradients():
    """Along v, of Σ (x ∗ kernel)²: 2 · (v ∗ kernel) transposed, by XLA's convolution."""
    x, v = jnp.array(normal(0, 2, 2, 7, 7, 6))
    kernel = jnp.array(normal(1, 3, 3, 6, 5))

    def along(convolve):
        of_square = jax.grad(lambda x: jnp.sum(convolve(x) ** 2))
        return jax.grad(lambda x: jnp.vdot(of_square(x), v))(x)

    found = along(lambda x: conv2d_of_onednn(x, kernel, padding=(1, 1)))
    expected = along(
        lambda x: jax.lax.conv_general_dilated(
            x, kernel, (1, 1), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
    )
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("breaks", "reason"),
    [
        (lambda out: out + 1e-2, "compute something else"),
        (lambda out: out[:, 1:], "compute something else"),
        (lambda out: jax.ffi.ffi_call("no such thing", out)(), "was built without them"),
    ],
)
@pytest.mark.parametrize("name", ["convolution", "product", "product_with_transposed"])
def test_a_jaxlib_where_it_is_another_is_found_out(monkeypatch, name, breaks, reason):
    right = getattr(onednn, name)
    onednn._fault.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(onednn, name, lambda *given, **options: breaks(right(*given, **options)))
        assert onednn.missing().endswith(reason)
    onednn._fault.cache_clear()
    assert onednn.missing() == ""


def test_it_is_tried_while_a_function_is_traced_too():
    onednn._fault.cache_clear()
    assert jax.jit(lambda x: x if onednn.missing() else 2 * x)(3) == 6
