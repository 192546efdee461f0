"""§2: writing a prepared data set, whole or not at all; what it is, datasets.py says."""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core import dataset_info, naming, splits as tfds_splits

from alexnet_jax.data import manifest, processes, shards
from alexnet_jax.data.images import Sums
from alexnet_jax.data.layouts import check_classes
from alexnet_jax.data.pictures import MAX_PIXELS
from alexnet_jax.files import check_text, only_process, sha256
from alexnet_jax.options import InputError
from alexnet_jax.reading import archive

NAME = "images"  # of the data set, as TFDS has it
_OF_TFDS = ("dataset_info.json", "features.json", "label.labels.txt")


def write(
    output: Path,
    class_names: Sequence[str],
    splits: Mapping[str, Sequence[shards.Item]],
    *,
    size: int,
    encoding: str = "jpeg",
    on_error: str = "stop",
    max_pixels: int = MAX_PIXELS,
    workers: int = 1,
    progress: Callable[[int], None] = lambda images: None,
) -> tuple[dict[str, int], list[str]]:
    """Writes a prepared data set; returns the number of images in each split, and what was left out, with the reasons.

    It grows in the folder `output`.incomplete, which is renamed at the very end: `output` is a whole data set or is not
    there. Where this is interrupted, the same call continues with the shards that are missing.

    Args:
      splits: what to write; must contain "train", over which the statistics are taken.
      on_error: "stop" at an image that cannot be read, or "skip" it.
      max_pixels: of an image; a larger one cannot be read.
      workers: processes. With one, or a single shard's worth of images, all is done in this one.
      progress: told the number of images done since it was last told.

    Raises:
      InputError: `output` exists or cannot be written, another process writes it, the disk is full, an image cannot be
        read, a split or class stays empty, or the name of a class cannot be kept.
    """
    processes.end_if_worker()
    check_classes(class_names)
    output = output.absolute()
    check_text(output, str(output))
    if os.path.lexists(output):
        raise InputError(f"{output}: already exists; choose another output or delete it")
    all_shards = [
        shards.Shard(
            split,
            number,
            items[start : start + shards.EXAMPLES_PER_SHARD],
            size,
            encoding,
            tuple(class_names),
            on_error,
            max_pixels,
        )
        for split, items in splits.items()
        for number, start in enumerate(range(0, len(items), shards.EXAMPLES_PER_SHARD))
    ]
    folder = output.with_name(f"{output.name}.incomplete")
    try:
        with _only_writer(folder):
            if os.path.lexists(output):
                raise InputError(f"{output}: already exists; another process wrote it meanwhile")
            shards.write_missing(folder, all_shards, workers, progress)
            counts, skipped = _finish(folder, all_shards)
            os.rename(folder, output)
    except OSError as error:
        raise InputError(f"{output}: cannot be written ({error.strerror or error})") from error
    return counts, skipped


@contextlib.contextmanager
def _only_writer(folder: Path) -> Iterator[None]:
    """Makes the folder, and holds it against other processes; removes it where it holds no whole shard in the end."""
    folder.mkdir(parents=True, exist_ok=True)
    with only_process(folder, f"{folder}: is being written by another process"):
        try:
            yield
        finally:
            if folder.exists() and not any(folder.glob("*.npz")):
                shutil.rmtree(folder)


def _finish(folder: Path, written: list[shards.Shard]) -> tuple[dict[str, int], list[str]]:
    """Makes the data set out of the whole shards: their names, the statistics, TFDS's metadata, the manifest."""
    class_names, size = written[0].class_names, written[0].size
    counts = {shard.split: np.zeros(len(class_names), np.int64) for shard in written}
    lengths: dict[str, list[int]] = {split: [] for split in counts}
    num_bytes = dict.fromkeys(counts, 0)
    sums, skipped, files = Sums(size, np.int64), [], {}
    for shard in written:
        whole = shards.account(folder, shard)
        images = int(whole["counts"].sum())
        counts[shard.split] += whole["counts"]
        skipped += whole["skipped"].tolist()
        num_bytes[shard.split] += int(whole["num_bytes"])
        if shard.split == "train":
            sums.images += images
            sums.pixels += whole["pixels"]
            sums.products += whole["products"]
        if images:
            name = f"{NAME}-{shard.split}.array_record-{len(lengths[shard.split]):05}"
            files[name] = (shard, {"sha256": str(whole["sha256"]), "images": images})
            lengths[shard.split].append(images)
    for split, of_class in counts.items():
        if not of_class.any():
            raise InputError(f"the split '{split}' has no readable image")
    if not counts["train"].all():
        empty = class_names[int(np.argmin(counts["train"]))]
        raise InputError(f"the class '{empty}' has no readable image for training")

    statistics = sums.statistics()
    content = archive(mean_image=statistics.mean_image, covariance=statistics.covariance)
    (folder / "statistics.npz").write_bytes(content)
    identity = dataset_info.DatasetIdentity(
        name=NAME, version=tfds.core.Version("1.0.0"), data_dir=str(folder), module_name="alexnet_jax.data.datasets"
    )
    info = tfds.core.DatasetInfo(builder=identity, features=shards.features_of(class_names, size, written[0].encoding))
    info.set_file_format("array_record")
    template = naming.ShardedFileTemplate(
        data_dir=folder, dataset_name=NAME, filetype_suffix="array_record",
        template="{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_INDEX}",
    )  # fmt: skip
    info.set_splits(
        tfds_splits.SplitDict(
            [
                tfds_splits.SplitInfo(split, lengths[split], num_bytes[split], template.replace(split=split))
                for split in counts
            ]
        )
    )
    info.write_to_directory(folder)
    others = [folder / name for name in ("statistics.npz", *_OF_TFDS)]
    values = {
        "version": shards.VERSION,
        "encoding": written[0].encoding,
        "images": {split: dict(zip(class_names, of_class.tolist(), strict=True)) for split, of_class in counts.items()},
        "shards": {name: values for name, (_, values) in files.items()},
        "files": {file.name: sha256(file) for file in others},
    }
    (folder / manifest.NAME).write_text(manifest.text(values), encoding="utf-8")
    for name, (shard, _) in files.items():
        os.replace(folder / f"{shard.name}.shard", folder / name)
    for left in {*folder.iterdir()} - {folder / name for name in (manifest.NAME, *files)} - {*others}:
        shards.remove(left)
    return {split: int(of_class.sum()) for split, of_class in counts.items()}, skipped
