"""The door for pictures: which files are read, that side data decides nothing, units, transparency, and no noise."""

import contextlib
import io
import logging
import os
import random
import struct
import sys
import threading
import time
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from alexnet_jax.data import pictures
from alexnet_jax.data.images import read_file, upright_rgb
from alexnet_jax.data.tiff import MOST_SAID, libtiff
from alexnet_jax.options import InputError
from alexnet_jax.shown import say

CORNERS = ((230, 30, 30), (30, 200, 40), (20, 40, 220), (120, 120, 120))  # from left to right, from top to bottom
GREYS = (200, 30, 120, 60)


def quadrants(colors, side=16):
    of = np.asarray(colors)
    return np.kron(of.reshape(2, 2, *of.shape[1:]), np.ones((side, side, *[1] * (of.ndim - 1)), of.dtype))


def picture():
    return Image.fromarray(quadrants(CORNERS).astype(np.uint8))


def encoded(image, format, **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def corners_of(content):
    """As it is read, in the middle of each quadrant."""
    pixels = upright_rgb(content, 32)
    return [pixels[y, x].tolist() for y in (8, 24) for x in (8, 24)]


def shows(content, expected=CORNERS, within=6):
    np.testing.assert_allclose(corners_of(content), expected, atol=within)


def grey(values):
    return [[value] * 3 for value in values]


# Which files


@pytest.mark.parametrize(
    ("format", "options"),
    [
        ("JPEG", {}), ("PNG", {}), ("GIF", {}), ("WEBP", {"lossless": True}), ("BMP", {}), ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}), ("JPEG2000", {}), ("AVIF", {}), ("ICO", {"sizes": [(32, 32)]}),
        ("TGA", {}), ("PPM", {}), ("MPO", {}),
    ],
)  # fmt: skip
def test_every_format_of_the_list(format, options):
    shows(encoded(picture(), format, **options), within=12)


@pytest.mark.parametrize("format", ["EPS", "PCX", "SGI", "DDS", "ICNS", "XBM", "SPIDER", "MSP"])
def test_no_other_format(format):
    image = picture().convert({"XBM": "1", "MSP": "1", "SPIDER": "F"}.get(format, "RGB"))
    content = encoded(image, format)
    with Image.open(io.BytesIO(content)) as as_pillow_would:
        assert as_pillow_would.format == format
    with pytest.raises(ValueError, match="is not an image of a known format"):
        upright_rgb(content, 32)


def test_no_format_that_somebody_registers(monkeypatch):
    class Evil(Image.Image):
        def __init__(self, *arguments):
            raise AssertionError("was asked")

    for registry in ("ID", "OPEN", "EXTENSION"):
        monkeypatch.setattr(Image, registry, type(getattr(Image, registry))(getattr(Image, registry)))
    Image.register_open("EVIL", Evil, lambda prefix: True)
    with pytest.raises(ValueError, match="is not an image of a known format"):
        upright_rgb(b"evil" * 20, 32)


