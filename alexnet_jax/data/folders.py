"""The files below a folder, as every command sees them: each once, by its real path, whatever links there are."""

import functools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from alexnet_jax.files import read_plain

# What systems and programs leave in folders, beside all that begins with a dot.
IGNORED = {
    "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "__macosx", "@eadir", "@__thumb", "#recycle", "$recycle.bin",
    "system volume information", "lost+found", "__pycache__", "@recycle", "@recently-snapshot", "#snapshot",
    "~snapshot", "recycler", "found.000", "network trash folder", "temporary items", "@tmp",
}  # fmt: skip


class File(NamedTuple):
    """One file or folder of a source. parts: its path below the source's root; read: None for a folder."""

    path: str
    parts: tuple[str, ...]
    read: Callable[[], bytes] | None


def is_ignored(name: str) -> bool:
    """Whether systems and programs leave files or folders of this name."""
    return name.startswith(".") or name.lower() in IGNORED


def walk(root: Path, left_out: Callable[[str], None] = lambda link: None) -> Iterator[File]:
    """The files and folders below `root`, a folder's files before its folders, by name; of pipes and devices too, whose
    `read` raises OSError.

    A link is followed, but not to what is below `root` by itself, was seen already, or lies above `root`: `left_out` is
    told of such a one. Raises OSError for a folder that cannot be read.
    """
    real_root = os.path.realpath(root)
    seen = {real_root}  # folders, and what links lead to
    own = {folder for folder, *_ in _without_links(real_root)}
    left: list[tuple[str, str, tuple[str, ...]]] = [(str(root), real_root, ())]
    while left:
        folder, real_folder, parts = left.pop()
        with os.scandir(folder) as entries:
            found = sorted((entry for entry in entries if not is_ignored(entry.name)), key=lambda entry: entry.name)
        below = []
        for entry in found:
            is_link = entry.is_symlink()
            is_folder = os.path.isdir(entry.path) if is_link else entry.is_dir()  # a link may lead nowhere
            real = os.path.realpath(entry.path) if is_link else os.path.join(real_folder, entry.name)
            above = is_folder and f"{real_root}/".startswith(real.rstrip("/") + "/")
            around = os.path.dirname(real)
            is_own = is_link and (real in own or ((around in own or around in seen) and os.path.exists(real)))
            if real in seen or above or is_own:
                left_out(entry.path)
                continue
            if is_folder or is_link:
                seen.add(real)
            if is_folder:
                below.append((entry.path, real, (*parts, entry.name)))
            else:
                yield File(entry.path, (*parts, entry.name), functools.partial(read_plain, entry.path))
        yield File(folder, parts, None)
        left += reversed(below)


def _without_links(root: str) -> Iterator[tuple[str, list[str], list[str]]]:
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if not is_ignored(name)]
        yield folder, folders, files
