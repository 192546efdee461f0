"""The tables of what ImageNet takes, from the logs in results/; tables.py writes them."""

import math
from typing import Any

from record import RESULTS, log, table, where


def imagenet_plan() -> str:
    """What 1.28 million images ask for, from what was measured on fewer."""
    prepared, read = log("prepare_speed"), log("input_speed")
    images = {"train": 1_281_167, "validation": 50_000}
    most = max(prepared["rates"], key=lambda rates: rates["workers"])
    per_core = most["images_per_second"] / most["workers"]
    rows = [
        [
            cores,
            f"{sum(images.values()) / per_core / cores / 60:.0f} min",
            f"{per_core * cores * 155e9 / sum(images.values()) / 1e6:,.0f} MB/s",
        ]
        for cores in (2, 8, 16, 32)
    ]
    times = table(["cores", "prepare", "read by it"], rows)

    def best(encoding: str, reader: str = "alexnet_jax") -> int:
        return max(r["median"] for r in read["images_per_second"] if (r["encoding"], r["reader"]) == (encoding, reader))

    of_core = {encoding: best(encoding) / read["machine"]["cores"] for encoding in ("jpeg", "raw")}
    sizes = prepared["bytes_per_image"]
    rows = [[encoding, f"{sum(images.values()) * sizes[encoding] / 1e9:.0f} GB", f"{of_core[encoding]:,.0f}"]
            for encoding in sizes]  # fmt: skip
    disk = table(["encoding", "disk", "images/s read by a core"], rows)

    cases = log("throughput_cpu")["rows"]
    operations = 1e9 * next(of["gflop_per_image"] for of in cases if (of["task"], of["table"]) == ("train", "paper"))
    at_most = best("jpeg", "alexnet_jax, not decoded")
    rows = []
    for gpus, rate in ((gpus, rate) for gpus in (1, 8) for rate in (50, 100, 200)):
        needed = gpus * rate * 1e12 / operations
        rows.append(
            [
                f"{gpus}, each at {rate} TFLOP/s",
                f"{needed:,.0f}",
                f"{90 * images['train'] / needed / 60:.0f} min",
                f"{math.ceil(needed / of_core['jpeg'])}",
                *(f"{needed * sizes[encoding] / 1e9:.1f} GB/s" for encoding in ("jpeg", "raw")),
                math.ceil(needed / at_most),
            ]
        )
    header = ["GPUs", "images/s", "90 epochs", "cores for jpeg", "reading jpeg", "reading raw", "processes"]
    return (
        f"{times}\n\n{disk}\n\n{table(header, rows)}\n\n"
        f"An image takes {operations / 1e9:.2f} GFLOP in a training step. "
        f"One process reads {at_most:,} images/s at most. {where(read)}."
    )


def imagenet_rehearsal() -> str:
    """What was measured with as many images, and what had been said of it before."""
    if not (RESULTS / "imagenet_rehearsal.json").exists():
        return "Not measured yet: `python experiments/imagenet_rehearsal.py`."
    values = log("imagenet_rehearsal")
    parts = values["parts"]
    tars, side = sum(parts["make_tars"]["bytes"].values()) / 1e9, values["source_side"]
    images = f"{sum(values['images'].values()):,} JPEGs of {side} × {side} pixels, {tars:.1f} GB"
    rows = [["the tars", images], *_preparing(values), *_reading(parts["read_epoch"]), *_training(values)]
    note = (
        "Seconds and minutes are by the clock, and other programs ran on the same cores; those of a core are its own. "
        f"{where(values)}."
    )
    return f"{table(['', 'measured'], rows)}\n\n{_said_before(values)}\n\n{note}"


def _prepared(values: dict[str, Any]) -> list[dict[str, Any]]:
    return [values["parts"][f"prepare_{quarter}"] for quarter in (1, 2, 3, 4)]


def _preparing(values: dict[str, Any]) -> list[list[str]]:
    parts, images = _prepared(values), sum(values["images"].values())
    kept = ", ".join(f"{of['of_these_kept']} of {of['shards_before']}" for of in parts[1:])
    to_first = [f"{of['seconds_to_the_first_shard']:.0f} s" for of in parts]
    gone = max(of["seconds_after_the_signal"] for of in parts[:3])
    per_image = 1e3 * sum(of["cpu_seconds"] for of in parts) / images
    in_all = f"{parts[3]['of_shards']:,} shards, {parts[3]['bytes'] / 1e9:.1f} GB"
    verified, minutes = values["parts"]["verify"], _minutes(sum(of["seconds"] for of in parts))
    return [
        ["`prepare`, until its first shard is there", f"{to_first[0]}, most of it to list the tars"],
        ["killed with a quarter, half, three quarters of the shards", f"whole ones that were kept as they are: {kept}; "
         f"its other processes ended in {gone:.1f} s at most"],
        ["continued, until its next shard is there", f"{', '.join(to_first[1:])}: listed again, what is there checked"],
        ["all of it", f"{in_all}, {minutes}; {per_image:.2f} ms of a core an image"],
        ["its memory", _memory(parts)],
        ["`prepare --verify`", f"{_minutes(verified['seconds'])}, {verified['peak_mb']['together']:,} MB"],
    ]  # fmt: skip


