"""Writes the tables of README.md and experiments/README.md from the logs in results/.

python experiments/tables.py            writes them
python experiments/tables.py --check    says whether they differ from the logs
"""

import json
import math
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PAGES = (ROOT / "README.md", ROOT / "experiments" / "README.md")


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


TABLES = {"first_runs": first_runs, "first_steps": first_steps, "two_gpus": two_gpus, "jpeg_decoders": jpeg_decoders}


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
