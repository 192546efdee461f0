"""Tables and pictures of the experiments on CIFAR-10, from the logs in results/; tables.py writes them."""

import math
import statistics
from typing import Any

import lrn_cifar10
import overfitting
import relu_vs_tanh
from intervals import Interval, difference, ratio
from matplotlib.figure import Figure
from record import RESULTS, log, mean_and_std, table, where
from training import reached, smoothed

from alexnet_jax.figures import BLUE, ORANGE

PICTURES = RESULTS.parent / "figures"


def of_trainings(kept: list[dict[str, Any]]) -> str:
    """Where and when they were."""
    return "; ".join(dict.fromkeys(where(of) for of in kept))


def seeds_of(values: dict[str, Any], count: int) -> str:
    named = values.get("seeds")
    return f"seeds {', '.join(map(str, named))}" if named else f"{count} seeds (the log does not name them)"


def times_faster(network: str) -> Interval | None:
    """By how many times ReLU comes to the target sooner; None where one of the runs did not come there."""
    studies = (log("relu_vs_tanh")["results"][f"{network}, {name}"]["curves"] for name in ("tanh", "ReLU"))
    epochs = [[epochs_to_target(of["result"]) for of in study] for study in studies]
    return None if any(None in of for of in epochs) else ratio(*epochs)  # type: ignore[arg-type]


def epochs_to_target(curve: dict[str, list[float]]) -> float | None:
    return reached(list(zip(curve["epochs"], curve["errors"], strict=True)), relu_vs_tanh.TARGET)


