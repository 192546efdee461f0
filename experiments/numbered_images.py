"""Small photographs, each with a number drawn into it that survives JPEG, scaling and central crops.

A number is a grid of black and white squares in the middle: 21 bits, and 15 that must agree with them, so that what is
no whole number is told from one.
"""

import io
import tarfile

import numpy as np
from PIL import Image

SIDE, BITS, CHECK, BLOCK = 72, 21, 15, 4  # pixels; of a number; of what must agree with it; pixels of a bit's side
GRID = 6  # bits in a row: GRID² = BITS + CHECK
FIRST = (SIDE - GRID * BLOCK) // 2  # pixels before them, so that they are in every crop


def bits_of(numbers: np.ndarray) -> np.ndarray:
    """(n, 6, 6) black or white: 21 bits of each number, and 15 of it times an odd number."""
    wide = numbers.astype(np.uint64)
    words = (wide << np.uint64(CHECK)) | ((wide * np.uint64(40503)) >> np.uint64(3)) % np.uint64(2**CHECK)
    shifts = np.arange(BITS + CHECK, dtype=np.uint64)
    return ((words[:, None] >> shifts) & np.uint64(1)).astype(bool).reshape(-1, GRID, GRID)


def drawn(photographs: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """The photographs, (n, 72, 72, 3), with a number in the middle of each."""
    images = photographs.copy()
    blocks = np.where(bits_of(numbers), np.uint8(255), np.uint8(0)).repeat(BLOCK, 1).repeat(BLOCK, 2)
    images[:, FIRST : FIRST + GRID * BLOCK, FIRST : FIRST + GRID * BLOCK] = blocks[..., None]
    return images


def numbers_in(images: np.ndarray) -> np.ndarray:
    """The numbers of images (n, size, size, 3) of any size, whole ones; -1 where there is none, or a damaged one."""
    scale = images.shape[1] / SIDE
    middles = ((FIRST + BLOCK * (np.arange(GRID) + 0.5)) * scale).astype(int)
    near = max(1, int(scale))  # pixels to each side that are looked at
    offsets = np.arange(-near, near)
    rows = (middles[:, None] + offsets).reshape(-1)
    seen = images[:, rows[:, None], rows, 1].reshape(len(images), GRID, 2 * near, GRID, 2 * near).mean((2, 4))
    bits = (seen > 127.5).reshape(len(images), -1)
    words = (bits.astype(np.uint64) << np.arange(BITS + CHECK, dtype=np.uint64)).sum(1, dtype=np.uint64)
    numbers = (words >> np.uint64(CHECK)).astype(np.int64)
    return np.where((bits_of(numbers) == bits.reshape(-1, GRID, GRID)).all((1, 2)), numbers, -1)


def photographs(tar: str) -> list[np.ndarray]:
    """By class, (n, 72, 72, 3): what the training part of the tar has, the middle of each."""
    by_class: dict[str, list[np.ndarray]] = {}
    with tarfile.open(tar) as archive:
        for member in archive:
            if (
                member.isfile()
                and "train/" in member.name
                and len(by_class.setdefault(member.name.split("/")[-2], [])) < 100
            ):
                content = archive.extractfile(member)
                assert content is not None
                photograph = Image.open(io.BytesIO(content.read())).convert("RGB").resize((SIDE, SIDE))
                by_class[member.name.split("/")[-2]].append(np.asarray(photograph))
    return [np.stack(of) for _, of in sorted(by_class.items())]
