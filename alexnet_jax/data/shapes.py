"""The pictures of the built-in data set: ten shapes, drawn from a seed, in any colour, place, size and texture.

Foreground and background are painted by the same rule, so that colour says nothing of the class, and marks lie
about both, so that single edges say little: one has to see the outline.
"""

import math
from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image, ImageDraw

# Of the pictures: another number where a change here changes one of them.
VERSION = 1

Polygon = Float[np.ndarray, "corners 2"]


def _star(points: int, inner: float) -> Polygon:
    """A star with radius 1 at its points and `inner` between them, the first point up."""
    angles = np.pi * np.arange(2 * points) / points - np.pi / 2
    radii = np.where(np.arange(2 * points) % 2, inner, 1.0)
    return np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1)


def _regular(corners: int, turn: float = 0.0) -> Polygon:
    angles = 2 * np.pi * np.arange(corners) / corners - np.pi / 2 + turn
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _heart() -> Polygon:
    t = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([16 * np.sin(t) ** 3, -y], axis=1) / 17


_DISC = _regular(60)

# Each shape is a polygon, or one with a second cut out of it; x to the right, y down, within the unit circle.
SHAPES: dict[str, tuple[Polygon, ...]] = {
    "arrow": (np.array([(-1, -0.25), (0.1, -0.25), (0.1, -0.7), (1, 0), (0.1, 0.7), (0.1, 0.25), (-1, 0.25)]),),
    "crescent": (_DISC, 0.85 * _DISC + (0.45, 0.0)),
    "cross": (np.array([(x, y) for a, b in ((1, 1), (-1, 1), (-1, -1), (1, -1))
                        for x, y in (((a, 0.3 * b), (0.3 * a, 0.3 * b), (0.3 * a, b)) if a * b > 0 else
                                     ((0.3 * a, b), (0.3 * a, 0.3 * b), (a, 0.3 * b)))]),),
    "disc": (_DISC,),
    "heart": (_heart(),),
    "hourglass": (np.array([(-0.75, -0.9), (0.75, -0.9), (0.12, 0), (0.75, 0.9), (-0.75, 0.9), (-0.12, 0)]),),
    "ring": (_DISC, 0.6 * _DISC),
    "square": (_regular(4, np.pi / 4),),
    "star": (_star(5, 0.4),),
    "triangle": (_regular(3),),
}  # fmt: skip


def draw(label: int, rng: np.random.Generator, size: int = 256) -> UInt8[np.ndarray, "size size 3"]:
    """One picture of the class `label` (its index in SHAPES), a function of the generator's state alone."""
    radius = rng.uniform(0.3, 0.45)
    center = rng.uniform(radius, 1 - radius, 2)
    turn = rng.uniform(-0.3, 0.3)  # radians: an arrow still points to the right
    stretch = np.exp(rng.uniform(-0.12, 0.12))
    rotation = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])

    canvas = Image.new("L", (size, size), 0)
    pen = ImageDraw.Draw(canvas)
    for polygon, ink in zip(list(SHAPES.values())[label], (255, 0), strict=False):
        corners = center + radius * (polygon * (stretch, 1 / stretch)) @ rotation
        pen.polygon([tuple(corner) for corner in corners * size], fill=ink)
    inside = np.asarray(canvas) > 0

    foreground, background = _two_colors(rng)
    picture = np.where(inside[..., None], _paint(foreground, rng, size), _paint(background, rng, size))
    picture = _clutter(picture, rng)
    picture += np.float32(rng.uniform(1, 5)) * rng.standard_normal((size, size, 1), np.float32)
    return np.clip(picture, 0, 255, out=picture).astype(np.uint8)


def _two_colors(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Two colours that an eye tells apart, in no order."""
    while True:
        first, second = rng.uniform(20, 235, (2, 3)).astype(np.float32)
        if np.abs(first - second).mean() > 75:
            return first, second


def _paint(color: np.ndarray, rng: np.random.Generator, size: int) -> Float[np.ndarray, "size size 3"]:
    """A surface of about one colour: plain, shaded, striped or checked."""
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) / size
    angle, frequency = rng.uniform(0, np.pi), float(rng.uniform(4, 16))
    cos, sin = math.cos(angle), math.sin(angle)  # Python floats: the pictures stay in float32
    along, across = x * cos + y * sin, y * cos - x * sin
    patterns: list[Callable[[], np.ndarray]] = [
        lambda: np.zeros_like(x),
        lambda: along - along.mean(),
        lambda: np.sin(2 * np.pi * frequency * along),
        lambda: np.sign(np.sin(np.pi * frequency * along) * np.sin(np.pi * frequency * across)),
    ]
    pattern = patterns[rng.integers(len(patterns))]()
    contrast = rng.uniform(-20, 20, 3).astype(np.float32)
    return color + pattern[..., None] * contrast


def _clutter(picture: Float[np.ndarray, "size size 3"], rng: np.random.Generator) -> np.ndarray:
    """Small discs of any colour, anywhere."""
    size = len(picture)
    for _ in range(rng.integers(0, 3)):
        radius = int(rng.uniform(0.02, 0.06) * size)
        top, left = rng.integers(0, size - 2 * radius, 2)
        disc: Bool[np.ndarray, "d d"] = np.hypot(*np.mgrid[-radius:radius, -radius:radius]) < radius
        picture[top : top + 2 * radius, left : left + 2 * radius][disc] = rng.uniform(0, 255, 3)
    return picture
