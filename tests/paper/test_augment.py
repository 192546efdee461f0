import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_jax.device.accelerator_forms import patches_by_product
from alexnet_jax.paper import augment

pytestmark = pytest.mark.usefixtures("quickly_compiled")


def places(height, width, batch=1):
    """Images whose pixels say where they are: (row, column, image)."""
    rows, columns = np.mgrid[0:height, 0:width]
    return jnp.array(
        np.stack([np.stack([rows, columns, np.full_like(rows, n)], -1) for n in range(batch)]), jnp.float32
    )


@pytest.mark.parametrize(("to_edge", "places_along"), [(False, 32), (True, 33)])  # §4.1: 2,048 = 32 · 32 · 2; 2012
def test_random_crop_cuts_a_patch_of_the_image_at_one_of_32_by_32_places(to_edge, places_along):
    @jax.jit
    def corners_of_crops(key, image):
        images = jnp.broadcast_to(image, (3000, 256, 256, 3))
        return augment.random_crop(key, images, 224, to_edge=to_edge)[:, ::223, ::223]

    corners = np.asarray(corners_of_crops(jax.random.key(0), places(256, 256).astype(jnp.uint8))).astype(int)
    tops, lefts = corners[:, 0, 0, 0], corners[:, 0, 0, 1]
    assert set(tops) == set(lefts) == set(range(places_along))
    assert abs(np.corrcoef(tops, lefts)[0, 1]) < 0.1
    np.testing.assert_array_equal(corners[:, 1, 1, :2], corners[:, 0, 0, :2] + 223)


def test_random_crop_of_the_whole_image_is_the_image():
    images = places(7, 7, 2)
    crops = jax.jit(functools.partial(augment.random_crop, size=7))(jax.random.key(0), images)
    np.testing.assert_array_equal(crops, images)


@pytest.mark.parametrize("dtype", [jnp.uint8, jnp.float32, jnp.bfloat16])
def test_patches_are_cut_and_mirrored_and_so_are_those_by_products(dtype):
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (6, 17, 13, 3)).astype(np.uint8)
    pixels = np.asarray(jnp.asarray(images, dtype))
    if dtype == jnp.float32:
        pixels = pixels - random.random(pixels.shape, np.float32)  # all bits of the mantissa
    corners, mirrored = random.integers(0, [9, 5], (6, 2)), np.array([True, False] * 3)
    expected = np.stack(
        [image[top : top + 9, left : left + 9] for image, (top, left) in zip(pixels, corners, strict=True)]
    )
    expected[mirrored] = expected[mirrored][:, :, ::-1]
    for cut in (augment.patches, patches_by_product):
        found = jax.jit(cut, static_argnums=3)(jnp.asarray(pixels), jnp.asarray(corners), jnp.asarray(mirrored), 9)
        assert found.dtype == dtype
        np.testing.assert_array_equal(found, expected)


def test_random_reflection_mirrors_half_of_the_images_left_right():
    images = places(2, 5, 1000)
    out = np.asarray(jax.jit(augment.random_reflection)(jax.random.key(0), images))
    mirrored = out[:, 0, 0, 1] == 4
    np.testing.assert_array_equal(out[mirrored], np.asarray(images)[mirrored][:, :, ::-1])
    np.testing.assert_array_equal(out[~mirrored], np.asarray(images)[~mirrored])
    assert 440 < mirrored.sum() < 560


def test_pca_color_has_the_covariance_of_the_colors_times_the_scale_squared():
    rng = np.random.default_rng(0)
    factor = 20 * rng.standard_normal((3, 3))
    covariance = factor @ factor.T
    eigenvalues, eigenvectors = np.linalg.eigh(covariance)
    pca = jnp.array(eigenvectors * np.sqrt(eigenvalues), jnp.float32)
    images = jnp.zeros((100_000, 1, 2, 3))
    noise = np.asarray(jax.jit(augment.pca_color)(jax.random.key(0), images, pca, 0.1))
    np.testing.assert_array_equal(noise[:, 0, 0], noise[:, 0, 1])  # the same for every pixel of an image
    np.testing.assert_allclose(np.cov(noise[:, 0, 0].T), 0.01 * covariance, atol=0.02 * 0.01 * np.abs(covariance).max())
    np.testing.assert_allclose(noise.mean((0, 1, 2)), 0, atol=0.05)


def test_center_view():
    view = augment.center_view(places(256, 256), 224)
    assert view.shape == (1, 224, 224, 3)
    np.testing.assert_array_equal(view[0, 0, 0, :2], [16, 16])


def test_ten_views_are_four_corners_the_centre_and_their_reflections():
    views = np.asarray(augment.ten_views(places(256, 256, 2), 224))
    assert views.shape == (10, 2, 224, 224, 3)
    assert views[:5, 0, 0, 0, :2].tolist() == [[0, 0], [0, 32], [32, 0], [32, 32], [16, 16]]
    np.testing.assert_array_equal(views[5:], views[:5, :, :, ::-1])
    np.testing.assert_array_equal(views[:, 1, :, :, 2], 1)


