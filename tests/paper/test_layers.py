"""Each operation against NumPy, float64, written from the formula: the formulas, and their fast forms on a CPU."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, strategies as st

from alexnet_jax.device import accelerator_forms, forms as cpu_forms
from alexnet_jax.paper import layers

pytestmark = pytest.mark.usefixtures("quickly_compiled")

# oneDNN's convolution is a third form: tests/device/test_onednn.py.
# Those of GPUs and TPUs are computed on the CPU here.
FORMS = {
    "formulas": layers,
    "cpu": cpu_forms,
    "gpu": types.SimpleNamespace(
        add_bias=accelerator_forms.add_narrow_bias, relu=accelerator_forms.relu,
        max_pool=accelerator_forms.max_pool_of_gpu,
        local_response_norm=accelerator_forms.local_response_norm_of_gpu,
    ),
    "tpu": types.SimpleNamespace(local_response_norm=accelerator_forms.local_response_norm_of_tpu),
}  # fmt: skip


def all_forms(*names):
    return pytest.mark.parametrize("forms", [FORMS[name] for name in ("formulas", *names)], ids=["formulas", *names])


of_two, of_three, of_four = all_forms("cpu"), all_forms("cpu", "gpu"), all_forms("cpu", "gpu", "tpu")


def normal(seed, *shape, scale=1.0):
    return (scale * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


def conv2d_oracle(x, kernel, stride, padding, groups):
    x = np.pad(x.astype(np.float64), ((0, 0), padding, padding, (0, 0)))
    window, _, per_group, features = kernel.shape
    rows, columns = ((size - window) // stride + 1 for size in x.shape[1:3])
    out = np.zeros((len(x), rows, columns, features))
    for feature in range(features):
        first = feature // (features // groups) * per_group
        for i in range(rows):
            for j in range(columns):
                patch = x[:, i * stride : i * stride + window, j * stride : j * stride + window]
                out[:, i, j, feature] = np.sum(patch[..., first : first + per_group] * kernel[..., feature], (1, 2, 3))
    return out


@of_two
@pytest.mark.parametrize(
    ("stride", "padding", "groups"), [(1, (0, 0), 1), (4, (0, 3), 1), (1, (2, 2), 2), (2, (1, 0), 4)]
)
def test_conv2d(forms, stride, padding, groups):
    x, kernel = normal(0, 2, 9, 11, 8), normal(1, 3, 3, 8 // groups, 12)
    out = forms.conv2d(jnp.array(x), jnp.array(kernel), stride=stride, padding=padding, groups=groups)
    np.testing.assert_allclose(out, conv2d_oracle(x, kernel, stride, padding, groups), rtol=1e-5, atol=1e-5)


def lrn_oracle(x, size, k, alpha, beta, groups):
    x = x.astype(np.float64)
    out = np.zeros_like(x)
    width = x.shape[-1] // groups
    for i in range(x.shape[-1]):
        group = i // width
        low, high = max(group * width, i - size // 2), min((group + 1) * width - 1, i + size // 2)
        out[..., i] = x[..., i] / (k + alpha * np.sum(x[..., low : high + 1] ** 2, axis=-1)) ** beta
    return out


@of_four
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("alpha", [1e-4, 1e-4 / 5])  # as the paper has it; as the 2012 code has it
@pytest.mark.parametrize("scale", [0.01, 1.0, 300.0])
def test_local_response_norm(forms, groups, alpha, scale):
    x = normal(0, 2, 3, 3, 12, scale=scale)
    constants = {"size": 5, "k": 2.0, "alpha": alpha, "beta": 0.75, "groups": groups}
    out = forms.local_response_norm(jnp.array(x), **constants)
    np.testing.assert_allclose(out, lrn_oracle(x, **constants), rtol=1e-5, atol=1e-7 * scale)


def numeric_gradient(function, x, weights):
    """Of Σ weights · function(x), by central differences."""
    gradient = np.zeros(x.shape)
    for index in np.ndindex(x.shape):
        step = np.zeros(x.shape)
        step[index] = 1e-3
        gradient[index] = np.sum(weights * (function(x + step) - function(x - step))) / 2e-3
    return gradient


@of_four
def test_local_response_norm_gradient(forms):
    x, weights = normal(0, 2, 12, scale=100), normal(1, 2, 12)
    constants = {"size": 5, "k": 2.0, "alpha": 1e-4, "beta": 0.75, "groups": 2}
    gradient = jax.grad(lambda x: jnp.sum(weights * forms.local_response_norm(x, **constants)))(jnp.array(x))
    expected = numeric_gradient(lambda x: lrn_oracle(x, **constants), x, weights)
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-5)


SRN = {"size": 5, "alpha": 4e-5, "beta": 0.75}  # of 2012: 0.001 over 25


def srn_oracle(x, size, alpha, beta):
    x, reach = x.astype(np.float64), size // 2
    out = np.zeros_like(x)
    for i in range(x.shape[1]):
        for j in range(x.shape[2]):
            window = x[:, max(0, i - reach) : i + reach + 1, max(0, j - reach) : j + reach + 1]
            out[:, i, j] = x[:, i, j] / (1 + alpha * np.sum(window**2, axis=(1, 2))) ** beta
    return out


@pytest.mark.parametrize("scale", [0.01, 1.0, 300.0])
def test_spatial_response_norm(scale):
    x = normal(0, 2, 7, 9, 3, scale=scale)
    out = layers.spatial_response_norm(jnp.array(x), **SRN)
    np.testing.assert_allclose(out, srn_oracle(x, **SRN), rtol=1e-5, atol=1e-7 * scale)


def test_spatial_response_norm_gradient():
    x, weights = normal(0, 1, 6, 5, 2, scale=100), normal(1, 1, 6, 5, 2)
    gradient = jax.grad(lambda x: jnp.sum(weights * layers.spatial_response_norm(x, **SRN)))(jnp.array(x))
    expected = numeric_gradient(lambda x: srn_oracle(x, **SRN), x, weights)
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-5)


@of_three
@pytest.mark.parametrize(("window", "stride", "height", "width"), [(3, 2, 13, 27), (3, 2, 14, 8), (2, 2, 9, 8)])
def test_max_pool(forms, window, stride, height, width):
    x = normal(0, 2, height, width, 3)
    rows, columns = (height - window) // stride + 1, (width - window) // stride + 1
    out = forms.max_pool(jnp.array(x), window=window, stride=stride)
    assert out.shape == (2, rows, columns, 3)
    for i in range(rows):
        for j in range(columns):
            patch = x[:, i * stride : i * stride + window, j * stride : j * stride + window]
            np.testing.assert_array_equal(out[:, i, j], patch.max((1, 2)))


@of_three
@pytest.mark.parametrize(
    ("window", "stride", "length", "outputs"),
    [(2, 2, 55, 28), (2, 2, 11, 6), (3, 2, 32, 16), (3, 2, 13, 6), (2, 4, 7, 2), (2, 4, 8, 2)],
)
def test_max_pool_in_ceil_mode_clips_the_last_window(forms, window, stride, length, outputs):
    x = normal(0, 2, length, length + stride, 3) - 10  # all negative: padding by zeros would show
    out = forms.max_pool(jnp.array(x), window=window, stride=stride, ceil_mode=True)
    assert out.shape == (2, outputs, outputs + 1, 3)
    for i in range(outputs):
        for j in range(outputs + 1):
            patch = x[:, i * stride : i * stride + window, j * stride : j * stride + window]  # clipped by NumPy
            np.testing.assert_array_equal(out[:, i, j], patch.max((1, 2)))


@of_three
def test_max_pool_gradient_goes_to_the_maximum(forms):
    x = jnp.array(np.random.default_rng(0).permutation(25).reshape(1, 5, 5, 1), jnp.float32)
    gradient = jax.grad(lambda x: jnp.sum(forms.max_pool(x, window=3, stride=2)))(x)
    expected = np.zeros((5, 5))
    for i in (0, 2):
        for j in (0, 2):
            patch = x[0, i : i + 3, j : j + 3, 0]
            row, column = np.unravel_index(np.argmax(patch), (3, 3))
            expected[i + row, j + column] += 1
    np.testing.assert_array_equal(gradient[0, :, :, 0], expected)


def test_dropout_zeros_without_rescaling_and_halves_at_test():
    x = jnp.full((64, 500), 3.0)
    train = layers.dropout(x, jax.random.key(0), rate=0.5)
    assert set(np.unique(train)) == {0.0, 3.0}
    assert np.mean(train == 0) == pytest.approx(0.5, abs=0.01)
    np.testing.assert_array_equal(layers.dropout(x, None, rate=0.25), np.full((64, 500), 2.25))
    assert np.mean(layers.dropout(x, jax.random.key(0), rate=0.25) == 0) == pytest.approx(0.25, abs=0.01)


def test_inverted_dropout_rescales_in_training_and_keeps_at_test():
    x = jnp.full((64, 500), 3.0)
    train = layers.dropout(x, jax.random.key(0), rate=0.25, inverted=True)
    assert set(np.unique(train)) == {0.0, 4.0}
    assert np.mean(train) == pytest.approx(3.0, abs=0.03)
    np.testing.assert_array_equal(layers.dropout(x, None, inverted=True), x)


@of_two
def test_what_no_window_fits_is_refused(forms):
    with pytest.raises(ValueError, match="2×9 is smaller than a pooling window of 3"):
        forms.max_pool(jnp.zeros((1, 2, 9, 1)), window=3, stride=2)
    with pytest.raises(ValueError, match="2×9 is smaller than a pooling window of 3"):
        layers.average_pool(jnp.zeros((1, 2, 9, 1)), window=3, stride=2)
    with pytest.raises(ValueError, match="4×11, padded, is smaller than a window of 5"):
        forms.conv2d(jnp.zeros((1, 2, 9, 1)), jnp.zeros((5, 5, 1, 1)), padding=(0, 2))


@of_two
@pytest.mark.parametrize(("shape", "groups"), [((3, 3, 4, 6), 1), ((3, 3, 8, 6), 2), ((3, 3, 4, 7), 2)])
def test_a_kernel_that_does_not_fit_is_refused(forms, shape, groups):
    with pytest.raises(ValueError, match=rf"{shape[2]}, {shape[3]}\) does not fit 8 channels in {groups} groups"):
        forms.conv2d(jnp.zeros((1, 9, 9, 8)), jnp.zeros(shape), groups=groups)


def test_dropout_differs_by_image_and_not_by_how_the_batch_is_cut():
    x, keys = jnp.ones((4, 100)), jax.random.split(jax.random.key(0), 4)
    whole = layers.dropout(x, keys)
    assert not np.array_equal(whole[0], whole[1])
    np.testing.assert_array_equal(whole[2:], layers.dropout(x[2:], keys[2:]))


# On shapes and values that nobody chose, with their gradients, against float64 written from the formula.


def check_gradients(function, oracle, *arguments):
    """Of Σ w · function(…): to 1e-5 of the largest, or of what it would be if all signs were the same, since sums may
    cancel. `oracle(w, …)` gives the output and the gradients.

    The output to 2e-6: d ** β of d up to 2 ** 83 is 2 ** (β · 83), of which float32 rounds the exponent by 2e-6.
    """

    @jax.jit  # one compilation an example
    def output_and_gradients(weights, *arguments):
        out, pullback = jax.vjp(function, *arguments)
        return out, pullback(weights)

    weights = normal(9, *jax.eval_shape(function, *arguments).shape)
    out, found = output_and_gradients(weights, *arguments)
    wide = [of.astype(np.float64) for of in (weights, *arguments)]
    expected, sizes = oracle(*wide), oracle(*map(np.abs, wide))
    for one, right, size, tolerance in zip((out, *found), expected, sizes, [2e-6] + [1e-5] * len(found), strict=True):
        assert one.shape == right.shape
        largest = max(np.abs(right).max(), np.abs(size).max())
        np.testing.assert_array_less(np.abs(one - right), tolerance * largest + 1e-30)


def lrn_gradients(size, k, alpha, beta, groups):
    def oracle(g, a):
        width = a.shape[-1] // groups
        near = np.array(
            [
                [abs(i - j) <= size // 2 and i // width == j // width for j in range(a.shape[-1])]
                for i in range(a.shape[-1])
            ]
        )
        d = k + alpha * a**2 @ near
        return a / d**beta, g / d**beta - 2 * alpha * beta * a * ((g * a / d ** (beta + 1)) @ near)

    return oracle


@of_four
@given(
    st.integers(1, 3), st.integers(1, 9), st.sampled_from([1, 3, 5, 7]), st.sampled_from([0.75, 0.6, 1.0]),
    st.sampled_from([1.0, 2.0]), st.integers(-18, 15), st.integers(0, 99),
)  # fmt: skip
def test_normalization_and_its_gradient(forms, groups, width, size, beta, k, magnitude, seed):
    a = normal(seed, 3, 2, groups * width, scale=10.0**magnitude)
    constants = {"size": size, "k": k, "alpha": 1e-4, "beta": beta, "groups": groups}
    check_gradients(lambda a: forms.local_response_norm(a, **constants), lrn_gradients(**constants), a)


def max_pool_gradients(window, stride, ceil_mode):
    def oracle(g, x):
        out, gradient = np.zeros(g.shape), np.zeros(x.shape)
        for n, i, j, c in np.ndindex(g.shape):
            patch = x[n, i * stride : i * stride + window, j * stride : j * stride + window, c]
            row, column = np.unravel_index(np.argmax(patch), patch.shape)  # the first, row by row, as PyTorch's
            out[n, i, j, c] = patch[row, column]
            gradient[n, i * stride + row, j * stride + column, c] += g[n, i, j, c]
        return out, gradient

    return oracle


@of_three
@given(
    st.integers(1, 4), st.integers(1, 4), st.integers(0, 7), st.integers(0, 7), st.booleans(), st.integers(1, 5),
    st.integers(0, 99),
)  # fmt: skip
def test_max_pool_and_its_gradient_where_many_are_the_largest(forms, window, stride, more, wider, ceil, values, seed):
    x = np.random.default_rng(seed).integers(-values, values, (2, window + more, window + wider, 3))
    options = {"window": window, "stride": stride, "ceil_mode": ceil}
    check_gradients(lambda x: forms.max_pool(x, **options), max_pool_gradients(**options), x.astype(np.float32))


@pytest.mark.parametrize(
    ("window", "stride", "size", "outputs"),
    [(3, 2, (8, 13), (4, 6)), (3, 2, (7, 16), (3, 8)), (2, 4, (7, 8), (2, 2)), (2, 2, (4, 5), (2, 3))],
)
def test_average_pool_takes_the_mean_of_what_lies_inside(window, stride, size, outputs):
    def oracle(g, x):
        assert g.shape == (2, *outputs, 3)
        out, gradient = np.zeros(g.shape), np.zeros(x.shape)
        for i, j in np.ndindex(*outputs):
            place = np.s_[:, i * stride : i * stride + window, j * stride : j * stride + window]
            inside = x[place].shape[1] * x[place].shape[2]
            out[:, i, j] = x[place].mean((1, 2))
            gradient[place] += g[:, i : i + 1, j : j + 1] / inside
        return out, gradient

    x = normal(0, 2, *size, 3)
    check_gradients(lambda x: layers.average_pool(x, window=window, stride=stride), oracle, x)


@given(
    st.integers(1, 3), st.integers(0, 2), st.integers(1, 4), st.integers(1, 4), st.integers(1, 3), st.integers(1, 3),
    st.integers(0, 99),
)  # fmt: skip
def test_locally_connected_and_its_gradients(window, padding, rows, columns, channels, features, seed):
    def oracle(g, x, kernel):
        padded = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
        out, of_x, of_kernel = np.zeros(g.shape), 0 * padded, 0 * kernel
        for n, i, j, feature in np.ndindex(g.shape):
            place = np.s_[n, i : i + window, j : j + window]
            out[n, i, j, feature] = np.sum(padded[place] * kernel[i, j, ..., feature])
            of_x[place] += g[n, i, j, feature] * kernel[i, j, ..., feature]
            of_kernel[i, j, ..., feature] += g[n, i, j, feature] * padded[place]
        height, width = x.shape[1:3]
        return out, of_x[:, padding : padding + height, padding : padding + width], of_kernel

    height, width = (length + window - 1 - 2 * padding for length in (rows, columns))
    if min(height, width) < 1:
        return
    x = normal(seed, 2, height, width, channels)
    kernel = normal(seed + 1, rows, columns, window, window, channels, features)
    check_gradients(lambda x, kernel: layers.locally_connected(x, kernel, padding=padding), oracle, x, kernel)


@all_forms("gpu")
@given(st.integers(1, 9), st.integers(0, 99))
def test_relu_and_its_gradient(forms, n, seed):
    x = np.round(normal(seed, n, 7))  # many zeros

    def oracle(g, x):
        return np.maximum(x, 0), np.where(x > 0, g, 0)

    check_gradients(forms.relu, oracle, x)


@of_two
@given(st.integers(1, 9), st.integers(1, 65), st.integers(1, 65), st.integers(0, 99))
def test_dense_and_its_gradients(forms, n, inputs, features, seed):
    def oracle(g, x, kernel):
        return x @ kernel, g @ kernel.T, x.T @ g

    check_gradients(forms.dense, oracle, normal(seed, n, inputs), normal(seed + 1, inputs, features))


@of_three
@given(st.integers(1, 70), st.integers(0, 2), st.integers(1, 33), st.integers(1, 9), st.integers(0, 99))
def test_bias_and_its_gradient(forms, n, axes, length, features, seed):
    def oracle(g, x, bias):
        return x + bias, g, g.reshape(-1, features).sum(0)

    x = normal(seed, n, *[length] * axes, features)
    check_gradients(forms.add_bias, oracle, x, normal(seed + 1, features))


@of_three
def test_a_bias_of_each_place_and_its_gradient(forms):
    def oracle(g, x, bias):
        return x + bias, g, g.sum(0)

    check_gradients(forms.add_bias, oracle, normal(0, 5, 3, 2, 4), normal(1, 3, 2, 4))


@of_three
def test_the_gradient_of_a_bfloat16_bias_is_summed_in_float32(forms):
    gradient = jax.vjp(forms.add_bias, jnp.zeros((300, 9, 2), jnp.bfloat16), jnp.zeros(2, jnp.bfloat16))[1]
    np.testing.assert_array_equal(gradient(jnp.ones((300, 9, 2), jnp.bfloat16))[1], jnp.full(2, 2700, jnp.bfloat16))


def conv2d_gradients(stride, padding, groups):
    def oracle(g, x, kernel):
        padded = np.pad(x, ((0, 0), padding, padding, (0, 0)))
        out, of_x, of_kernel = conv2d_oracle(x, kernel, stride, padding, groups), 0 * padded, 0 * kernel
        window, _, per_group, features = kernel.shape
        for n, i, j, feature in np.ndindex(g.shape):
            first = feature // (features // groups) * per_group
            place = (
                n, slice(i * stride, i * stride + window), slice(j * stride, j * stride + window),
                slice(first, first + per_group),
            )  # fmt: skip
            of_x[place] += g[n, i, j, feature] * kernel[..., feature]
            of_kernel[..., feature] += g[n, i, j, feature] * padded[place]
        low, (height, width) = padding[0], x.shape[1:3]
        return out, of_x[:, low : low + height, low : low + width], of_kernel

    return oracle


@of_two
@given(
    st.integers(1, 4), st.integers(1, 3), st.integers(0, 4), st.integers(0, 4), st.integers(1, 3), st.integers(1, 4),
    st.integers(1, 4), st.integers(0, 5), st.integers(0, 5), st.integers(0, 99),
)  # fmt: skip
def test_convolution_and_its_gradients(forms, window, stride, low, high, groups, channels, features, more, wider, seed):
    x = normal(seed, 2, window + more, window + wider, groups * channels)
    kernel = normal(seed + 1, window, window, channels, groups * features)
    options = {"stride": stride, "padding": (low, high), "groups": groups}
    check_gradients(lambda x, kernel: forms.conv2d(x, kernel, **options), conv2d_gradients(**options), x, kernel)


@of_four
def test_bfloat16_is_normalized_in_float32(forms):
    constants = {"size": 5, "k": 2.0, "alpha": 1e-4, "beta": 0.75, "groups": 1}
    a = jnp.asarray(normal(0, 4, 12, scale=100), jnp.bfloat16)
    out = forms.local_response_norm(a, **constants)
    assert out.dtype == jnp.bfloat16
    expected = forms.local_response_norm(a.astype(jnp.float32), **constants).astype(jnp.bfloat16)
    np.testing.assert_array_equal(out, expected)


@of_four
@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0, 1e4])
def test_the_gradient_of_a_bfloat16_normalization_is_right_to_its_rounding(forms, scale):
    constants = {"size": 5, "k": 2.0, "alpha": 1e-4, "beta": 0.75, "groups": 2}
    a, g = (jnp.asarray(normal(seed, 40, 24, scale=of), jnp.bfloat16) for seed, of in ((0, scale), (1, 1.0)))
    out, back = jax.vjp(lambda a: forms.local_response_norm(a, **constants), a)
    wide = tuple(np.asarray(of.astype(jnp.float32), np.float64) for of in (g, a))
    right, right_gradient = lrn_gradients(**constants)(*wide)
    # One rounding costs 2⁻⁸: of the result at the end, and on GPUs and TPUs of the summands, whatever their signs.
    absolute = tuple(map(np.abs, wide))
    summands = absolute[0] * right / wide[1] - lrn_gradients(**constants)(*absolute)[1]
    for found, expected, others in ((out, right, 0), (back(g)[0], right_gradient, summands)):
        assert found.dtype == jnp.bfloat16
        error = np.abs(np.asarray(found, np.float64) - expected)
        assert np.all(error <= 2.0**-8 * 1.001 * (np.abs(expected) + others))