def _reading(epoch: dict[str, Any]) -> list[list[str]]:
    first, last = epoch["images_per_second_of_the_first_and_last_tenth"]
    times = [f"{epoch['once']:,} numbers came once, {epoch['never']:,} never, {epoch['more_often']:,} more often"]
    wrong = [f"{epoch['wrong_label']:,} with another label, {epoch['not_in_the_order_said']:,} at another place"]
    return [
        ["the data set is open; its first batch is there", f"after {epoch['seconds_to_open']:.2f} s; after "
         f"{epoch['seconds_to_the_first_batch']:.2f} s more"],
        ["one epoch in random order", "; ".join(times + wrong)],
        ["images/s", f"{epoch['images_per_second']:,}; in the first tenth {first:,}, in the last {last:,}"],
        ["its memory, open files", f"{_memory([epoch])}; {epoch['most_open_files']:,} files"],
    ]  # fmt: skip


def _training(values: dict[str, Any]) -> list[list[str]]:
    parts, crop = values["parts"], values["crop_size"]
    moved, evaluated = parts["set_step"], parts["evaluate"]
    runs = [parts[name] for name in ("stopped", "continued", "left_alone")]
    starts = ", ".join(f"{of['seconds_to_the_first_step']:.0f} s" for of in runs)
    memory, files = max(of["peak_mb"]["first"] for of in runs), max(of["most_open_files"] for of in runs)
    saved = moved["at 224 pixels"]
    errors = (
        f"top-1 error {100 * evaluated['top1_error']:.3f} %, counted again {100 * evaluated['counted_again']:.3f} %"
    )
    return [
        [f"`paper`, patches of {crop} × {crop}, from step {moved['step']:,} (epoch {moved['epoch']:g})", "first step "
         f"after {starts}; {min(of['seconds_a_step'] for of in runs):.2f} s a step; {memory:,} MB, {files:,} files"],
        ["stopped there and continued", f"{values['losses_equal']} of {values['steps_compared']} losses are those of a "
         "run that was left alone, to the last digit"],
        ["a checkpoint of `paper` for patches of 224 × 224", f"{saved['bytes'] / 1e6:.0f} MB, written in "
         f"{saved['seconds']:.1f} s, of which training waits {saved['seconds_of_the_loop']:.1f} s"],
        ["evaluation on the validation images", f"{evaluated['examples']:,}, {evaluated['wrong_label']} with another "
         f"label; {errors}; {_minutes(evaluated['seconds'])}, {evaluated['peak_mb']['first']:,} MB"],
    ]  # fmt: skip


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f} min" if seconds >= 100 else f"{seconds:.0f} s"


def _memory(parts: list[dict[str, Any]]) -> str:
    """Of the first process, after a tenth of its time and at most; and of the largest other one."""
    longest = max((of["memory_by_time"] for of in parts), key=lambda samples: samples[-1][0])
    early = next(first for seconds, first, *_ in longest if seconds >= longest[-1][0] / 10)
    most, others = (max(of["peak_mb"][which] for of in parts) for which in ("first", "others"))
    text = f"first process {early:,} MB after a tenth of its time, {most:,} MB at most"
    return f"{text}; each other one {others:,} MB" if others else text


def _said_before(values: dict[str, Any]) -> str:
    """The plan's numbers, from few images, beside those of all."""
    small, parts, epoch = log("prepare_speed"), _prepared(values), values["parts"]["read_epoch"]
    at_two = max(small["rates"], key=lambda rates: rates["workers"])
    minutes = sum(values["images"].values()) / at_two["images_per_second"] / 60
    listing = parts[0]["seconds_to_the_first_shard"]
    sizes = " and ".join(f"{peak} MB for {int(of):,}" for of, peak in small["largest_process_mb"].items())
    largest = max(peak for of in parts for which, peak in of["peak_mb"].items() if which != "together")
    rows = [
        ["memory of `prepare`'s largest process", f"{sizes} images", f"{largest:,} MB"],
        ["time before the first images are prepared", "none", f"{listing:.0f} s, beside the plan's {minutes:.0f} min"],
        ["files kept open", "1,301, one for each shard", f"{epoch['most_open_files']:,}, to read the training part"],
    ]  # fmt: skip
    return table(["", "said from few images", "measured"], rows)