def training_views(*arrays, **options):
    """`augment.training_views`, in one program: one by one, its operations take seconds to compile."""
    return np.asarray(jax.jit(functools.partial(augment.training_views, **options))(*arrays))


def test_training_views_subtract_each_pixels_own_mean():
    mean = places(40, 40)[0]
    images = jnp.broadcast_to(mean, (4, 40, 40, 3)).astype(jnp.uint8)
    views = training_views(jax.random.key(0), images, mean, jnp.eye(3), size=32, color_scale=0.0)
    np.testing.assert_array_equal(views, np.zeros((4, 32, 32, 3)))


def test_without_reflections_no_image_is_mirrored():
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
    options = {"mean_image": jnp.zeros((8, 8, 3)), "pca": jnp.zeros((3, 3)), "size": 8, "color_scale": 0.0}
    views = training_views(jax.random.key(0), jnp.array(images), reflect=False, **options)
    np.testing.assert_array_equal(views, images)
    assert not np.array_equal(training_views(jax.random.key(0), jnp.array(images), **options), images)


def test_with_center_mean_every_patch_loses_the_same_center_however_it_lies():
    mean = places(40, 40)[0]
    images = jnp.full((64, 40, 40, 3), 200, jnp.uint8)
    options = {"size": 32, "color_scale": 0.0, "center_mean": True}
    views = training_views(jax.random.key(0), images, mean, jnp.eye(3), **options)
    np.testing.assert_array_equal(views, np.broadcast_to(200 - mean[4:36, 4:36], views.shape))


def test_color_rescale_divides_image_and_color():
    images = jnp.array(np.random.default_rng(0).integers(0, 256, (4, 40, 40, 3)), jnp.uint8)
    mean, pca, key = jnp.full((40, 40, 3), 120.0), 50 * jnp.eye(3), jax.random.key(0)
    options = {"size": 32, "color_scale": 0.1}
    plain = training_views(key, images, mean, pca, **options)
    rescaled = training_views(key, images, mean, pca, color_rescale=True, **options)
    np.testing.assert_allclose(rescaled, plain / 1.1, rtol=1e-6, atol=1e-5)
    options["color_scale"] = jnp.float32(0)  # as where the colour is off: nothing is divided
    without = training_views(key, images, mean, pca, color_rescale=True, **options)
    np.testing.assert_array_equal(without, training_views(key, images, mean, pca, **options))


def test_a_chunk_shares_patch_and_reflection_but_not_its_color():
    images = jnp.broadcast_to(places(40, 40), (200, 40, 40, 3)).astype(jnp.uint8)
    keys = jax.random.split(jax.random.key(0), 200)
    chunk_keys = keys[jnp.arange(200) // 50 * 50]

    def views(color_scale, chunk_key):
        options = {"size": 32, "color_scale": color_scale, "chunk_key": chunk_key}
        return training_views(keys, images, jnp.zeros((40, 40, 3)), jnp.eye(3), **options)

    def distinct(views):
        return len(np.unique(views.reshape(len(views), -1), axis=0))

    plain = views(0.0, chunk_keys)
    assert [distinct(plain[start : start + 50]) for start in range(0, 200, 50)] == [1] * 4
    assert distinct(plain) > 1
    np.testing.assert_array_equal(plain[0], views(0.0, None)[0])  # that of the chunk's first image
    assert distinct(views(0.0, None)) > 50
    assert distinct(views(0.1, chunk_keys)) == 200


@pytest.mark.parametrize("color_scale", [0.0, 0.1])
def test_what_happens_to_an_image_does_not_depend_on_how_the_batch_is_cut(color_scale):
    images = jnp.array(np.random.default_rng(0).integers(0, 256, (6, 40, 40, 3)), jnp.uint8)
    keys = jax.random.split(jax.random.key(0), 6)
    mean, pca = jnp.full((40, 40, 3), 120.0), 50 * jnp.eye(3)

    def view(part):
        return training_views(keys[part], images[part], mean, pca, size=32, color_scale=color_scale)

    whole = view(slice(0, 6))
    assert whole.dtype == jnp.float32
    np.testing.assert_array_equal(whole[4:], view(slice(4, 6)))


def test_one_key_an_image_is_a_function_of_its_place_in_the_whole_batch():
    key = jax.random.key(0)

    def data(keys):
        return np.asarray(jax.random.key_data(keys))

    whole = data(augment.image_keys(key, 6))
    assert len(np.unique(whole, axis=0)) == 6
    np.testing.assert_array_equal(data(augment.image_keys(key, jnp.arange(4, 6))), whole[4:])
    np.testing.assert_array_equal(data(augment.image_keys(key, 6, chunk=4)), whole[[0, 0, 0, 0, 4, 4]])
    np.testing.assert_array_equal(data(augment.image_keys(key, jnp.arange(3, 6), chunk=4)), whole[[0, 4, 4]])
    np.testing.assert_array_equal(data(augment.image_keys(jax.random.split(key, 6), 6)), data(jax.random.split(key, 6)))