def figure1() -> str:
    """Epochs to 25 % training error, by network and non-linearity."""
    rows, kept = [], []
    for network in relu_vs_tanh.NETWORKS:
        epochs = {}
        for name in ("ReLU", "tanh"):
            study = log("relu_vs_tanh")["results"][f"{network}, {name}"]
            kept += study["curves"]
            epochs[name] = [epochs_to_target(of["result"]) for of in study["curves"]], f"{study['rate']:g}"
        cells = [network]
        for found, rate in epochs.values():
            there = [epoch for epoch in found if epoch is not None]
            missed = f", {len(found) - len(there)} of {len(found)} never" if len(there) < len(found) else ""
            cells += [rate, (mean_and_std(there) if there else "–") + missed]
        faster = times_faster(network)
        rows.append([*cells, faster.text(form=".1f") if faster else "–"])
    header = [
        "network", "ReLU: rate", "epochs to 25 %", "tanh: rate", "epochs to 25 %",
        "times faster, 95 % interval (paper: six)",
    ]  # fmt: skip
    seeds = seeds_of(log("relu_vs_tanh"), len(kept) // len(rows) // 2)
    note = f"Mean ± standard deviation; {seeds}, of which the first has chosen the rate; {of_trainings(kept)}."
    return f"{table(header, rows)}\n\n{note}"


def draw_figure1() -> Figure:
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    panels = figure.subplots(1, len(relu_vs_tanh.NETWORKS), sharey=True)
    for axes, network in zip(panels, relu_vs_tanh.NETWORKS, strict=True):
        for name, style in (("ReLU", "-"), ("tanh", "--")):
            for number, of in enumerate(log("relu_vs_tanh")["results"][f"{network}, {name}"]["curves"]):
                errors = smoothed(of["result"]["errors"])
                axes.plot(of["result"]["epochs"][:-1], errors[:-1], style, color="black", linewidth=0.9,
                          label=None if number else name)  # fmt: skip
        axes.axhline(relu_vs_tanh.TARGET, color="0.6", linewidth=0.8)
        axes.set_title(network, fontsize=9)
        axes.set_xlabel("epochs")
        axes.set_xlim(left=0)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("training error")
    panels[0].set_ylim(0, 0.9)
    panels[0].legend(frameon=False, fontsize=8)
    return figure


def lrn_logs() -> list[dict[str, Any]]:
    """The longest first; 0 epochs: as recorded."""
    logs = [log(file.stem) for file in RESULTS.glob("lrn_cifar10_*_epochs.json")]
    return sorted(logs, key=lambda values: -(values["epochs"] or math.inf))


def lrn_difference(values: dict[str, Any], network: str, kind: str = "ten_views_top1_error") -> Interval | None:
    """Of the errors of a network and of the 13 % network; None of one seed."""
    with_it, without = (
        [training["result"][kind] for training in values["results"][name]] for name in (network, "13 % network")
    )
    return difference(with_it, without) if len(with_it) > 1 else None


def lrn_on_cifar10() -> str:
    """Test errors of the networks of "13 % → 11 %", by length of the training."""
    rows, kept = [], []
    for values in lrn_logs():
        for network in lrn_cifar10.NETWORKS:
            of = [training["result"] for training in values["results"][network]]
            kept += values["results"][network]
            kinds = ("training_error", "top1_error", "ten_views_top1_error")
            errors = [mean_and_std([100 * result[kind] for result in of], ".2f") + " %" for kind in kinds]
            epochs = values["epochs"] or lrn_cifar10.RECORDED[network]
            published = {"13 % network": "13 %", "11 % network": "11 %"}
            recorded = epochs == lrn_cifar10.RECORDED[network]
            found = "" if network == "13 % network" else lrn_difference(values, network)
            apart = "one seed: no interval" if found is None else found and found.text(100, "+.2f")
            rows.append(
                [network, f"{epochs:g}", len(of), *errors, apart, published.get(network, "") if recorded else ""]
            )
    header = [
        "network", "epochs", "seeds", "training error", "test error, one view", "ten views",
        "ten views, against the 13 % network", "paper, at the recorded length",
    ]  # fmt: skip
    return (
        f"{table(header, rows)}\n\nMean ± standard deviation over the seeds; differences in points with their 95 % "
        f"intervals; {of_trainings(kept)}."
    )


def epochs_to_learn(trainings: list[dict[str, Any]]) -> list[float]:
    return [epoch for of in trainings if (epoch := overfitting.learned(of["result"])) is not None]


def dropout_takes() -> tuple[Interval, Interval]:
    """By how many times dropout takes more epochs: until the training images are learned; until it has converged."""
    with_it, without = (log("overfitting")["results"][name] for name in ("dropout", "neither"))
    converged = [[overfitting.converged(of["result"]) for of in trainings] for trainings in (with_it, without)]
    return ratio(epochs_to_learn(with_it), epochs_to_learn(without)), ratio(*converged)


def gains_of(cure: str) -> dict[str, Interval]:
    """By how much the test error at the end, and the gap between test and training error, differ with a cure."""
    results = log("overfitting")["results"]
    ends: dict[str, dict[str, list[float]]] = {}
    for name in (cure, "neither"):
        of = [training["result"] for training in results[name]]
        test, training = ([run[f"{kind} error"][-1] for run in of] for kind in ("test", "training"))
        gap = [a - b for a, b in zip(test, training, strict=True)]
        ends[name] = {"test error": test, "gap": gap}
    return {kind: difference(ends[cure][kind], ends["neither"][kind]) for kind in ("test error", "gap")}


def overfitting_and_cures() -> str:
    values, rows, kept = log("overfitting"), [], []
    for name, trainings in values["results"].items():
        kept += trainings
        of = [training["result"] for training in trainings]
        several = len(trainings) > 1 and name != "neither"
        rows.append(
            [
                name,
                *(f"{mean_and_std(100 * run[kind][-1] for run in of)} %" for kind in ("training error", "test error")),
                gains_of(name)["test error"].text(100) if several else "",
                f"{mean_and_std(100 * min(run['test error']) for run in of)} %",
                mean_and_std((run["test loss"][-1] for run in of), ".2f"),
                mean_and_std((overfitting.converged(run) for run in of), ".0f"),
                mean_and_std(epochs_to_learn(trainings)),
            ]
        )
    error = f"{100 * overfitting.LEARNED:.0f} % training error"
    header = [
        "cure", "training error at the end", "test error", "against neither", "lowest test error", "test loss",
        "epochs to converge", f"to {error}",
    ]  # fmt: skip
    count = len(kept) // len(rows)
    note = f"After {values['epochs']:g} epochs; mean ± standard deviation; {seeds_of(values, count)}. "
    if count > 1:
        learned, converged = dropout_takes()
        note += (
            f"With dropout {error} takes {learned.text(form='.2f')} times the epochs, and convergence "
            f"{converged.text(form='.2f')} times (95 % intervals). "
        )
    note += (
        f"Converged: the test error, mean of three looks, is within a point of its lowest; differences in points with "
        f"their 95 % intervals; {of_trainings(kept)}."
    )
    return f"{table(header, rows)}\n\n{note}"


def draw_overfitting() -> Figure:
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    panels = figure.subplots(1, 2)
    styles = {
        "neither": ("black", "-"), "crops and reflections": (BLUE, "-"), "dropout": (ORANGE, "-"), "both": (BLUE, "--"),
    }  # fmt: skip
    for name, trainings in log("overfitting")["results"].items():
        of = [training["result"] for training in trainings]
        for axes, kind in zip(panels, ("training error", "test error"), strict=True):
            means = [100 * statistics.mean(at) for at in zip(*(r[kind] for r in of), strict=True)]
            color, style = styles[name]
            axes.plot(of[0]["epochs"], means, style, color=color, linewidth=1.2, label=name)
            axes.set_title(kind, fontsize=9)
            axes.set_xlabel("epochs")
            axes.set_xlim(left=0)
            axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("%")
    panels[0].set_ylim(bottom=0)
    panels[1].legend(frameon=False, fontsize=8)
    return figure


def draw() -> None:
    """The pictures."""
    PICTURES.mkdir(exist_ok=True)
    for name, drawn in {"relu_vs_tanh": draw_figure1, "overfitting": draw_overfitting}.items():
        drawn().savefig(PICTURES / f"{name}.png", dpi=150)
