"""From the file on: what torchvision and Caffe would see in a picture, by Pillow, OpenCV and PyTorch alone."""

import dataclasses
import io
import json
import re
import tarfile
import tracemalloc

import numpy as np
import pytest
import safetensors.numpy
from conftest import SHARED
from PIL import Image
from test_weights import (
    WIDTHS,
    caffe_files,
    logits,
    narrow,  # noqa: F401  a fixture of every test here, too
    prototxt,
    torchvision_module,
    torchvision_tensors,
)

from alexnet_jax.data.preprocessing import CAFFE, OWN, TORCHVISION, Preprocessing, opencv_linear
from alexnet_jax.networks import interchange, one_file
from alexnet_jax.networks.loading import load
from alexnet_jax.options import InputError

pytestmark = pytest.mark.usefixtures("quickly_compiled")
PHOTOGRAPHS = SHARED / "data" / "photos-original-size.tar"


def encoded(pixels, format="JPEG", mode="RGB", **options):
    content = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(content, format, **options)
    return content.getvalue()


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def drawn_files():
    """Odd sizes, small and large, and what JPEGs come as."""
    rng = np.random.default_rng(0)
    for number, (height, width) in enumerate([(375, 500), (500, 375), (301, 257), (255, 611), (90, 64), (512, 512)]):
        coarse = rng.integers(0, 256, (height // 9 + 2, width // 9 + 2, 3), dtype=np.uint8)
        pixels = np.asarray(Image.fromarray(coarse).resize((width, height)))
        yield f"{width}x{height}.png", encoded(pixels, "PNG")
        yield f"{width}x{height}.jpg", encoded(pixels, quality=60 + 5 * number, exif=turned(1 + number))
    yield "grey.jpg", encoded(pixels[:300], mode="L")
    yield "grey.png", encoded(pixels[:300], "PNG", mode="L")
    yield "cmyk.jpg", encoded(pixels[:300], mode="CMYK")


def photographs():
    if not PHOTOGRAPHS.exists():
        pytest.skip(f"there are no photographs ({PHOTOGRAPHS})")
    with tarfile.open(PHOTOGRAPHS) as archive:
        files = {member.name: archive.extractfile(member).read() for member in archive if member.isfile()}
    assert len(files) == 59
    return [*files.items()]


SLOWER = ["drawn", pytest.param("photographs", marks=pytest.mark.slow)]
FILES = {"drawn": lambda: [*drawn_files()], "photographs": photographs}


def torchvision_transform(content):
    """`transforms.ImageClassification(crop_size=224)` up to the tensor, from torchvision's functional.resize and
    functional.center_crop.
    """
    image = Image.open(io.BytesIO(content)).convert("RGB")
    width, height = image.size
    short, long = min(width, height), max(width, height)
    new_short, new_long = 256, int(256 * long / short)
    image = image.resize((new_short, new_long) if width <= height else (new_long, new_short), Image.BILINEAR)
    left, top = round((image.width - 224) / 2.0), round((image.height - 224) / 2.0)
    return np.asarray(image.crop((left, top, left + 224, top + 224)))


def of_caffe(cv2, content):
    """convert_imageset --resize_height=256 --resize_width=256: BGR. The OpenCV of its time turned no picture."""
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    return cv2.resize(cv2.imdecode(np.frombuffer(content, np.uint8), flags), (256, 256))


@pytest.mark.parametrize("files", FILES)
def test_every_pixel_is_that_of_torchvisions_transform(files):
    for name, content in FILES[files]():
        found = TORCHVISION(content, 256, 224)
        assert (found.shape, found.dtype) == ((256, 256, 3), np.uint8)
        np.testing.assert_array_equal(found[16:240, 16:240], torchvision_transform(content), err_msg=name)


@pytest.mark.parametrize("files", FILES)
def test_every_pixel_is_that_of_caffes_convert_imageset(files):
    cv2 = pytest.importorskip("cv2", reason="OpenCV is not installed; the extra [parity] brings it")
    for name, content in FILES[files]():
        found, expected = CAFFE(content, 256, 227), of_caffe(cv2, content)[..., ::-1]
        # Of CMYK the two libraries' own conversions differ by two grey levels at most.
        np.testing.assert_allclose(found.astype(int), expected, atol=2 if name == "cmyk.jpg" else 0, err_msg=name)


def test_opencvs_resize_of_any_size_in_whole_numbers():
    cv2 = pytest.importorskip("cv2", reason="OpenCV is not installed; the extra [parity] brings it")
    rng = np.random.default_rng(0)
    sizes = [
        (256, 256, 256, 256),
        (512, 512, 256, 256),
        (1, 1, 7, 5),
        (2, 900, 3, 40),
        (1, 65_000, 256, 256),
        *rng.integers(1, 200, (60, 4)),
    ]
    for height, width, new_height, new_width in sizes:
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        expected = cv2.resize(pixels, (int(new_width), int(new_height)))
        np.testing.assert_array_equal(opencv_linear(pixels, int(new_width), int(new_height)), expected)


def test_a_picture_that_is_one_line_takes_no_memory():
    """A file of 200 bytes; scaled as a whole, it would have 256 × 16,640,000 pixels."""
    file = encoded(np.full((1, 65_000, 3), 77, np.uint8), "PNG")
    tracemalloc.start()
    for turn in (False, True):
        pixels = np.arange(65_000 * 3, dtype=np.uint32).astype(np.uint8).reshape(1, 65_000, 3)
        found = CAFFE(pixels.swapaxes(0, 1) if turn else pixels, 256)
        found = found.swapaxes(0, 1) if turn else found
        # Between 2 of them: (i + 1/2) * 65000 / 256 - 1/2 is 126.453125 for i = 0.
        between = pixels[0, 126] * (1 - 0.453125) + pixels[0, 127] * 0.453125
        np.testing.assert_allclose(found[:, 0], np.broadcast_to(between, (256, 3)), atol=1)
    np.testing.assert_array_equal(CAFFE(file, 256), np.full((256, 256, 3), 77, np.uint8))
    with pytest.raises(ValueError, match=r"is too long for its width: scaled it would have 16,640,000 × 256 pixels"):
        TORCHVISION(file, 256, 224)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 15e6
    assert TORCHVISION(np.full((2, 1500, 3), 77, np.uint8), 256, 224).shape == (256, 256, 3)


@pytest.mark.parametrize("crop", [31, 32, 33])
@pytest.mark.parametrize("width", [40, 41, 42, 43, 47])
def test_the_central_view_lies_where_torchvision_has_it(width, crop):
    """For any sizes; rounded half to even."""
    pixels = np.arange(40 * width * 3, dtype=np.uint32).astype(np.uint8).reshape(40, width, 3)
    left, top = round((width - crop) / 2.0), round((40 - crop) / 2.0)
    border = (40 - crop) // 2
    for turn in (False, True):  # a column is cut where there is one to cut
        found = TORCHVISION(pixels.swapaxes(0, 1) if turn else pixels, 40, crop)
        view = (found.swapaxes(0, 1) if turn else found)[border : border + crop, border : border + crop]
        if width > 40 + 1 or left == border:
            np.testing.assert_array_equal(view[:, 0, 0], pixels[border : border + crop, left, 0])
    assert top - border in (0, 1)
    # As an exported program tells it.
    told = re.search(r"from round\(\(side - (\d+)\) / 2\) - (\d+) on \(.*; from 0 to", TORCHVISION.describe(40, crop))
    first = min(max(round((width - int(told[1])) / 2) - int(told[2]), 0), width - 40)
    np.testing.assert_array_equal(TORCHVISION(pixels, 40, crop), pixels[:, first : first + 40])


def test_exif_is_an_option():
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[:, :30] = 255  # the left half is white: by orientation 6 it comes to lie above
    content = encoded(pixels, exif=turned(6))
    for rule in (TORCHVISION, CAFFE, OWN):
        as_stored = dataclasses.replace(rule, upright=False)(content, 32, 32).mean((1, 2))
        upright = dataclasses.replace(rule, upright=True)(content, 32, 32).mean((1, 2))
        assert abs(as_stored[0] - as_stored[-1]) < 5
        assert upright[0] - upright[-1] > 240
    assert (OWN.upright, TORCHVISION.upright, CAFFE.upright) == (True, False, False)


def narrow_network(kind, folder):
    if kind == "caffe":
        file, mean, _, image = caffe_files(folder)
        return interchange.from_caffe(file, mean), file, image
    file = folder / "torchvision.safetensors"
    safetensors.numpy.save_file(torchvision_tensors(), file)
    return interchange.from_torchvision(file), file, None


@pytest.mark.parametrize("files", SLOWER)
def test_from_a_file_the_logits_are_those_of_pytorch_and_pillow(tmp_path, files):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed; the extra [parity] brings it")
    found_files = FILES[files]()
    network, _, _ = narrow_network("torchvision", tmp_path)
    module = torchvision_module(torch, {name: torch.from_numpy(of) for name, of in torchvision_tensors().items()})
    pixels = np.stack([torchvision_transform(content) for _, content in found_files])
    scaled = (pixels / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    with torch.no_grad():
        expected = module(torch.from_numpy(scaled.transpose(0, 3, 1, 2))).numpy()
    found = logits(network, np.stack([network.preprocess(content) for _, content in found_files]))
    np.testing.assert_allclose(found, expected, atol=1e-4 * expected.std())


@pytest.mark.parametrize("files", SLOWER)
def test_from_a_file_the_logits_are_those_of_opencv_alone(tmp_path, files):
    cv2 = pytest.importorskip("cv2", reason="OpenCV is not installed; the extra [parity] brings it")
    found_files = [(name, content) for name, content in FILES[files]() if name != "cmyk.jpg"]
    network, file, mean = narrow_network("caffe", tmp_path)
    (tmp_path / "deploy.prototxt").write_text(prototxt(WIDTHS))
    reader = cv2.dnn.readNetFromCaffe(str(tmp_path / "deploy.prototxt"), str(file))
    images = np.stack([of_caffe(cv2, content) for _, content in found_files])
    reader.setInput(np.ascontiguousarray((images.transpose(0, 3, 1, 2) - mean)[:, :, 14:241, 14:241]))
    expected = reader.forward("fc8")
    found = logits(network, np.stack([network.preprocess(content) for _, content in found_files]))
    np.testing.assert_allclose(found, expected, atol=1e-4 * expected.std())


@pytest.mark.parametrize(("kind", "rule"), [("torchvision", TORCHVISION), ("caffe", CAFFE)])
def test_the_rule_is_kept_in_the_card(tmp_path, kind, rule):
    network, _, _ = narrow_network(kind, tmp_path)
    assert network.preprocessing == rule
    file = tmp_path / "a.safetensors"
    for kept in (network, dataclasses.replace(network, preprocessing=dataclasses.replace(rule, upright=True))):
        one_file.save(kept, file)
        assert load(file).preprocessing == kept.preprocessing
    tensors, metadata = one_file.read_safetensors(file)
    card, sums = json.loads(metadata["card"]), json.loads(metadata["checksums"])

    def read(changes, kept_sums):
        changed = {**card, **changes}
        changed = {name: of for name, of in changed.items() if of != "left out"}
        new = {**metadata, "card": json.dumps(changed), "checksums": json.dumps(kept_sums)}
        safetensors.numpy.save_file(tensors, tmp_path / "b.safetensors", new)
        return load(tmp_path / "b.safetensors").preprocessing

    without = {name: of for name, of in sums.items() if name != "card"}
    assert read({"preprocessing": "left out"}, without) == OWN  # a file of before
    written = card["preprocessing"]
    for wrong in (None, {}, "x", {**written, "resize": "x"}, {**written, "filter": 1}, {**written, "upright": None}):
        with pytest.raises(InputError, match=r"its card cannot be read \(preprocessing"):
            read({"preprocessing": wrong}, without)
    for changes in ({"preprocessing": "left out"}, {"preprocessing": {**written, "resize": "square"}}, {"step": 7}):
        with pytest.raises(InputError, match="card is not what was written, by its checksums"):
            read(changes, sums)


def test_the_rules_are_told_in_a_line():
    rules = (OWN, TORCHVISION, CAFFE, Preprocessing("square", "opencv", upright=True))
    told = {rule.describe(256, 224) for rule in rules}
    assert len(told) == 4
    assert all(line.startswith("uint8, RGB, ") and "256" in line for line in told)
