import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_jax.data import input_pipeline
from alexnet_jax.data.datasets import open_dataset
from alexnet_jax.device import parallel
from alexnet_jax.paper import evaluate

pytestmark = pytest.mark.usefixtures("quickly_compiled")
CLASSES = 8
PARAMS = {"none": np.zeros(1)}  # pmap of jax 0.10 mistakes the axes of what follows an empty argument


def evaluation_step(devices, metrics=None):
    """Of images that are the logits."""
    axis = parallel.axis_of(devices)
    return evaluate.make_evaluation_step(lambda params, images: images[:, 0, 0], axis_name=axis, metrics=metrics)


def numpy_counts(logits, labels):
    order = np.argsort(-logits, axis=1, kind="stable")
    top1 = sum(label not in row[:1] for row, label in zip(order, labels, strict=True))
    top5 = sum(label not in row[:5] for row, label in zip(order, labels, strict=True))
    logits = logits.astype(np.float64)
    nll = np.log(np.exp(logits).sum(1)) - logits[np.arange(len(labels)), labels]
    return top1 / len(labels), top5 / len(labels), nll.mean()


@pytest.mark.parametrize("devices", [1, 2, 3])
@pytest.mark.parametrize("examples", [1, 5, 6, 7, 12, 13, 17, 18, 19])
def test_errors_are_exact_for_any_number_of_images_on_any_number_of_devices(examples, devices):
    rng = np.random.default_rng(examples)
    # Few values, so that there are ties; and the "images" are the logits.
    logits = rng.integers(0, 4, (examples, 1, 1, CLASSES)).astype(np.float32)
    labels = rng.integers(0, CLASSES, examples).astype(np.int32)
    used = jax.devices()[:devices]

    def batches():
        for start in range(0, examples, 6):
            rows = slice(start, min(start + 6, examples))
            missing = 6 - (rows.stop - start)
            yield parallel.shard(
                input_pipeline.Batch(
                    np.pad(logits[rows], ((0, missing), (0, 0), (0, 0), (0, 0))),
                    np.pad(labels[rows], (0, missing), constant_values=-1),
                ),
                used,
            )

    step = parallel.pmap_step(evaluation_step(used), used)
    errors, more = evaluate.evaluate(step, PARAMS, batches(), examples)
    assert more == {}
    top1, top5, nll = numpy_counts(logits[:, 0, 0], labels)
    assert (errors.top1_error, errors.top5_error, errors.examples) == (top1, top5, examples)
    assert errors.nll == pytest.approx(nll, rel=1e-5)


@pytest.mark.parametrize("devices", [1, 2])
def test_more_metrics_are_means_over_the_real_images(devices):
    logits = np.random.default_rng(0).normal(0, 1, (8, 1, 1, CLASSES)).astype(np.float32)
    labels = np.array([3, 1, 4, 1, 5, -1, -1, -1], np.int32)  # as in a last batch
    used = jax.devices()[:devices]
    metrics = {
        "of_label": lambda logits, labels: jnp.take_along_axis(logits, labels[:, None], axis=1)[:, 0],
        "is_odd": lambda logits, labels: labels % 2 == 1,
    }
    step = parallel.pmap_step(evaluation_step(used, metrics), used)
    batch = parallel.shard(input_pipeline.Batch(logits, labels), used)
    errors, more = evaluate.evaluate(step, PARAMS, [batch], 5)
    assert errors.examples == 5
    assert more == pytest.approx({"of_label": logits[range(5), 0, 0, labels[:5]].mean(), "is_odd": 4 / 5}, rel=1e-6)


def test_a_missing_image_is_noticed():
    def step(params, batch):
        return {name: np.int32(2) for name in ("top1", "top5", "nll", "examples")}

    batch = input_pipeline.Batch(np.zeros((2, 4, 4, 3), np.uint8), np.zeros(2, np.int32))
    with pytest.raises(AssertionError, match="evaluated 4 images of 5"):
        evaluate.evaluate(step, PARAMS, [batch, batch], 5)


def test_not_a_number_is_wrong():
    logits = jnp.array([[jnp.nan] * 6, [0.0, jnp.nan, 1, 2, 3, 4]])
    assert evaluate.label_ranks(logits, jnp.array([0, 5])).tolist() == [6, 1]


def test_the_evaluation_step_sees_the_centre_view_without_the_mean(prepared):
    dataset = open_dataset(str(prepared))
    mean = jnp.asarray(dataset.statistics.mean_image, jnp.float32)
    seen = []

    def network(variables, images, train):
        assert not train
        seen.append(images.shape)
        return images.mean((1, 2))

    devices = jax.devices()[:1]
    step = parallel.pmap_step(evaluate.make_evaluation_step(evaluate.make_logits(network, mean, 32)), devices)
    batches = list(input_pipeline.evaluation_batches(dataset, "validation", batch_size=10))
    errors, _ = evaluate.evaluate(step, PARAMS, (parallel.shard(batch, devices) for batch in batches), 23)
    # Reddish images have the label "red", and so on: without the mean, the mean colour tells.
    assert errors.top1_error == 0
    assert set(seen) == {(10, 32, 32, 3)}


@pytest.mark.parametrize("center_mean", [False, True])
def test_ten_views_average_their_softmax_outputs(prepared, center_mean):
    dataset = open_dataset(str(prepared))
    mean = np.asarray(dataset.statistics.mean_image, np.float32)
    random = np.random.default_rng(0).normal(0, 1e-3, (32 * 32 * 3, 5)).astype(np.float32)
    devices = jax.devices()[:2]

    def network(variables, images, train):
        return images.reshape(len(images), -1) @ random

    logits = evaluate.make_logits(network, jnp.array(mean), 32, views=10, center_mean=center_mean)
    step = parallel.pmap_step(evaluate.make_evaluation_step(logits, axis_name=parallel.axis_of(devices)), devices)
    batches = list(input_pipeline.evaluation_batches(dataset, "validation", batch_size=10))
    errors, _ = evaluate.evaluate(step, PARAMS, (parallel.shard(batch, devices) for batch in batches), 23)

    images = np.concatenate([batch.images for batch in batches])[:23].astype(np.float64)
    labels = np.concatenate([batch.labels for batch in batches])[:23]
    total = np.zeros((23, 5))
    for top, left in ((0, 0), (0, 8), (8, 0), (8, 8), (4, 4)):
        patch, own = images[:, top : top + 32, left : left + 32], mean[top : top + 32, left : left + 32]
        center = mean[4:36, 4:36]  # subtracted from a mirrored patch as it is
        straight, mirrored = (center, center) if center_mean else (own, own[:, ::-1])
        for view in (patch - straight, patch[:, :, ::-1] - mirrored):
            scores = np.exp(view.reshape(23, -1) @ random)
            total += scores / scores.sum(1, keepdims=True) / 10
    top1, top5, nll = numpy_counts(np.log(total), labels)
    assert (errors.top1_error, errors.top5_error) == (top1, top5)
    assert errors.nll == pytest.approx(nll, rel=1e-5)