def test_no_program_is_started(tmp_path, monkeypatch):
    """An EPS is a program in PostScript, for which Pillow starts Ghostscript."""
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    (tmp_path / "photo.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    with pytest.raises(InputError, match=r"photo\.jpg: is not an image of a known format"):
        read_file(tmp_path / "photo.jpg", 32)
    assert not (tmp_path / "started").exists()


HEIC_HEAD = struct.pack(">I", 24) + b"ftypheic\0\0\0\0mif1heic" + b"\0" * 40


def test_heic_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(ValueError, match=r"is a HEIC, which is read with pip install 'alexnet_jax\[heic\]'"):
        upright_rgb(HEIC_HEAD, 32)


def test_heic_is_read_upright():
    heif = pytest.importorskip("pillow_heif", reason="HEIC is read with pillow-heif, of the extra [heic]")
    turned = Image.Exif()
    turned[0x0112] = 6
    file = io.BytesIO()
    heif.from_pillow(stored_on_its_side()).save(file, quality=95, exif=turned.tobytes())
    shows(file.getvalue(), within=12)
    for cut in range(0, len(file.getvalue()), 97):
        with contextlib.suppress(ValueError):
            upright_rgb(file.getvalue()[:cut], 32)


def test_a_kind_of_a_known_format_that_is_not_read():
    with pytest.raises(ValueError, match="is a damaged TIFF, or of a kind that is not read"):
        upright_rgb(tiff(np.zeros((4, 4), np.float64), 64, 3), 32)


# Side data


def exif(*entries, order="<"):
    """A TIFF structure of (tag, kind, number, four bytes)."""
    head = {"<": b"II*\0\x08\0\0\0", ">": b"MM\0*\0\0\0\x08"}[order]
    packed = b"".join(struct.pack(f"{order}HHI4s", *entry) for entry in entries)
    return head + struct.pack(f"{order}H", len(entries)) + packed + b"\0" * 40


ON_ITS_SIDE = (0x0112, 3, 1, b"\x06\0\0\0")
ODD_EXIF = {
    "plain": exif(ON_ITS_SIDE),
    "the maker as a fraction": exif((0x010F, 5, 1, b"\x40\0\0\0"), ON_ITS_SIDE),
    "a fraction with nothing below": exif(ON_ITS_SIDE, (0x9201, 10, 1, b"\x40\0\0\0")),
    "more than there is": exif((0x010F, 2, 0x7FFFFFFF, b"\0\0\0\x7f"), ON_ITS_SIDE),
    "a kind that there is not": exif((0x010F, 99, 1, b"abcd"), ON_ITS_SIDE),
    "as a long number": exif((0x0112, 4, 1, b"\x06\0\0\0")),
    "big-endian": exif((0x0112, 3, 1, b"\0\x06\0\0"), order=">"),
    "a directory that is cut off": exif(ON_ITS_SIDE)[:22],
    "pointers in a circle": exif(ON_ITS_SIDE, (0x8769, 4, 1, b"\x08\0\0\0"), (0x8825, 4, 1, b"\x08\0\0\0")),
}
LYING = {
    "nothing": b"", "noise": b"noise" * 9, "only a head": exif()[:8], "up to 9": exif((0x0112, 3, 1, b"\x09\0\0\0")),
    "as a text": exif((0x0112, 2, 4, b"6\0\0\0")), "far away": b"II*\0\xff\xff\xff\xff",
}  # fmt: skip


def in_jpeg(marker, content, whole=None):
    whole = whole or encoded(stored_on_its_side(), "JPEG", quality=95)
    return whole[:2] + struct.pack(">BBH", 0xFF, marker, 2 + len(content)) + content + whole[2:]


def in_png(name, content, check=0, whole=None):
    whole = whole or encoded(stored_on_its_side(), "PNG")
    sum_ = struct.pack(">I", zlib.crc32(name + content) ^ check)
    return whole[:33] + struct.pack(">I", len(content)) + name + content + sum_ + whole[33:]


def in_webp(name, content):
    whole = encoded(stored_on_its_side(), "WEBP", lossless=True, exif=b"Exif\0\0" + exif())
    at = whole.index(b"EXIF")
    chunks = whole[12:at] + name + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2)
    return b"RIFF" + struct.pack("<I", len(chunks) + 4) + b"WEBP" + chunks


def stored_on_its_side():
    return picture().transpose(Image.Transpose.ROTATE_90)


@pytest.mark.parametrize("kind", ODD_EXIF)
@pytest.mark.parametrize("put", [
    lambda content: in_jpeg(0xE1, b"Exif\0\0" + content),
    lambda content: in_png(b"eXIf", content),
    lambda content: in_webp(b"EXIF", content),
], ids=["JPEG", "PNG", "WEBP"])  # fmt: skip
def test_orientation_is_read_whatever_else_exif_says(kind, put):
    shows(put(ODD_EXIF[kind]), within=10)


@pytest.mark.parametrize("kind", LYING)
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_an_orientation_that_is_none_turns_nothing(kind, format):
    put = {"JPEG": lambda of: in_jpeg(0xE1, b"Exif\0\0" + of), "PNG": lambda of: in_png(b"eXIf", of),
           "WEBP": lambda of: in_webp(b"EXIF", of)}[format]  # fmt: skip
    seen = corners_of(put(LYING[kind]))
    np.testing.assert_allclose(seen, corners_of(encoded(stored_on_its_side(), "PNG")), atol=10)


