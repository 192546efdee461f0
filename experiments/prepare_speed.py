"""How fast alexnet_jax.prepare works, how it scales over cores, and what it needs of memory and disk.

  python experiments/prepare_speed.py --photos=photos.tar --scratch=DIR         a quarter of an hour on two cores

The photographs of a tar file are scaled to 500 × 375, the size of most of ImageNet's, and repeated under new names:
4,000 and 20,000 JPEGs. Both are prepared by one worker process and by one for each core. images/s without start-up is
what the 16,000 more take in addition; median of the repeats. Expected: 300 images/s on one core, 1.8 times as
many on two, and memory that does not grow with the number of images.
"""

import argparse
import io
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tarfile
import time
from importlib.metadata import version
from pathlib import Path

from PIL import Image
from record import machine, save

SMALL, LARGE = 4_000, 20_000
CLASSES = 10


def photographs(tar: str, folder: Path) -> list[Path]:
    """Each photograph of the tar file, at 500 × 375."""
    folder.mkdir()
    with tarfile.open(tar) as archive:
        for number, member in enumerate(member for member in archive if member.isfile()):
            content = archive.extractfile(member)
            assert content is not None
            photograph = Image.open(io.BytesIO(content.read())).convert("RGB")
            photograph.resize((500, 375), Image.Resampling.BICUBIC).save(folder / f"{number}.jpg", quality=90)
    return sorted(folder.iterdir())


def repeated(files: list[Path], folder: Path, images: int) -> None:
    for split, part in (("train", images - images // 20), ("val", images // 20)):
        for number in range(part):
            of_class = folder / split / f"class{number % CLASSES}"
            of_class.mkdir(parents=True, exist_ok=True)
            os.link(files[number % len(files)], of_class / f"{number:05}.jpg")


def seconds(source: Path, output: Path, workers: int, encoding: str = "jpeg") -> float:
    flags = [f"--source={source}", f"--output={output}", f"--workers={workers}", f"--encoding={encoding}"]
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "alexnet_jax.prepare", *flags], check=True, capture_output=True)
    return time.perf_counter() - start


def largest_process() -> float:
    """Peak memory of the largest of all processes that ran, in MB."""
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", required=True)
    parser.add_argument("--scratch", required=True, type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    scratch: Path = arguments.scratch
    scratch.mkdir(parents=True)
    files = photographs(arguments.photos, scratch / "photographs")
    sources = {images: scratch / str(images) for images in (SMALL, LARGE)}
    for images, source in sources.items():
        repeated(files, source, images)

    memory, times, output = {}, {}, scratch / "output"
    for _ in range(arguments.repeats):
        for images, source in sources.items():  # the smaller one first: peaks only rise
            for workers in (1, machine()["cores"]):
                times.setdefault((images, workers), []).append(seconds(source, output, workers))
                print(f"{images} images, {workers} workers: {times[images, workers][-1]:.1f} s", flush=True)
                shutil.rmtree(output)
            memory.setdefault(images, largest_process())
    disk = {}
    for encoding in ("jpeg", "raw"):
        seconds(sources[SMALL], output, machine()["cores"], encoding)
        disk[encoding] = round(sum(file.stat().st_size for file in output.iterdir()) / SMALL)
        shutil.rmtree(output)

    rows = []
    for workers in (1, machine()["cores"]):
        small, large = (times[images, workers] for images in (SMALL, LARGE))
        steady = [(LARGE - SMALL) / (b - a) for a, b in zip(small, large, strict=True)]
        rows.append(
            {
                "workers": workers,
                "images_per_second": round(statistics.median(steady)),
                "all": [round(rate) for rate in steady],
                "seconds": {str(images): round(statistics.median(times[images, workers]), 1) for images in sources},
            }
        )
    save(
        "prepare_speed",
        photographs=len(files),
        mean_source_bytes=round(statistics.mean(file.stat().st_size for file in files)),
        rates=rows,
        largest_process_mb={str(images): round(peak) for images, peak in memory.items()},
        bytes_per_image=disk,
        other_versions={name: version(name) for name in ("pillow", "simplejpeg", "array_record")},
    )


if __name__ == "__main__":
    main()
