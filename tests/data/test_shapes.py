import numpy as np
import pytest

from alexnet_jax.data import shapes


def drawn(count, seed, size=32):
    """Raw pixels and labels, as a linear model reads them."""
    labels = np.arange(count) % 10
    images = [shapes.draw(i % 10, np.random.default_rng([seed, i]), size) for i in range(count)]
    return np.stack(images).reshape(count, -1).astype(np.float64), labels


def error_of_ridge_regression(features, labels, test_features, test_labels):
    """The lowest error of a linear model over all strengths of its penalty, even chosen on the test set itself."""
    mean = features.mean(0)
    gram, test_gram = (part @ (features - mean).T for part in (features - mean, test_features - mean))
    values, vectors = np.linalg.eigh(gram)
    targets = np.eye(10)[labels] - 0.1
    errors = []
    for penalty in np.logspace(-4, 2, 13) * values.mean():
        weights = vectors @ ((vectors.T @ targets) / (values + penalty)[:, None])
        errors.append(np.mean(np.argmax(test_gram @ weights, 1) != test_labels))
    return min(errors)


def test_a_picture_is_a_function_of_the_seed():
    first, again, other = (shapes.draw(3, np.random.default_rng(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first.shape, first.dtype) == ((256, 256, 3), np.uint8)
    assert not np.array_equal(first, other)


@pytest.mark.slow
def test_a_linear_model_on_raw_pixels_stays_above_half_wrong():
    error = error_of_ridge_regression(*drawn(3000, seed=0), *drawn(1000, seed=1))
    assert error > 0.5


def test_the_mean_color_says_nothing_of_the_class():
    (train, labels), (test, test_labels) = drawn(1000, seed=0), drawn(1000, seed=1)
    colors, test_colors = (part.reshape(len(part), -1, 3).mean(1) for part in (train, test))
    centers = np.stack([colors[labels == label].mean(0) for label in range(10)])
    nearest = np.argmin(np.linalg.norm(test_colors[:, None] - centers, axis=2), axis=1)
    assert np.mean(nearest != test_labels) > 0.85


@pytest.mark.parametrize("label", range(10))
def test_the_shape_is_in_the_picture(label):
    """Two pictures from one state that differ in the shape only do differ; all of it lies inside."""
    other = (label + 1) % 10
    first, second = (shapes.draw(which, np.random.default_rng(5)) for which in (label, other))
    assert 0.005 < np.mean(np.any(first != second, axis=2)) < 0.5