ICC = b"ICC_PROFILE\0"


@pytest.mark.parametrize(
    ("marker", "content"),
    [
        (0xE2, ICC), (0xE2, ICC + b"\1"), (0xE2, ICC + b"\2\3" + b"x" * 50), (0xE2, b"MPF\0II*\0\xff\xff\xff\xff"),
        (0xED, b"Photoshop 3.0\x008BIM\x04\x04\xff"), (0xED, b"Photoshop 3.0\x008BIM" + b"\xff" * 30), (0xFE, b""),
        (0xFE, b"\xff" * 300), (0xE0, b"JFIF\0"), (0xE0, b"JFIF\0\1\1\7\0\0\0\0"), (0xEE, b"Adobe"), (0xE1, b""),
        (0xE1, b"http://ns.adobe.com/xap/1.0/\0<not closed"), (0xEC, b"Ducky"), (0xEF, b"\0"),
    ],
)  # fmt: skip
def test_segments_of_a_jpeg_do_not_decide(marker, content):
    shows(in_jpeg(marker, content, encoded(picture(), "JPEG", quality=95)), within=10)


@pytest.mark.parametrize(
    ("name", "content", "check"),
    [
        (b"tEXt", b"no end", 0), (b"tEXt", b"a\0b", 1), (b"zTXt", b"bomb\0\0" + zlib.compress(bytes(80_000_000)), 0),
        (b"zTXt", b"a\0\0damaged", 0), (b"zTXt", b"a\0\7", 0), (b"iTXt", b"a\0\1\0\0\0\xff", 0), (b"iTXt", b"\xff", 0),
        (b"iCCP", b"icc\0\0" + zlib.compress(bytes(80_000_000)), 0), (b"iCCP", b"icc", 0), (b"iCCP", b"i\0\1", 0),
        (b"gAMA", b"\0", 0), (b"cHRM", b"\0" * 7, 0), (b"pHYs", b"", 0), (b"sRGB", b"", 0), (b"tIME", b"", 1),
        (b"acTL", b"\0" * 8, 0), (b"acTL", b"\xff" * 8, 0), (b"eXIf", b"noise", 1), (b"xxXx", b"own", 1),
    ],
)  # fmt: skip
def test_chunks_of_a_png_do_not_decide(name, content, check):
    shows(in_png(name, content, check, encoded(picture(), "PNG")), within=0)


@pytest.mark.parametrize("name", [b"EXIF", b"XMP ", b"ICCP"])
def test_chunks_of_a_webp_do_not_decide(name):
    seen = corners_of(in_webp(name, b"\xff" * 41))
    assert seen == corners_of(encoded(stored_on_its_side(), "PNG"))


def tiff(pixels, bits, form=1, extra=()):
    """A TIFF of grey pixels. form: 1 whole numbers, 2 with a sign, 3 floating-point. extra: more entries."""
    height, width = pixels.shape
    data = pixels.tobytes()
    entries = [
        (256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, bits), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 8),
        (277, 3, 1, 1), (278, 4, 1, height), (279, 4, 1, len(data)), (339, 3, 1, form), *extra,
    ]  # fmt: skip
    packed = b"".join(struct.pack("<HHII", *entry) for entry in sorted(entries))
    data += b"\0" * (len(data) % 2)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(entries)) + packed + bytes(4)


@pytest.mark.parametrize(
    "entry",
    [
        (282, 5, 2, 8), (282, 2, 4, 0x41414141), (283, 12, 9, 0xFFFFFFF0), (270, 2, 0x7FFFFFFF, 8), (34665, 4, 1, 8),
        (34675, 7, 0xFFFFFFF, 0), (700, 99, 1, 0), (33432, 2, 5, 0xFFFFFFFF), (330, 4, 1, 8), (296, 3, 2, 9),
    ],
)  # fmt: skip
def test_entries_of_a_tiff_do_not_decide(entry):
    plain = quadrants(GREYS).astype(np.uint8)
    shows(tiff(plain, 8, extra=[entry]), grey(GREYS), within=0)


