"""Damaged pictures: no file crashes, hangs or warns, and none is read as another picture.

  python experiments/picture_fuzzer.py --files=5000        half a minute on two cores

Small pictures of all formats and modes that the package reads, each damaged at random: bytes changed, left out or put
in, numbers made large, the end cut off, pieces of another file, EXIF and texts of random bytes. Each is read, in a
process that is watched, as `prepare` reads it, and by OpenCV (pip install -e '.[parity]'), which has decoders of its
own for most of them. Expected: an answer within ten seconds, an error of one line or a picture; nothing on stderr; and
where both decoders read a file without complaint, pixels that differ by 2 grey levels at most (JPEG: 4).
"""

import argparse
import collections
import multiprocessing
import os
import re
import struct
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Any

os.environ["OPENCV_LOG_LEVEL"] = "SILENT"
import cv2
import numpy as np
from damaged_pictures import damaged, originals
from PIL import Image
from record import save

from alexnet_jax.data.pictures import FORMATS, open_picture

SECONDS = 10  # in which a file must have been answered
ALLOWED = collections.defaultdict(lambda: 2, JPEG=4)  # grey levels


def by_opencv(content: bytes) -> np.ndarray | None:
    """RGB of 8 bits on white, as the file has its rows; None where OpenCV does not read it."""
    if not content or (content[:2] == b"BM" and content[10:14] == bytes(4)):
        return None  # in a BMP that does not say where its pixels lie it takes the header for pixels
    if b"acTL" in content:
        return None  # it takes minutes for some damaged animations
    if any(size > len(content) for size in _chunk_sizes(content)):
        return None  # it asks for that much memory, for seconds
    if re.match(rb"P[2356]\s+\d+\s+\d+\s+(?!255\s|65535\s)", content) or b"\6\1\3\0\1\0\0\0\6\0" in content:
        return None  # it takes no notice of what is white in a PPM, and of colours as YCbCr in a TIFF
    try:
        found = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        return None
    if content[:2] in (b"II", b"MM") and found is not None and found.shape[2:] == (4,):
        return None  # it gives the colours of a TIFF multiplied by the transparency
    if found is None or (found.dtype.kind == "f" and not (found.min() >= 0 and found.max() <= 1)):
        return None
    white = {"uint8": 255, "uint16": 65535}.get(found.dtype.name, 1)
    pixels = found.astype(np.float64) * 255 / white
    pixels = pixels if pixels.ndim == 3 else pixels[..., None]
    if pixels.shape[-1] in (2, 4):
        alpha = pixels[..., -1:] / 255
        pixels = pixels[..., :-1] * alpha + 255 * (1 - alpha)
    return np.broadcast_to(pixels[..., ::-1], (*pixels.shape[:2], 3))


def _chunk_sizes(content: bytes) -> Iterator[int]:
    """Of a PNG, as it says."""
    at = 8 if content.startswith(b"\x89PNG") else len(content)
    while at + 4 <= len(content):
        yield (size := struct.unpack_from(">I", content, at)[0])
        at += 12 + size


def difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The largest one of a pixel, however either was turned; infinite where they are of different sizes."""
    turned = [np.rot90(of, quarter) for of in (theirs, theirs[:, ::-1]) for quarter in range(4)]
    return min((np.abs(ours - of).max() for of in turned if of.shape == ours.shape), default=float("inf"))


def look(number: int, noise: int) -> tuple[str, Any]:
    """("read", difference or None), ("refused", message) or ("wrong", what). noise: the file that stderr is."""
    _, content = damaged(number)
    os.ftruncate(noise, 0)
    try:
        ours, answer = open_picture(content, 1), None
    except ValueError as error:
        text = str(error)
        answer = ("refused", text) if text and "\n" not in text else ("wrong", f"an error of {text!r}")
    sys.stderr.flush()
    if size := os.fstat(noise).st_size:
        return "wrong", f"on stderr: {os.pread(noise, size, 0).decode(errors='replace').strip()[-300:]}"
    if answer:
        return answer
    theirs = by_opencv(content)
    return "read", None if theirs is None else difference(np.asarray(ours, np.float64), theirs)


def watched(here: Connection, stderr: str, numbers: range) -> None:
    """In a process of its own: looks at files, and tells what became of each."""
    noise = os.open(stderr, os.O_RDWR | os.O_CREAT | os.O_APPEND)
    originals()
    os.dup2(noise, 2)
    warnings.simplefilter("always")
    for number in numbers:
        here.send(number)
        try:
            answer = look(number, noise)
        except BaseException as error:
            answer = ("wrong", f"{type(error).__name__}: {error}")
        here.send(answer)


def looked_at(files: int, first: int) -> list[tuple[int, str, Any]]:
    """(number, answer, of it) of each file; a process that crashes or hangs is followed by another."""
    context, found, number = multiprocessing.get_context("spawn"), [], first
    with tempfile.TemporaryDirectory() as scratch:
        while number < first + files:
            here, there = context.Pipe()
            numbers = range(number, first + files)
            process = context.Process(target=watched, args=(there, f"{scratch}/stderr", numbers), daemon=True)
            process.start()
            there.close()
            begun = None
            try:
                while number < first + files:
                    if not here.poll(60 if begun is None else SECONDS):
                        raise TimeoutError
                    answer = here.recv()
                    if isinstance(answer, int):
                        begun = number = answer
                        continue
                    found.append((number, *answer))
                    number += 1
                    if len(found) % 500 == 0:
                        print(f"{len(found)} files", flush=True)
            except (EOFError, TimeoutError) as error:
                process.kill()
                process.join()
                if begun is None:
                    sys.exit("the process that is watched does not start")
                what = "hangs" if isinstance(error, TimeoutError) else f"crashes: exit status {process.exitcode}"
                found.append((number, "wrong", what))
                number += 1
            process.kill()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=5000)
    parser.add_argument("--first", type=int, default=0, help="number of the first file")
    parser.add_argument("--no_log", action="store_true")
    arguments = parser.parse_args()
    began, of_format = time.monotonic(), {format: collections.Counter() for format in FORMATS}
    wrong, largest = [], collections.Counter()
    for number, answer, of in looked_at(arguments.files, arguments.first):
        format, content = damaged(number)
        count = of_format[format]
        count["files"] += 1
        count[answer] += 1
        if answer == "read" and of is not None:
            count["compared"] += 1
            largest[format] = max(largest[format], of)
            if of > ALLOWED[format]:
                answer, of = "wrong", f"differs by {of:.1f} from OpenCV's"
                count["wrong"] += 1
        if answer == "wrong":
            wrong.append(f"{number}: {format}, {len(content)} bytes: {of}")
            print(wrong[-1], flush=True)
    for format, count in of_format.items():
        print(f"{format}: {dict(count)}, at most {largest[format]:.2f} from OpenCV's")
    print(f"{arguments.files} files, {len(wrong)} wrong")
    if not arguments.no_log:
        save(
            "picture_fuzzer", files=arguments.files, first=arguments.first, wrong=wrong,
            allowed={"JPEG": 4, "others": 2},
            formats={name: {**count, "largest": round(float(largest[name]), 2)} for name, count in of_format.items()},
            opencv=cv2.__version__, pillow=Image.__version__, minutes=round((time.monotonic() - began) / 60, 1),
        )  # fmt: skip
    if wrong:
        sys.exit(f"{len(wrong)} files were not as expected")


if __name__ == "__main__":
    main()
