"""What a picture's file says beside its pixels, taken out before a decoder sees it: texts, colour profiles, EXIF.

None of it decides whether a picture is read, or how long that takes. Two things are kept: which side is up, and which
colour of a PNG is transparent.
"""

import re
import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

ORIENTATION = 0x0112
# Of TIFF: what says where the pixels lie and what they mean.
PIXEL_TAGS = {
    254, 256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 284, 292, 293, 297, 317, 320, 322, 323, 324, 325, 332, 338,
    339, 347, 512, 513, 514, 515, 517, 518, 519, 520, 521, 529, 530, 532, 50674,
}  # fmt: skip


class Bare(NamedTuple):
    """image: the file without side data. orientation: as in EXIF, 1 to 8. transparent: a colour, as Pillow has it."""

    image: bytes
    orientation: int = 1
    transparent: int | tuple[int, ...] | None = None


def bare(image: bytes) -> Bare:
    """A picture's file without side data, in the formats that have much of it; damage is left as it is."""
    try:
        if image.startswith(b"\xff\xd8\xff"):
            return _jpeg(image)
        if image.startswith(b"\x89PNG\r\n\x1a\n"):
            return _png(image)
        if image.startswith(b"RIFF") and image[8:12] == b"WEBP":
            return _webp(image)
        if image.startswith((b"II*\0", b"MM\0*")):
            return _tiff(image)
        if image[4:8] == b"ftyp":  # AVIF and HEIC: what EXIF says there does not count, and it is a kind of item
            return Bare(re.sub(rb"(infe(?:\x02.{7}|\x03.{9}))Exif", rb"\1free", image, flags=re.DOTALL))
    except (struct.error, IndexError):
        pass
    return Bare(image)


def _jpeg(image: bytes) -> Bare:
    kept, at, orientation = [image[:2]], 2, 1
    while image[at] == 0xFF and image[at + 1] != 0xDA:  # up to the start of the scan
        marker = image[at + 1]
        if marker == 0xFF or marker in range(0xD0, 0xD9) or marker == 1:  # fill bytes, and markers that are alone
            at += 1 if marker == 0xFF else 2
            continue
        size = struct.unpack_from(">H", image, at + 2)[0]
        if size < 2:
            break
        segment = image[at : at + 2 + size]
        at += 2 + size
        content = segment[4:]
        if marker == 0xE1 and content.startswith(b"Exif\0\0") and orientation == 1:
            orientation = orientation_of(content[6:])
        # JFIF and Adobe say how colours are stored. A JFIF segment of any content means the same as this one.
        if marker == 0xE0 and content.startswith(b"JFIF\0"):
            kept.append(b"\xff\xe0\0\x10JFIF\0\1\1\0\0\1\0\1\0\0")
        elif (marker == 0xEE and content.startswith(b"Adobe") and len(content) >= 12) or marker not in _APP_OR_TEXT:
            kept.append(segment)
    return Bare(b"".join([*kept, image[at:]]), orientation)


_APP_OR_TEXT = {*range(0xE0, 0xF0), 0xFE}


def _png(image: bytes) -> Bare:
    kept, orientation, transparent = [image[:8]], 1, None
    depth, kind = image[24], image[25]
    for name, chunk in _png_chunks(image):
        content = chunk[8:-4]
        if name == b"eXIf":
            orientation = orientation_of(content)
        elif name == b"tRNS" and kind in (0, 2) and zlib.crc32(chunk[4:-4]) == struct.unpack(">I", chunk[-4:])[0]:
            numbers = struct.unpack(f">{len(content) // 2}H", content[: len(content) // 2 * 2])
            values = [number & (2**depth - 1) for number in numbers]
            # As Pillow has the pixels: of fewer than 8 bits scaled up to them, grey ones of 16 as they are.
            scaled = [value * 255 // (2**depth - 1) if depth < 8 else value for value in values]
            if kind == 0 and len(values) == 1:
                transparent = scaled[0]
            elif kind == 2 and len(values) == 3:
                transparent = tuple(value >> (depth - 8) for value in values)
        elif name[:1].isupper() or name == b"tRNS":  # a small first letter: side data, as the format itself says
            kept.append(chunk)
    return Bare(b"".join(kept), orientation, transparent)


def _png_chunks(image: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = 8
    while at + 8 <= len(image):
        size = 12 + struct.unpack_from(">I", image, at)[0]
        yield image[at + 4 : at + 8], image[at : at + size]
        if image[at + 4 : at + 8] == b"IEND":
            return
        at += size


def _webp(image: bytes) -> Bare:
    kept, at, orientation = [], 12, 1
    while at + 8 <= len(image):
        name, size = image[at : at + 4], struct.unpack_from("<I", image, at + 4)[0]
        chunk = image[at : at + 8 + size + size % 2]
        at += 8 + size + size % 2
        if name == b"EXIF":
            orientation = orientation_of(chunk[8:].removeprefix(b"Exif\0\0"))
        elif name == b"VP8X":
            kept.append(chunk[:8] + bytes([chunk[8] & ~0b101100]) + chunk[9:])  # says no more that there is any
        elif name not in (b"ICCP", b"XMP "):
            kept.append(chunk)
    chunks = b"".join(kept)
    return Bare(b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WEBP" + chunks, orientation)


def _tiff(image: bytes) -> Bare:
    """The first picture, by a directory of its own at the end of the file."""
    order = "<" if image.startswith(b"II") else ">"
    kept = [entry for tag, entry in _tiff_entries(image) if tag in PIXEL_TAGS]
    padded = image + b"\0" * (len(image) % 2)
    directory = struct.pack(f"{order}H", len(kept)) + b"".join(kept) + bytes(4)
    return Bare(padded[:4] + struct.pack(f"{order}I", len(padded)) + padded[8:] + directory, orientation_of(image))


def _tiff_entries(tiff: bytes) -> Iterator[tuple[int, bytes]]:
    """(tag, entry) of the first directory. Raises struct.error where it is damaged."""
    order = "<" if tiff.startswith(b"II") else ">"
    (first,) = struct.unpack_from(f"{order}I", tiff, 4)
    (entries,) = struct.unpack_from(f"{order}H", tiff, first)
    for at in range(first + 2, first + 2 + 12 * entries, 12):
        yield struct.unpack_from(f"{order}H", tiff, at)[0], tiff[at : at + 12]


def orientation_of(tiff: bytes) -> int:
    """Which EXIF, or a TIFF, says; 1 where it says none that there is."""
    order = "<" if tiff.startswith(b"II") else ">"
    try:
        for tag, entry in _tiff_entries(tiff):
            if tag == ORIENTATION:
                kind = struct.unpack_from(f"{order}H", entry, 2)[0]
                (value,) = struct.unpack_from(order + {1: "B", 3: "H", 4: "I"}[kind], entry, 8)
                return value if 1 <= value <= 8 else 1
    except (struct.error, KeyError):
        pass
    return 1
