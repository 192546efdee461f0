"""Which library decodes the training images: images/s on one core, of 256×256 JPEGs as alexnet_jax.prepare writes them.

  pip install opencv-python-headless
  python experiments/jpeg_decoders.py --dataset=PREPARED        under a minute

Interleaved, median of the repeats. Expected: simplejpeg and OpenCV (RGB read) together in front, Pillow behind.
"""

import argparse
import io
import statistics
import time
from importlib.metadata import version

import cv2
import numpy as np
import simplejpeg
from PIL import Image
from record import save

from alexnet_jax.data.datasets import open_dataset

DECODERS = {
    "simplejpeg": lambda jpeg: simplejpeg.decode_jpeg(jpeg, "RGB"),
    "opencv-python-headless": lambda jpeg: cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR_RGB),
    "pillow": lambda jpeg: np.asarray(Image.open(io.BytesIO(jpeg))),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--repeats", type=int, default=9)
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    records = open_dataset(arguments.dataset).splits["train"]
    jpegs = [records[index]["image"] for index in range(min(arguments.images, len(records)))]
    rates: dict[str, list[float]] = {name: [] for name in DECODERS}
    for _ in range(arguments.repeats):
        for name, decode in DECODERS.items():
            start = time.perf_counter()
            for jpeg in jpegs:
                decode(jpeg)
            rates[name].append(len(jpegs) / (time.perf_counter() - start))
    save(
        "jpeg_decoders",
        images=len(jpegs),
        mean_bytes=round(statistics.mean(map(len, jpegs))),
        decoder_versions={name: version(name) for name in DECODERS},
        images_per_second={name: round(statistics.median(values)) for name, values in rates.items()},
    )


if __name__ == "__main__":
    main()
