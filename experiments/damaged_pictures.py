"""Pictures of all formats and modes that the package reads, and how they are damaged, for picture_fuzzer.py."""

import functools
import io
import random
import struct
import zlib
from typing import Any

import cv2
import numpy as np
from PIL import Image

from alexnet_jax.data.pictures import FORMATS


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
    add("ICO", image("RGB").quantize(8), sizes=[(16, 16)], bitmap_format="bmp")
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
