"""The rehearsal of ImageNet: numbers in pixels, processes watched, and all of it in small."""

import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments"))
import imagenet_rehearsal
import numbered_images
import watched

from alexnet_jax.data.images import upright_rgb

PHOTOS = Path(__file__).parents[3] / "shared" / "data" / "photos10.tar"


def photographs(count):
    noise = np.random.default_rng(0).integers(0, 256, (count, 12, 12, 3), dtype=np.uint8)
    side = numbered_images.SIDE
    return np.stack([np.asarray(Image.fromarray(image).resize((side, side))) for image in noise])


@pytest.mark.parametrize(("size", "crop"), [(numbered_images.SIDE, 64), (256, 256), (64, 64)])
def test_a_number_is_read_after_two_jpegs_and_scaling(size, crop):
    numbers = np.array([0, 1, 2, 1_281_166, 1_331_166, 2**21 - 1, 40_503, 77_777])
    images = numbered_images.drawn(photographs(len(numbers)), numbers)
    sent = [simplejpeg.encode_jpeg(image, quality=75, colorsubsampling="420") for image in images]
    prepared = np.stack([upright_rgb(image, size) for image in sent])
    assert numbered_images.numbers_in(prepared).tolist() == numbers.tolist()


def test_what_is_no_whole_number_is_told():
    numbers = np.arange(2000)
    images = numbered_images.drawn(photographs(1).repeat(2000, 0), numbers)
    assert (numbered_images.numbers_in(photographs(50)) == -1).all()
    assert (numbered_images.numbers_in(images[:, ::-1]) == -1).mean() > 0.99
    first = numbered_images.FIRST
    bit = np.s_[:, first : first + numbered_images.BLOCK, first : first + numbered_images.BLOCK]
    images[bit] = 255 - images[bit]  # one bit of the check
    assert (numbered_images.numbers_in(images) == -1).all()


def test_the_labels_are_those_of_the_tars():
    of = imagenet_rehearsal.Rehearsal(Path("x"), 2_500, 50, 72, 1, "")
    labels = of.labels(np.arange(2_550))
    counts = np.bincount(labels[:2_500], minlength=1000)
    assert (counts[:500] == 3).all()
    assert (counts[500:] == 2).all()
    assert (np.diff(labels[:2_500]) >= 0).all()
    assert of.synsets[labels[2_500]] == "n01751748"  # as TFDS has it of the first validation image


def test_a_command_is_watched_and_all_that_it_starts():
    child = f"{sys.executable} -c 'import time; block = bytearray(90_000_000); time.sleep(60)'"
    script = f"""import subprocess, time; block = bytearray(60_000_000); subprocess.Popen("exec {child}", shell=True)
time.sleep(60)"""
    start = time.perf_counter()

    def reached():
        if time.perf_counter() - start < 2:
            return False
        for of in watched.processes_below(os.getpid())[1:]:
            if (seen := watched.seen_of(of)) and seen["mb"] > 90:
                os.kill(of, signal.SIGKILL)  # would outlive the first one, and be waited for
        return True

    found = watched.watched([sys.executable, "-c", script], reached)
    assert found["exit_code"] == -signal.SIGKILL
    assert found["signal"] == "SIGKILL"
    assert 60 < found["peak_mb"]["first"] < 90 < found["peak_mb"]["others"]
    assert found["peak_mb"]["together"] > 150
    assert found["most_open_files"] >= 3
    assert 0 < found["cpu_seconds"] < found["seconds"] * 2
    with pytest.raises(SystemExit, match="ended with 3: no good"):
        watched.watched([sys.executable, "-c", "import sys; print('no good', file=sys.stderr); sys.exit(3)"])


@pytest.mark.slow
def test_the_rehearsal_in_small(tmp_path):
    if not PHOTOS.exists():
        pytest.skip(f"needs {PHOTOS}")
    command = [sys.executable, "experiments/imagenet_rehearsal.py", f"--photos={PHOTOS}", f"--scratch={tmp_path}",
               "--train=7000", "--validation=200", "--steps=2", "--no_log"]  # fmt: skip
    subprocess.run(command, check=True, cwd=Path(__file__).parents[2])
    parts = {file.stem: json.loads(file.read_text()) for file in (tmp_path / "parts").iterdir()}
    with tarfile.open(tmp_path / "ILSVRC2012" / "ILSVRC2012_img_train.tar") as archive:
        assert len(archive.getnames()) == 1000
    for before, after in ((1, 2), (2, 3), (3, 4)):
        assert parts[f"prepare_{before}"]["exit_code"] == -signal.SIGKILL
        assert parts[f"prepare_{after}"]["of_these_kept"] == parts[f"prepare_{before}"]["shards_after"]
    epoch = parts["read_epoch"]
    assert epoch["once"] == epoch["images"] == 7000
    assert epoch["wrong_label"] == epoch["not_in_the_order_said"] == 0
    assert parts["evaluate"]["examples"] == 200
    assert parts["evaluate"]["top1_error"] == pytest.approx(parts["evaluate"]["counted_again"])
    assert parts["evaluate"]["wrong_label"] == 0
    assert parts["continued"]["from_step"] == parts["stopped"]["to_step"] >= round(59.5 * 7000 / 128) + 2