def test_a_tiff_is_turned():
    stored = np.ascontiguousarray(np.rot90(quadrants(GREYS).astype(np.uint8)))
    shows(tiff(stored, 8, extra=[(0x0112, 3, 1, 6), (282, 5, 2, 8)]), grey(GREYS), within=0)


def test_a_tiff_of_which_rows_are_missing():
    content = tiff(quadrants(GREYS).astype(np.uint8), 8)
    higher = content.replace(struct.pack("<HHII", 257, 4, 1, 32), struct.pack("<HHII", 257, 4, 1, 300))
    with pytest.raises(ValueError, match=r"is damaged \(not all of it is there"):
        upright_rgb(higher, 32)


def test_a_damaged_transparency_is_not_believed():
    content = png(quadrants([255, 85, 0, 170]), 8, 0, [85])
    at = content.index(b"tRNS") + 5
    with pytest.raises(ValueError, match="is a damaged PNG"):
        upright_rgb(content[:at] + b"\0" + content[at + 1 :], 32)


def test_exif_of_an_avif_does_not_count():
    """What its own properties say does; and Pillow would refuse it for some EXIF."""
    turned = encoded(stored_on_its_side(), "AVIF", quality=95, exif=exif(ON_ITS_SIDE))
    shows(turned, within=12)


@pytest.mark.parametrize("seed", range(40))
def test_random_side_data_changes_nothing(seed):
    rng = random.Random(seed)
    content = rng.randbytes(rng.randrange(80))
    content = content if seed % 2 else exif()[:8] + content
    for marker in (0xE1, 0xE2, 0xED, 0xFE):
        start = {0xE1: b"http://ns.adobe.com/", 0xE2: ICC, 0xED: b"Photoshop 3.0\0", 0xFE: b""}[marker]
        shows(in_jpeg(marker, start + content, encoded(picture(), "JPEG", quality=95)), within=10)
    for name in (b"tEXt", b"zTXt", b"iTXt", b"iCCP", b"pHYs", b"gAMA", b"sPLT", b"hIST", b"bKGD"):
        shows(in_png(name, content, rng.choice((0, 1)), encoded(picture(), "PNG")), within=0)


# Units


@pytest.mark.parametrize(
    ("pixels", "bits", "form"),
    [
        (quadrants(GREYS).astype(np.uint8), 8, 1),
        ((quadrants(GREYS) * 257).astype(np.uint16), 16, 1),
        ((quadrants(GREYS) / 255).astype(np.float32), 32, 3),
    ],
    ids=["8 bits", "16 bits", "0 to 1"],
)
def test_units_of_a_tiff_are_scaled(pixels, bits, form):
    shows(tiff(pixels, bits, form), grey(GREYS), within=0)


