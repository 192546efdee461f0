"""Tables of the experiments on photographs, from the logs in results/; tables.py writes them."""

import statistics

import ablations as ablation
import table2 as small
from record import log, mean_and_std, table, where


def ablations() -> str:
    """Errors of each variant, and how much they rose, here and in 2012."""
    values, rows = log("ablations"), []
    base = [training["result"] for training in values["results"]["demo"]]
    for name, trainings in values["results"].items():
        of = [training["result"] for training in trainings]
        kinds = ("training_error", "top1_error", "top5_error")
        errors = [mean_and_std(100 * result[kind] for result in of) + " %" for kind in kinds]
        rise = statistics.mean(100 * (a["top1_error"] - b["top1_error"]) for a, b in zip(of, base, strict=True))
        rows.append([name, *errors, "" if name == "demo" else f"{rise:+.1f}", ablation.VARIANTS[name].imagenet])
    header = ["variant", "training error", "top-1", "top-5", "top-1 rises by", "in 2012, top-1 / top-5"]
    kept = values["results"]["demo"][0]
    note = f"{values['epochs']:g} epochs; mean ± standard deviation of {len(base)} seeds; {where(kept)}."
    return f"{table(header, rows)}\n\n{note}"


def specialisation() -> str:
    values = log("specialisation")
    rows = []
    for name in dict.fromkeys(run.rsplit(",", 1)[0] for run in values["runs"]):
        of = [found for run, found in values["runs"].items() if run.rsplit(",", 1)[0] == name]
        means = "; ".join(" and ".join(f"{mean:.2f}" for mean in found["means"]) for found in of)
        rows.append([name, means, "; ".join(f"{found['chance']:.1%}" for found in of)])
    runs = values["runs"].values()
    special = sum(found["chance"] < 0.05 for found in runs)
    note = (
        f"{special} of {len(runs)} runs are specialised by this measure, where {0.05 * len(runs):.1f} would be by "
        "chance."
    )
    return f"{table(['variant', 'colourfulness of the two GPUs, by run', 'by chance'], rows)}\n\n{note}"


def table2() -> str:
    values, rows = log("table2"), []
    for row, found in values["results"].items():
        cells = []
        for kind in ("top1_error", "top5_error"):
            low, high = found["intervals"][kind]
            cells.append(f"{100 * found[kind]:.1f} % ({100 * low:.1f} to {100 * high:.1f})")
        rows.append([row, *cells, small.ROWS[row][2]])
    on = ", ".join(dict.fromkeys(values["devices"].values()))
    note = f"In brackets 95 % of bootstrap samples of the validation images. Trained on: {on}; {where(values)}."
    return f"{table(['networks', 'top-1', 'top-5', 'paper, % top-1 / top-5'], rows)}\n\n{note}"
