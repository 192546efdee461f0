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
import functools
import io
import multiprocessing
import os
import random
import re
import struct
import sys
import tempfile
import time
import warnings
import zlib
from multiprocessing.connection import Connection
from typing import Any

os.environ["OPENCV_LOG_LEVEL"] = "SILENT"
import cv2
import numpy as np
from PIL import Image
from record import save

from alexnet_jax.data.pictures import FORMATS, open_picture

SECONDS = 10  # in which a file must have been answered
ALLOWED = collections.defaultdict(lambda: 2, JPEG=4)  # grey levels


def drawn(mode: str, seed: int) -> np.ndarray:
    """A smooth picture of 24 × 32, with its top left corner marked."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:24, :32] / 32
    channels = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4, "CMYK": 4}[mode]
    waves = [np.sin(rng.uniform(1, 6) * x + rng.uniform(1, 6) * y + rng.uniform(0, 6)) for _ in range(channels)]
    pixels = (127 + 100 * np.stack(waves, -1)).astype(np.uint8)
    pixels[:6, :6] = 250
    return pixels


@functools.cache
def originals() -> list[tuple[str, bytes]]:
    """(format, file) of every format, in the modes, depths and compressions that it has."""
    found: list[tuple[str, bytes]] = []

    def add(format: str, image: Image.Image, **options: Any) -> None:
        file = io.BytesIO()
        image.save(file, format, **options)
        found.append((format, file.getvalue()))

    def by_opencv(format: str, end: str, pixels: np.ndarray, *options: int) -> None:
        found.append((format, cv2.imencode(end, pixels, options)[1].tobytes()))

    def image(mode: str) -> Image.Image:
        return Image.frombytes(mode, (32, 24), drawn(mode, len(found)).tobytes())

    exif = Image.Exif()
    exif[0x0112], exif[0x010F], exif[0x011A] = 6, "maker", 72.0
    for mode in ("L", "RGB", "CMYK"):
        add("JPEG", image(mode), quality=90)
    add("JPEG", image("RGB"), progressive=True, exif=exif, icc_profile=b"\0" * 200, comment="text")
    add("JPEG", image("RGB"), subsampling=0, restart_marker_blocks=2)
    for mode in ("L", "LA", "RGB", "RGBA"):
        add("PNG", image(mode))
    add("PNG", image("RGB"), exif=exif, transparency=(250, 250, 250), dpi=(72, 72), icc_profile=b"\0" * 200)
    add("PNG", image("RGB").quantize(16), transparency=3)
    add("PNG", image("L").convert("1"))
    add("PNG", Image.fromarray(drawn("L", 1)[..., 0].astype(np.uint16) * 257))
    by_opencv("PNG", ".png", drawn("RGB", 2).astype(np.uint16) * 257)
    add("GIF", image("RGB").quantize(32), transparency=2)
    add("GIF", image("L"), interlace=0)
    add("GIF", image("RGB"), save_all=True, append_images=[image("RGB")])
    for mode in ("RGB", "RGBA"):
        add("WEBP", image(mode), lossless=True)
        add("WEBP", image(mode), quality=80, exif=exif, icc_profile=b"\0" * 200)
    for picture in (image("L"), image("RGB"), image("RGBA"), image("L").convert("1"), image("RGB").quantize(8)):
        add("BMP", picture)
        add("TIFF", picture)
        add("ICO", picture.convert("RGBA"), sizes=[(16, 16)])
    add("ICO", image("RGBA"), sizes=[(16, 16)], bitmap_format="bmp")
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"):
        add("TIFF", image("RGB"), compression=compression, exif=exif)
    add("TIFF", image("CMYK"))
    add("TIFF", image("L").convert("1"), compression="group4")
    add("TIFF", Image.fromarray(drawn("L", 3)[..., 0] / np.float32(255)))
    add("TIFF", Image.fromarray(drawn("L", 4)[..., 0].astype(np.uint16) * 257))
    for mode in ("L", "RGB", "RGBA"):
        add("JPEG2000", image(mode))
    add("JPEG2000", image("RGB"), irreversible=True, no_jp2=True)
    add("AVIF", image("RGB"), quality=90, exif=exif)
    add("AVIF", image("RGBA"), quality=90)
    for mode in ("L", "RGB"):
        add("PPM", image(mode))
    add("PPM", image("L").convert("1"))
    found.append(("PPM", b"P3 2 2 255 9 8 7 60 50 40 200 100 0 255 255 255\n"))
    found.append(("PPM", b"P5 32 24 65535\n" + drawn("L", 5).astype(">u2").tobytes()))
    for mode in ("L", "RGB", "RGBA"):
        add("TGA", image(mode))
        add("TGA", image(mode), compression="tga_rle")
    add("TGA", image("RGB").quantize(16))
    assert {format for format, _ in found} == set(FORMATS)
    return found


def damaged(number: int) -> tuple[str, bytes]:
    """(format, file): a function of the number."""
    rng = random.Random(number)
    format, whole = originals()[number % len(originals())]
    if rng.random() < 0.25:
        file = with_side_data(format, whole, rng)
        if file is not None:
            return format, file
    content = bytearray(whole)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 20))):
        # A quarter of it near the start, where a file says what it is.
        near = rng.choice((120, len(content), len(content), len(content)))
        at = rng.randrange(min(len(content), near)) if content else 0
        kind = rng.randrange(7)
        if kind == 0:
            content[at : at + 1] = bytes([rng.randrange(256)])
        elif kind == 1:
            content[at : at + 1] = bytes([content[at] ^ 1 << rng.randrange(8)]) if content else b""
        elif kind == 2:
            del content[at : at + rng.randrange(1, 20)]
        elif kind == 3:
            content[at:at] = rng.randbytes(rng.randrange(1, 20))
        elif kind == 4:
            large = rng.choice((0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF))
            content[at : at + 4] = struct.pack(rng.choice("<>") + "I", large)
        elif kind == 5 and rng.random() < 0.3:
            del content[at:]
        else:
            other = rng.choice(originals())[1]
            start = rng.randrange(len(other))
            content[at : at + 16] = other[start : start + 16]
    return format, with_right_sums(bytes(content)) if format == "PNG" and rng.random() < 0.5 else bytes(content)


def with_right_sums(png: bytes) -> bytes:
    """A PNG whose check sums hide what was changed."""
    made, at = [png[:8]], 8
    while at + 12 <= len(png):
        size = min(struct.unpack_from(">I", png, at)[0], len(png) - at - 12)
        chunk = png[at + 4 : at + 8 + size]
        made.append(png[at : at + 4] + chunk + struct.pack(">I", zlib.crc32(chunk)))
        at += 12 + size
    return b"".join(made)


def with_side_data(format: str, whole: bytes, rng: random.Random) -> bytes | None:
    """A whole picture with EXIF, a text or a profile of random bytes; None where the format is not known here to."""
    exif = bytearray(b"II*\0\x08\0\0\0" + rng.randbytes(rng.randrange(60)))
    content = bytes(exif) if rng.random() < 0.7 else rng.randbytes(rng.randrange(80))
    if format == "JPEG":
        marker, start = rng.choice(((0xE1, b"Exif\0\0"), (0xE2, b"ICC_PROFILE\0"), (0xE2, b"MPF\0"), (0xFE, b""),
                                    (0xE1, b"http://ns.adobe.com/xap/1.0/\0"), (0xED, b"Photoshop 3.0\x008BIM"),
                                    (0xE0, b"JFIF\0"), (0xEE, b"Adobe")))  # fmt: skip
        if marker == 0xEE and len(content) >= 7:
            return None  # this one says how the colours are stored
        return whole[:2] + struct.pack(">BBH", 0xFF, marker, 2 + len(start + content)) + start + content + whole[2:]
    if format == "PNG":
        name = rng.choice((b"eXIf", b"tEXt", b"zTXt", b"iTXt", b"iCCP", b"gAMA", b"cHRM", b"pHYs", b"sRGB", b"acTL"))
        check = zlib.crc32(name + content) ^ rng.choice((0, 1))
        return whole[:33] + struct.pack(">I", len(content)) + name + content + struct.pack(">I", check) + whole[33:]
    if format == "WEBP":
        chunk = rng.choice((b"EXIF", b"XMP ", b"ICCP")) + struct.pack("<I", len(content)) + content
        chunk += b"\0" * (len(content) % 2)
        return whole[:4] + struct.pack("<I", len(whole) - 8 + len(chunk)) + whole[8:] + chunk
    return None


def by_opencv(content: bytes) -> np.ndarray | None:
    """RGB of 8 bits on white, as the file has its rows; None where OpenCV does not read it."""
    if not content or (content[:2] == b"BM" and content[10:14] == bytes(4)):
        return None  # in a BMP that does not say where its pixels lie it takes the header for pixels
    if b"acTL" in content:
        return None  # it takes minutes for some damaged animations
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