def test_a_tiff_of_twelve_bits():
    values = (quadrants(GREYS) * 4095 // 255).astype(np.uint16).reshape(-1, 2)
    packed = np.stack([values[:, 0] >> 4, (values[:, 0] & 15) << 4 | values[:, 1] >> 8, values[:, 1] & 255], 1)
    content = tiff(packed.astype(np.uint8).reshape(32, 48), 12)
    content = content.replace(struct.pack("<HHII", 256, 4, 1, 48), struct.pack("<HHII", 256, 4, 1, 32))
    shows(content, grey(GREYS), within=1)


@pytest.mark.parametrize(
    ("pixels", "bits", "form", "message"),
    [
        (quadrants(GREYS).astype(np.float32), 32, 3, "holds numbers from 30 to 200, where 0 to 1 are meant"),
        (quadrants((0.5, -0.1, 1, 0)).astype(np.float32), 32, 3, "holds numbers from -0.1 to 1, where"),
        (quadrants((0.5, np.nan, 1, 0)).astype(np.float32), 32, 3, "holds numbers from nan to nan, where"),
        (quadrants((0.5, np.inf, 1, 0)).astype(np.float32), 32, 3, "holds numbers from 0 to inf, where"),
        (quadrants(GREYS).astype(np.int32), 32, 2, "holds integers of which nobody knows what is white"),
        (quadrants(GREYS).astype(np.uint32), 32, 1, "holds integers of which nobody knows what is white"),
        (quadrants(GREYS).astype(np.int16), 16, 2, "holds integers of which nobody knows what is white"),
    ],
)
def test_other_units_are_refused(pixels, bits, form, message):
    with pytest.raises(ValueError, match=message):
        upright_rgb(tiff(pixels, bits, form), 32)


def test_units_of_a_ppm():
    for white in (255, 4095, 65535):
        values = (quadrants(GREYS) / 255 * white).round().astype(">u2" if white > 255 else np.uint8)
        shows(b"P5 32 32 %d\n" % white + values.tobytes(), grey(GREYS), within=1)
    floats = (quadrants(GREYS)[::-1] / 255).astype("<f4")
    shows(b"Pf\n32 32\n-1.0\n" + floats.tobytes(), grey(GREYS), within=1)


# Transparency


def png(pixels, depth, kind, transparent):
    """A PNG of these rows, with a colour that is transparent."""

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    if depth < 8:
        bits = ((pixels[..., None] >> np.arange(depth - 1, -1, -1)) & 1).reshape(len(pixels), -1).astype(np.uint8)
        rows = np.packbits(bits, axis=1)
    else:
        rows = pixels.astype(">u2" if depth == 16 else np.uint8)
    lines = b"".join(b"\0" + row.tobytes() for row in rows)
    head = struct.pack(">IIBBBBB", 32, 32, depth, kind, 0, 0, 0)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"tRNS", np.asarray(transparent, ">u2").tobytes())
            + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b""))  # fmt: skip


