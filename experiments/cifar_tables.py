"""Tables and pictures of the experiments on CIFAR-10, from the logs in results/; tables.py writes them."""

import statistics
from typing import Any

import lrn_cifar10
import overfitting
import relu_vs_tanh
from matplotlib.figure import Figure
from record import RESULTS, log, mean_and_std, table, where
from training import reached, smoothed

from alexnet_jax.figures import BLUE, ORANGE

PICTURES = RESULTS.parent / "figures"


def of_trainings(kept: list[dict[str, Any]]) -> str:
    """Where and when they were."""
    return "; ".join(dict.fromkeys(where(of) for of in kept))


def times_faster(network: str) -> list[float]:
    """By how many times ReLU comes to the target sooner, by seed."""
    studies = (log("relu_vs_tanh")["results"][f"{network}, {name}"]["curves"] for name in ("ReLU", "tanh"))
    pairs = zip(*([epochs_to_target(of["result"]) for of in study] for study in studies), strict=True)
    return [tanh / relu for relu, tanh in pairs if None not in (relu, tanh)]


def epochs_to_target(curve: dict[str, list[float]]) -> float | None:
    return reached(list(zip(curve["epochs"], curve["errors"], strict=True)), relu_vs_tanh.TARGET)


def claims() -> str:
    """What the paper says of CIFAR-10 and of training in general, and what came out here."""
    ratios = [f"{mean_and_std(times_faster(network))} ({network})" for network in relu_vs_tanh.NETWORKS]
    lrn = log("lrn_cifar10_450_epochs")["results"]
    errors = [
        mean_and_std(100 * of["result"]["ten_views_top1_error"] for of in lrn[network])
        for network in ("13 % network", "with normalisation alone", "11 % network")
    ]
    rows = [
        ["Figure 1", "ReLU reaches 25 % training error six times faster than tanh", f"{', '.join(ratios)} times"],
        [
            "§3.3",
            "a four-layer network: 13 % test error without normalisation, 11 % with",
            f"{errors[0]} %, {errors[2]} %; by normalisation alone {errors[1]} %; seeds: {len(lrn['11 % network'])}",
        ],
        [
            "§4.2",
            "dropout roughly doubles the iterations to converge",
            f"{dropout_takes():.1f} times the epochs to the same training error",
        ],
    ]
    return table(["", "the paper", "here"], rows)


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
        ratios = times_faster(network)
        rows.append([*cells, mean_and_std(ratios) if ratios else "–"])
    header = ["network", "ReLU: rate", "epochs to 25 %", "tanh: rate", "epochs to 25 %", "times faster (paper: six)"]
    seeds = len(kept) // len(rows) // 2
    note = f"Mean ± standard deviation of {seeds} seeds, of which the first has chosen the rate; {of_trainings(kept)}."
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


def lrn_on_cifar10() -> str:
    """Test errors of the networks of "13 % → 11 %", by length of the training."""
    rows, kept = [], []
    logs = [log(file.stem) for file in RESULTS.glob("lrn_cifar10_*_epochs.json")]
    for values in sorted(logs, key=lambda values: -values["epochs"]):
        for network in lrn_cifar10.NETWORKS:
            of = [training["result"] for training in values["results"][network]]
            kept += values["results"][network]
            kinds = ("training_error", "top1_error", "ten_views_top1_error")
            errors = [mean_and_std([100 * result[kind] for result in of], ".2f") + " %" for kind in kinds]
            full = values["epochs"] == lrn_cifar10.EPOCHS
            published = {"13 % network": "13 %", "11 % network": "11 %"} if full else {}
            rows.append([network, f"{values['epochs']:g}", len(of), *errors, published.get(network, "")])
    header = ["network", "epochs", "seeds", "training error", "test error, one view", "ten views", "paper, 450 epochs"]
    return f"{table(header, rows)}\n\nMean ± standard deviation over the seeds; {of_trainings(kept)}."


def epochs_to_learn(trainings: list[dict[str, Any]]) -> list[float]:
    return [epoch for of in trainings if (epoch := overfitting.learned(of["result"])) is not None]


def dropout_takes() -> float:
    """So many times the epochs until the training images are learned."""
    with_it, without = (epochs_to_learn(log("overfitting")["results"][name]) for name in ("dropout", "neither"))
    return statistics.mean(with_it) / statistics.mean(without)


def overfitting_and_cures() -> str:
    values, rows, kept = log("overfitting"), [], []
    for name, trainings in values["results"].items():
        kept += trainings
        of = [training["result"] for training in trainings]
        rows.append(
            [
                name,
                *(f"{mean_and_std(100 * run[kind][-1] for run in of)} %" for kind in ("training error", "test error")),
                f"{mean_and_std(100 * min(run['test error']) for run in of)} %",
                mean_and_std((run["test loss"][-1] for run in of), ".2f"),
                mean_and_std((overfitting.converged(run) for run in of), ".0f"),
                mean_and_std(epochs_to_learn(trainings)),
            ]
        )
    error = f"{100 * overfitting.LEARNED:.0f} % training error"
    header = [
        "cure", "training error at the end", "test error", "lowest test error", "test loss", "epochs to converge",
        f"to {error}",
    ]  # fmt: skip
    note = (
        f"After {values['epochs']:g} epochs; mean ± standard deviation of {len(kept) // len(rows)} seeds. With dropout "
        f"{error} takes {dropout_takes():.1f} times the epochs. Converged: the test error, mean of three looks, is "
        f"within a point of its lowest; {of_trainings(kept)}."
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
