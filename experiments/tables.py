"""Writes the tables of the README.md files and of docs/ from the logs in results/.

python experiments/tables.py            writes them
python experiments/tables.py --check    says whether they differ from the logs
"""

import json
import math
import re
import sys
from pathlib import Path
from typing import Any

from alexnet_jax import PAPER, summary

ROOT = Path(__file__).parent.parent
PAGES = (
    ROOT / "README.md",
    ROOT / "experiments" / "README.md",
    ROOT / "docs" / "imagenet.md",
    ROOT / "docs" / "speed.md",
)


def log(name: str) -> dict[str, Any]:
    return json.loads((ROOT / "experiments" / "results" / f"{name}.json").read_text())


def where(values: dict[str, Any]) -> str:
    machine = values["machine"]
    return f"{machine['cores']} cores of an {machine['processor']}, jax {values['versions']['jax']}, {values['date']}"


def table(header: list[str], rows: list[list[Any]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def first_runs() -> str:
    rows, notes = [], []
    for run, data in (("shapes", "built-in, ten classes"), ("photos", "4,000 photographs, ten classes")):
        values = log(f"first_runs_{run}")
        result, minutes = values["result"], values["wall_seconds"]["train"] / 60
        rows.append(
            [
                f"`{' '.join(['--dataset=…'] * (run == 'photos') + values['flags'][1:]) or '(no flags)'}`",
                data,
                f"{100 * result['top1_error']:.1f} %",
                f"{minutes:.1f} min",
                f"{result['images_per_second']:.0f}",
            ]
        )
        notes.append(f"seed {result['seed']}, {where(values)}")
    errors = [log(f"first_runs_shapes{seed}")["result"]["top1_error"] for seed in ("", "_seed1", "_seed2")]
    note = f"Chance is 90 %; {notes[0]}. Without flags, seeds 0, 1, 2: "
    note += ", ".join(f"{100 * error:.1f} %" for error in errors) + "."
    if notes[1] != notes[0]:
        note += f" Photographs: {notes[1]}."
    header = ["flags", "data", "top-1 error, validation", "from start to end", "images/s"]
    return f"{table(header, rows)}\n\n{note}"


def first_steps() -> str:
    logs = {preset: log(f"first_runs_{preset}") for preset in ("paper", "original")}
    losses = {name: {int(step): loss for step, loss in values["loss_by_step"].items()} for name, values in logs.items()}
    last = max(losses["paper"])
    shown = [step for step in (1, 2, 3, 5, 10, 20, 30, 50, 75, 100, 150, 200, 300, 400) if step < last] + [last]
    rows = [[f"loss, `{name}`", *(f"{of_step[step]:.3f}" for step in shown)] for name, of_step in losses.items()]
    notes = [f"In nats; one seed; {where(logs['paper'])}."]
    assert where(logs["paper"]) == where(logs["original"])
    for name, values in logs.items():
        error = f"{100 * values['result']['top1_error']:.1f} % validation top-1 error at the end"
        notes.append(f"`{name}`: {error}. {_fall(losses[name])}")
    return f"{table(['step', *map(str, shown)], rows)}\n\n{' '.join(notes)}"


def _fall(losses: dict[int, float], classes: int = 10, window: int = 10, by: float = 0.1) -> str:
    """When the loss has left ln(classes): the network then knows more than how frequent the classes are."""
    chance = math.log(classes)
    means = {
        last: sum(losses[step] for step in range(last - window + 1, last + 1)) / window
        for last in range(window, max(losses) + 1)
    }
    reached = next((step for step, mean in means.items() if mean < chance + by), None)
    left = next((step for step, mean in means.items() if mean < chance - by), None)
    if reached is None:
        return f"The loss did not come down to ln({classes}) = {chance:.3f} in {max(losses)} steps."
    fell = f"at step {left}" if left else f"at no step of {max(losses)}"
    return (
        f"The loss (mean of {window} steps) came within {by} of ln({classes}) = {chance:.3f} at step {reached} "
        f"and was {by} below it {fell}."
    )


def two_gpus() -> str:
    values = log("two_gpus_paper")
    found = [
        [f"{run['type']}, batch {run['batch_size']}, seed {run['seed']}"]
        + [f"{run[what]:.1e}" for what in ("loss", "gradients", "updates")]
        for run in values["relative_differences"]
    ]
    sent = [
        [name, f"{sum(kinds.values()) / 1e6:.1f}", ", ".join(f"{kind} {n / 1e6:.1f}" for kind, n in kinds.items())]
        for name, kinds in values["bytes_sent_per_device_and_step_at_batch_128"].items()
    ]
    return (
        f"{table(['two devices against one', 'loss', 'gradients', 'updates'], found)}\n\n"
        f"Largest ‖difference‖ / ‖value‖ over the parameters; {values['devices']}; {where(values)}.\n\n"
        f"{table(['training step, batch 128', 'MB sent by each device', 'of which'], sent)}"
    )


def jpeg_decoders() -> str:
    values = log("jpeg_decoders")
    rows = [[name, values["decoder_versions"][name], f"{rate:,}"] for name, rate in values["images_per_second"].items()]
    note = f"{values['images']} images of {values['mean_bytes'] / 1000:.0f} kB, one core; {where(values)}."
    return f"{table(['library', 'version', 'images/s'], rows)}\n\n{note}"


def prepare_speed() -> str:
    values = log("prepare_speed")
    rows = []
    for rates in values["rates"]:
        seconds = [f"{seconds:.0f} s" for seconds in rates["seconds"].values()]
        rows.append([rates["workers"], f"{rates['images_per_second']:,}", *seconds])
    sizes = [f"{int(images):,} images" for images in values["largest_process_mb"]]
    memory = [f"{peak} MB" for peak in values["largest_process_mb"].values()]
    note = (
        f"JPEGs of 500 × 375, {values['photographs']} photographs repeated, "
        f"{values['mean_source_bytes'] / 1000:.0f} kB. The largest process took "
        f"{' and '.join(f'{peak} for {size}' for peak, size in zip(memory, sizes, strict=True))}; {where(values)}."
    )
    return f"{table(['worker processes', 'images/s without start-up', *sizes], rows)}\n\n{note}"


def input_speed() -> str:
    values = log("input_speed")
    medians = {(r["encoding"], r["reader"], r["workers"]): r["median"] for r in values["images_per_second"]}
    workers = sorted({of for _, _, of in medians})
    rows, notes = [], []
    for encoding in ("jpeg", "raw"):
        best: dict[bool, int] = {}
        for reader in dict.fromkeys(reader for of, reader, _ in medians if of == encoding):
            rates = [medians[encoding, reader, of] for of in workers]
            rows.append([encoding, reader, *(f"{rate:,}" for rate in rates)])
            if reader != "alexnet_jax, not decoded":
                ours = reader == "alexnet_jax"
                best[ours] = max(best.get(ours, 0), *rates)
        notes.append(f"{encoding}: {best[True] / best[False]:.2f} times the DataLoader's best.")
    versions = ", ".join(f"{name} {version}" for name, version in values["other_versions"].items())
    kilobytes = ", ".join(f"{encoding} {size / 1000:.0f} kB" for encoding, size in values["mean_bytes"].items())
    notes.append(f"256 × 256 pixels ({kilobytes}), batches of {values['batch_size']}; {where(values)}, {versions}.")
    header = ["images/s", "read by", *(f"{of} workers" if of > 1 else "1 worker" for of in workers)]
    return f"{table(header, rows)}\n\n{' '.join(notes)}"


def kills() -> str:
    values = log("kills")
    row = [
        values["kills"],
        values["in_a_checkpoint"],
        values["torn"],
        values["steps"],
        *("equal" if values[what] else "DIFFERENT" for what in ("state_equal", "lines_equal")),
    ]
    header = [
        "kills (SIGKILL) of one run",
        "while a checkpoint was written",
        "checkpoints torn",
        "steps",
        "final state",
        "metrics",
    ]
    return f"{table(header, [row])}\n\nAgainst the run that was left alone, bit for bit; {where(values)}."


def throughput() -> str:
    rows, notes = [], []
    for platform in ("cpu", "gpu"):
        if not (ROOT / "experiments" / "results" / f"throughput_{platform}.json").exists():
            notes.append(f"Not measured on a {platform.upper()}.")
            continue
        values = log(f"throughput_{platform}")
        for row in values["rows"]:
            rates = {name: of["images_per_second"] for name, of in row["results"].items()}
            best = max(rate for name, rate in rates.items() if name.startswith("PyTorch"))
            rows.append(
                [
                    f"{'training' if row['task'] == 'train' else 'inference'}, `{row['table']}`",
                    f"{row['precision']}, {row['batch']}",
                    *(f"{rate:,.1f}" if rate < 100 else f"{rate:,.0f}" for rate in rates.values()),
                    f"{rates['alexnet_jax'] / best:.2f}",
                    f"{rates['alexnet_jax'] / rates['obvious Flax']:.1f}",
                    f"{row['results']['alexnet_jax']['model_tflops'] / values['ceiling_tflops'][row['precision']]:.0%}",
                ]
            )
        ceilings = ", ".join(f"{rate:.3f} TFLOP/s in {name}" for name, rate in values["ceiling_tflops"].items())
        notes.append(
            f"{platform.upper()}: interleaved, medians; matrix products reach {ceilings}; {where(values)}, "
            f"PyTorch {values['torch']}."
        )
    header = [
        "images/s", "precision, batch", *rates, "× PyTorch's best", "× obvious Flax", "of matrix products' rate"
    ]  # fmt: skip
    return f"{table(header, rows)}\n\n{' '.join(notes)}"


def throughput_costs() -> str:
    values = log("throughput_cpu")
    rows = [
        [
            f"{'training' if row['task'] == 'train' else 'inference'}, `{row['table']}`",
            f"{row['precision']}, {row['batch']}",
            name,
            f"{of['compile_seconds']:.1f} s",
            f"{of['first_step_seconds']:.1f} s",
            f"{of['peak_mb']:,.0f} MB",
            f"{of['slowest_and_fastest'][0]:,.1f}–{of['slowest_and_fastest'][1]:,.1f}",
        ]
        for row in values["rows"]
        for name, of in row["results"].items()
    ]
    header = ["", "precision, batch", "", "compiling", "until the first step is done", "peak memory of the process",
              "images/s, slowest and fastest"]  # fmt: skip
    return f"{table(header, rows)}\n\n{where(values)}."


def feeding() -> str:
    header = ["images/s", "device", "batch", "type"]
    rows: list[list[Any]] = []
    notes = []
    for platform in ("cpu", "gpu"):
        if not (ROOT / "experiments" / "results" / f"feeding_{platform}.json").exists():
            notes.append(f"Not measured on a {platform.upper()}.")
            continue
        values = log(f"feeding_{platform}")
        rates = values["images_per_second"]
        header = [*header[:4], *rates]
        rows.append([f"`{values['architecture']}`", values["device"], values["batch_size"], values["dtype"]])
        rows[-1] += [f"{rate:,.1f} ({100 * rate / rates['synthetic']:.0f} %)" for rate in rates.values()]
        notes.append(f"{where(values)}.")
    return f"{table(header, rows)}\n\n{' '.join(notes)}"


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

    # Forward, and twice as much backward; a multiplication and an addition.
    operations = 3 * 2 * sum(row.multiply_adds for row in summary(PAPER))
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
        f"{times}\n\n{disk}\n\n{table(header, rows)}\n\nOne process reads {at_most:,} images/s at most. {where(read)}."
    )


TABLES = {
    of.__name__: of
    for of in (
        first_runs, first_steps, two_gpus, jpeg_decoders, prepare_speed, input_speed, kills, throughput,
        throughput_costs, feeding, imagenet_plan,
    )
}  # fmt: skip


def rendered(text: str) -> str:
    """The page with each `<!-- table: name -->` … `<!-- end -->` filled in."""
    return re.sub(
        r"<!-- table: (\w+) -->.*?<!-- end -->",
        lambda match: f"<!-- table: {match[1]} -->\n{TABLES[match[1]]()}\n<!-- end -->",
        text,
        flags=re.DOTALL,
    )


def main() -> None:
    stale = [page for page in PAGES if rendered(page.read_text()) != page.read_text()]
    if "--check" in sys.argv:
        sys.exit(f"differs from the logs: {', '.join(map(str, stale))}" if stale else 0)
    for page in stale:
        page.write_text(rendered(page.read_text()))
        print(f"written: {page}")


if __name__ == "__main__":
    main()