@pytest.mark.parametrize("depth", [2, 4, 8, 16])
def test_a_transparent_grey_is_white(depth):
    white = 2**depth - 1
    values = [white, white // 3, 0, white * 2 // 3]
    pixels = quadrants(values)
    shows(png(pixels, depth, 0, [values[1]]), grey([255, 255, 0, 170]), within=1)
    shows(png(pixels, depth, 0, [values[1] + 2**depth & 65535]), grey([255, 255, 0, 170]), within=1)  # 16 bits are kept


def test_a_transparent_black_of_one_bit_is_white():
    shows(png(quadrants([1, 0, 1, 0]), 1, 0, [0]), grey([255] * 4), within=0)
    shows(png(quadrants([1, 0, 1, 0]), 1, 0, [1]), grey([255, 0, 255, 0]), within=0)


@pytest.mark.parametrize("depth", [8, 16])
def test_a_transparent_colour_is_white(depth):
    scale = 257 if depth == 16 else 1
    pixels = quadrants(CORNERS) * scale
    expected = [CORNERS[0], (255, 255, 255), *CORNERS[2:]]
    shows(png(pixels, depth, 2, np.array(CORNERS[1]) * scale), expected, within=1)


def test_transparency_of_other_kinds_is_white():
    rgba = np.concatenate([quadrants(CORNERS), quadrants([255, 0, 255, 255])[..., None]], -1).astype(np.uint8)
    expected = [CORNERS[0], (255, 255, 255), *CORNERS[2:]]
    for format, options in (("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {}), ("TGA", {}), ("JPEG2000", {})):
        shows(encoded(Image.fromarray(rgba), format, **options), expected)
    for format in ("PNG", "GIF"):
        shows(encoded(picture().quantize(4), format, transparency=picture().quantize(4).getpixel((24, 8))), expected)
    half = Image.fromarray(np.full((32, 32, 2), (100, 51), np.uint8))
    shows(encoded(half, "PNG"), grey([224] * 4), within=1)


# Large ones


def test_a_large_jpeg_is_read_at_a_fraction():
    small = picture().resize((400, 400), Image.Resampling.NEAREST)
    content = encoded(small, "JPEG", quality=95)
    assert np.asarray(pictures.open_picture(content, 32, 200 * 200)).shape == (50, 50, 3)
    np.testing.assert_allclose(upright_rgb(content, 32, 200 * 200)[8, 8], CORNERS[0], atol=8)
    assert pictures.open_picture(content, 32, 400 * 400).size == (400, 400)
    for size, most in ((400, 400 * 400 - 1), (32, 400 * 400 // 4 - 1)):
        with pytest.raises(ValueError, match=f"has more than {most:,} pixels; --max_pixels allows more"):
            upright_rgb(content, size, most)


@pytest.mark.parametrize("format", ["PNG", "GIF", "WEBP", "BMP", "TIFF", "JPEG2000", "AVIF", "TGA", "PPM"])
def test_a_large_picture_is_refused_by_name_of_the_flag(format):
    content = encoded(picture(), format)
    with pytest.raises(ValueError, match="has more than 1,023 pixels; --max_pixels allows more"):
        upright_rgb(content, 32, 1023)
    assert upright_rgb(content, 32, 1024).shape == (32, 32, 3)


def test_the_limit_is_ones_own_and_not_pillows(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    shows(encoded(picture(), "PNG"), within=0)
    assert Image.MAX_IMAGE_PIXELS == 100


# Palettes


def bmp(bits, palette, rows, first=None):
    """One of 8 × 4 numbers of colours; `first`: where it says that they begin."""
    packed = {8: rows, 4: rows[:, ::2] << 4 | rows[:, 1::2], 1: np.pad(np.packbits(rows, 1), ((0, 0), (0, 3)))}[bits]
    content, colors = packed[::-1].tobytes(), b"".join(struct.pack("BBBx", *color[::-1]) for color in palette)
    first = 54 + len(colors) if first is None else first
    head = struct.pack("<2sIHHIIiiHHIIiiII", b"BM", 54 + len(colors + content), 0, 0, first, 40, 8, 4, 1, bits, 0,
                       len(content), 0, 0, len(palette), 0)  # fmt: skip
    return head + colors + content


@pytest.mark.parametrize(
    ("bits", "palette"),
    [
        (8, [(0, 0, 0), (255, 255, 255)]), (1, [(0, 0, 0), (255, 255, 255)]), (8, [(255, 255, 255), (0, 0, 0)]),
        (4, [(grey, grey, grey) for grey in range(16)]), (4, [(0, 0, 0), (200, 100, 50)]),
        (8, [(grey, grey, grey) for grey in range(256)]), (8, [(10, 20, 30 + color) for color in range(200)]),
    ],
)  # fmt: skip
def test_the_palette_of_a_bmp_is_its_colours_whatever_they_are(bits, palette):
    rows = np.random.default_rng(0).integers(0, len(palette), (4, 8), np.uint8)
    np.testing.assert_array_equal(pictures.open_picture(bmp(bits, palette, rows), 1), np.array(palette, np.uint8)[rows])


def test_colours_that_a_palette_does_not_have_are_refused():
    rows, palette = np.full((4, 8), 2, np.uint8), [(0, 0, 0), (255, 255, 255)]
    with pytest.raises(ValueError, match="it has colours that are not in its palette"):
        pictures.open_picture(bmp(8, palette, rows), 1)
    with pytest.raises(ValueError, match="it has no palette"):
        pictures.open_picture(bmp(8, palette, rows, first=54), 1)


def icon(bits, palette, rows, mask):
    """An ICO of that BMP, without its first 14 bytes and with a mask below it: of twice the height."""
    dib = bytearray(bmp(bits, palette, rows)[14:])
    struct.pack_into("<i", dib, 8, 2 * len(rows))
    dib += np.pad(np.packbits(mask, 1), ((0, 0), (0, 3)))[::-1].tobytes()
    return struct.pack("<HHHBBBBHHII", 0, 1, 1, 8, 4, len(palette) % 256, 0, 1, bits, len(dib), 22) + bytes(dib)


@pytest.mark.parametrize(
    ("bits", "palette"),
    [
        (8, [(0, 0, 0), (255, 255, 255)]), (1, [(255, 255, 255), (0, 0, 0)]), (1, [(0, 0, 0), (255, 255, 255)]),
        (4, [(grey, grey, grey) for grey in range(16)]), (8, [(grey, grey, grey) for grey in range(256)]),
        (8, [(10, 20, 30 + color) for color in range(200)]),
    ],
)  # fmt: skip
def test_so_are_those_of_an_icon_and_what_its_mask_hides_is_white(bits, palette):
    rng = np.random.default_rng(0)
    rows, mask = rng.integers(0, len(palette), (4, 8), np.uint8), rng.integers(0, 2, (4, 8), np.uint8)
    expected = np.where(mask[..., None], 255, np.array(palette, np.uint8)[rows])
    np.testing.assert_array_equal(pictures.open_picture(icon(bits, palette, rows, mask), 1), expected)


def test_an_icon_of_colours_that_its_palette_does_not_have_is_refused():
    content = icon(8, [(0, 0, 0), (255, 0, 0)], np.full((4, 8), 2, np.uint8), np.zeros((4, 8), np.uint8))
    with pytest.raises(ValueError, match="it has colours that are not in its palette"):
        pictures.open_picture(content, 1)


def tiff_with(tag, value, **options):
    """A TIFF of which one number is another; 0: without it."""
    content = bytearray(encoded(picture(), "TIFF", **options))
    at = content.index(struct.pack("<HH", tag, 4)) if struct.pack("<HH", tag, 4) in content else None
    at = content.index(struct.pack("<HH", tag, 3)) if at is None else at
    content[at : at + 12] = struct.pack("<HHII", tag, 4, 1, value) if value else struct.pack("<HHII", 65000, 4, 1, 0)
    return bytes(content)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (lambda: tiff_with(273, 1), "a strip lies in its header"),
        (lambda: tiff_with(279, 0, compression="tiff_lzw"), "it does not say how long its strips are"),
        (lambda: damaged_fax(), "(Bad|Invalid|Uncompressed)"),
    ],
)
def test_a_tiff_whose_pixels_are_no_part_of_it_is_refused(content, problem, capfd):
    with pytest.raises(ValueError, match=rf"is damaged \({problem}"):
        pictures.open_picture(content(), 1)
    assert capfd.readouterr().err == ""


def test_what_libtiff_says_counts_however_much_it_says(capfd):
    with pytest.raises(ValueError, match=r"^Bad code word\.$"), libtiff():
        os.write(2, b"Fax4Decode: Warning, Premature EOL.\n" * 60_000 + b"Fax4Decode: Bad code word.\n")
    with libtiff():
        os.write(2, b"Fax4Decode: Warning, Premature EOL.\n" * 60_000)
    assert capfd.readouterr().err == ""


def test_what_libtiff_says_takes_no_more_memory_than_is_given(capfd):
    def tell():
        for _ in range(30_000):
            with contextlib.suppress(OSError):  # C's functions return it, too
                os.write(2, b"Fax4Decode: Warning, Premature EOL.\n" * 20)
        assert os.fstat(2).st_size == MOST_SAID

    with pytest.raises(ValueError, match=r"^libtiff has more than 16,777,216 bytes to say of it$"), libtiff():
        tell()
    assert capfd.readouterr().err == ""


def test_a_jpeg_of_more_scans_than_anybody_writes_is_refused():
    content = encoded(picture(), "JPEG", progressive=True)
    first = content.index(b"\xff\xda")
    second = content.index(b"\xff\xda", first + 2)
    usual = content.count(b"\xff\xda")
    again = content[first:second]
    shows(content[:first] + again * (pictures.MAX_SCANS - usual) + content[first:], within=8)
    with pytest.raises(ValueError, match=r"^is damaged \(it has 101 scans\)$"):
        pictures.open_picture(content[:first] + again * (pictures.MAX_SCANS - usual + 1) + content[first:], 1)
    shows(content + b"\xff\xda" * 200, within=8)  # what a phone keeps behind it is no part of it


def test_the_usual_side_is_that_of_files():
    content = encoded(picture(), "PNG")
    assert pictures.usual_side([lambda: content, lambda: b"", lambda: content[:9]]) == 32
    assert pictures.usual_side([lambda: np.frombuffer(content, np.uint8)]) == 0


# Threads


def test_threads_read_at_the_same_time_each_with_its_own_limit():
    before = Image.MAX_IMAGE_PIXELS, [*warnings.filters], logging.getLogger("PIL").level
    contents = [encoded(picture(), format) for format in ("PNG", "JPEG", "TIFF", "WEBP")]

    def read(number):
        content, most = contents[number % 4], (1024, 1023)[number % 3 == 0]
        try:
            return upright_rgb(content, 32, most).shape
        except ValueError as error:
            return str(error)

    with ThreadPoolExecutor(8) as pool:
        found = [*pool.map(read, range(400))]
    for number, of in enumerate(found):
        assert of == ((32, 32, 3) if number % 3 else "has more than 1,023 pixels; --max_pixels allows more")
    assert (Image.MAX_IMAGE_PIXELS, [*warnings.filters], logging.getLogger("PIL").level) == before


def test_who_wants_another_limit_waits_for_the_others():
    together, entered = threading.Barrier(3, timeout=30), threading.Event()

    def same():
        with pictures._settings.of(5):
            together.wait()

    def other():
        with pictures._settings.of(6):
            entered.set()
            return Image.MAX_IMAGE_PIXELS

    with ThreadPoolExecutor(3) as pool:
        with pictures._settings.of(5):
            alike = [pool.submit(same), pool.submit(same)]
            together.wait()
            waiting = pool.submit(other)
            assert not entered.wait(0.2)
            assert Image.MAX_IMAGE_PIXELS == 5
        assert waiting.result(30) == 6
        assert [of.result(30) for of in alike] == [None, None]


def test_no_line_is_lost_while_a_tiff_is_read(capfd):
    """Its decoder's standard error leads nowhere."""
    with ThreadPoolExecutor(1) as pool:
        with libtiff():
            said = pool.submit(say, "a line", error=True)
            os.write(2, b"noise")
            time.sleep(0.1)
        said.result()
    assert capfd.readouterr().err == "a line\n"


# Noise


def damaged_fax():
    """Since its lines begin at the eighth byte."""
    content = bytearray(encoded(picture().convert("1"), "TIFF", compression="group4"))
    content[8:12] = b"\x5a" * 4
    return bytes(content)


NOISY = {
    "a TIFF that is cut off": lambda: encoded(picture(), "TIFF", compression="tiff_lzw")[:-200] + b"\xff" * 200,
    "a TIFF of fax lines": lambda: damaged_fax(),
    "EXIF with a huge count": lambda: in_jpeg(0xE1, b"Exif\0\0" + ODD_EXIF["more than there is"]),
    "a JPEG with an odd MPF": lambda: in_jpeg(0xE2, b"MPF\0" + exif((0xB001, 4, 1, b"\x02\0\0\0"))),
    "a palette with bytes": lambda: encoded(picture().quantize(4), "PNG", transparency=b"\0\x80"),
    "an icon of another size": lambda: encoded(picture(), "ICO", sizes=[(32, 32)])[:6] + b"\x10\x10"
    + encoded(picture(), "ICO", sizes=[(32, 32)])[8:],
}  # fmt: skip


@pytest.mark.parametrize("kind", NOISY)
def test_libraries_are_silent(kind, capfd, caplog):
    content = NOISY[kind]()
    with warnings.catch_warnings(record=True) as told, caplog.at_level(logging.DEBUG):
        warnings.simplefilter("always")
        with contextlib.suppress(ValueError):
            upright_rgb(content, 32)
    assert told == []
    assert capfd.readouterr().err == ""
    assert [record for record in caplog.records if record.name.startswith("PIL")] == []
    assert os.fstat(2)


def test_what_is_no_plain_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "zero.jpg").symlink_to("/dev/zero")
    for file in (tmp_path / "pipe.jpg", tmp_path / "zero.jpg"):
        with pytest.raises(InputError, match=f"{file.name}: no plain file"):
            read_file(file, 32)
    with (tmp_path / "long.jpg").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(InputError, match=r"long\.jpg: holds 1,099,511,627,776 bytes, more than 1,073,741,824"):
        read_file(tmp_path / "long.jpg", 32)


def test_texts_in_a_png_are_no_bomb(tmp_path):
    text = PngImagePlugin.PngInfo()
    text.add_text("a", "b" * 200_000_000, zip=True)
    file = Path(tmp_path / "bomb.png")
    picture().save(file, pnginfo=text)
    assert file.stat().st_size < 1_000_000
    assert read_file(file, 32).shape == (32, 32, 3)
