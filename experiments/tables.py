"""Writes the tables of the README.md files and of docs/, and pictures, from the logs in results/.

python experiments/tables.py            writes them
python experiments/tables.py --check    says whether they differ from the logs
"""

import functools
import math
import re
import statistics
import sys
from pathlib import Path
from typing import Any

import first_minutes
import package_size
from cifar_tables import draw, figure1, lrn_on_cifar10, overfitting_and_cures
from claims_tables import claims, every_claim
from imagenet_tables import imagenet_plan, imagenet_rehearsal
from intervals import difference
from parallel_tables import exchange, exchange_overlap, exchange_precision
from photo_tables import (
    ablations,
    fine_tuning,
    imagenette,
    kernels_and_neighbors,
    small_claims,
    specialisation,
    table2,
)
from record import READ, log, mean_and_std, table, where
from scaling_tables import large_batches, scaling, scaling_model
from speed_tables import (
    breakdown,
    compiled,
    feeding,
    input_speed,
    jpeg_decoders,
    prediction_speed,
    prepare_speed,
    startup,
    throughput,
    throughput_costs,
)

ROOT = Path(__file__).parent.parent
PAGES = (ROOT / "README.md", ROOT / "experiments" / "README.md", *sorted(ROOT.glob("docs/*.md")))


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


def kills() -> str:
    values = log("kills")

    def row(run: dict[str, Any]) -> list[Any]:
        equal = ["equal" if run[f"{what}_equal"] else "DIFFERENT" for what in ("state", "lines", "files")]
        return [run["settings"], run["kills"], run["in_a_checkpoint"], run["torn"], run["steps"], *equal]

    header = [
        "settings", "kills (SIGKILL) of one run", "while a checkpoint was written", "checkpoints torn", "steps",
        "final state", "metrics", "result and figures",
    ]  # fmt: skip
    phases = {phase: sum(run["by_phase"][phase] for run in values["runs"]) for phase in values["runs"][0]["by_phase"]}
    note = (
        f"{values['kills']} kills: {', '.join(f'{phase} {number}' for phase, number in phases.items())}. Against the "
        f"runs that were left alone, bit for bit; {where(values)}."
    )
    return f"{table(header, [row(run) for run in values['runs']])}\n\n{note}"


def promises() -> str:
    killed, changed, pictures = (log(name) for name in ("kills", "mutations", "picture_fuzzer"))
    formats = pictures["formats"].values()
    told = {kind: sum(of.get(kind, 0) for of in formats) for kind in ("read", "compared", "refused")}
    other = [run for run in killed["runs"] if not all(run[f"{what}_equal"] for what in ("state", "lines", "files"))]
    rows = [
        ["`kills.py`", f"{killed['kills']:,} kills (SIGKILL)",
         f"{len(killed['runs'])} settings, {len(killed['runs'][0]['by_phase'])} phases", len(other), where(killed)],
        ["`mutations.py`", f"{changed['mutations']:,} mutations", f"{len(changed['of'])} files",
         len(changed["failures"]), where(changed)],
        ["`picture_fuzzer.py`", f"{pictures['files']:,} damaged pictures",
         f"{len(formats)} formats; {told['refused']:,} refused, {told['read']:,} read, {told['compared']:,} of them "
         "compared with OpenCV", len(pictures["wrong"]), where(pictures)],
    ]  # fmt: skip
    return table(["in `experiments/`", "tried", "of", "ended otherwise", "measured"], rows)


def precision() -> str:
    values = log("precision")
    runs = {name: [run for run in values["runs"] if run["precision"] == name] for name in ("float32", "bfloat16")}
    epochs = list(runs["float32"][0]["loss"])
    losses = {name: [[run["loss"][epoch] for run in of] for epoch in epochs] for name, of in runs.items()}

    shown = [epoch for epoch in ("0.5", "1.0", "2.0", "4.0", "7.0", epochs[-1]) if epoch in epochs]
    rows = []
    for name, of in runs.items():
        error = mean_and_std(100 * run["top1_error"] for run in of)
        rows.append([name, *(mean_and_std(losses[name][epochs.index(at)], ".3f") for at in shown), f"{error} %"])
    apart = [
        abs(statistics.mean(a) - statistics.mean(b)) for a, b in zip(losses["float32"], losses["bfloat16"], strict=True)
    ]
    noise = [statistics.stdev(of) for of in losses["float32"]]
    errors = difference(*([run["top1_error"] for run in runs[name]] for name in ("bfloat16", "float32")))
    note = (
        f"Training loss, mean of half an epoch; {len(runs['float32'])} seeds, mean ± standard deviation. The two "
        f"precisions' means are {statistics.mean(apart):.3f} apart on average over the {len(epochs)} half epochs, "
        f"where the seeds' standard deviation in float32 is {statistics.mean(noise):.3f}. "
        f"The error in bfloat16 differs by {errors.text(100)} points (95 % interval), {errors.verdict()}; "
        f"{where(values)}."
    )
    header = ["loss after epoch", *(f"{float(epoch):g}" for epoch in shown), "top-1 error, validation"]
    return f"{table(header, rows)}\n\n{note}"


TABLES = {
    "first_minutes": first_minutes.page,
    "pretrained_minutes": functools.partial(first_minutes.page, "pretrained_minutes"),
    "package_size": package_size.sentence,
} | {
    of.__name__: of
    for of in (
        first_runs, first_steps, two_gpus, kills, promises, precision, jpeg_decoders, prediction_speed,
        prepare_speed, input_speed, feeding, imagenet_plan, imagenet_rehearsal, throughput, throughput_costs,
        compiled, breakdown, startup, figure1, lrn_on_cifar10, overfitting_and_cures, ablations, specialisation,
        table2, small_claims, kernels_and_neighbors, imagenette, fine_tuning, claims, every_claim, exchange,
        exchange_precision, exchange_overlap, scaling, scaling_model, large_batches,
    )
}  # fmt: skip


def marked(name: str) -> str:
    """A table, and which of its logs are older than the last change of the files that they measured."""
    READ.clear()
    text = TABLES[name]()
    reasons: dict[str, list[str]] = {}
    for of, reason in sorted(READ.items()):
        if reason:
            reasons.setdefault(reason, []).append(f"`{of}`")
    notes = [f"{', '.join(logs)}: of {reason}" for reason, logs in reasons.items()]
    return f"{text}\n\n<sub>Not of the code as it is now. {'; '.join(notes)}.</sub>" if notes else text


def rendered(text: str) -> str:
    """The page with each `<!-- table: name -->` … `<!-- end -->` filled in."""
    return re.sub(
        r"<!-- table: (\w+) -->.*?<!-- end -->",
        lambda match: f"<!-- table: {match[1]} -->\n{marked(match[1])}\n<!-- end -->",
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
    draw()


if __name__ == "__main__":
    main()
