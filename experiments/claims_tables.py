"""The table of every empirical claim of the paper, in its order, with what is known here; tables.py writes it."""

from collections.abc import Callable
from typing import NamedTuple

import claims_results as results
from photo_tables import rise, specialised
from record import log, table

TESTED, SMALL, UNTESTED = "tested", "in small", "not testable"
TRAIN = "`python -m alexnet_jax.main --dataset=imagenet --preset=paper --workdir=my_run`"
TEN_VIEWS = "`python -m alexnet_jax.main --mode=evaluate --workdir=my_run --views=10`"
IMAGENET = "needs ImageNet"


class Claim(NamedTuple):
    """section and quote: of the paper. result: a text, or what writes it from logs."""

    section: str
    quote: str
    kind: str
    where: str
    result: str | Callable[[], str]


FIGURE_1, PHOTOGRAPHS, COUNTED = "`relu_vs_tanh.py`", "`ablations.py`", "counted"
CLAIMS = (
    Claim("Abstract, §6", "ILSVRC-2010: 37.5 % and 17.0 %", UNTESTED, TRAIN, f"{IMAGENET} (2010)"),
    Claim("Abstract, §3.5", "60 million parameters, 650,000 neurons", TESTED, "`test_paper.py`", results.sizes),
    Claim("Abstract, §6", "ILSVRC-2012: top-5 15.3 %, the second 26.2 %", UNTESTED, TEN_VIEWS,
          "the labels of the test images are not public"),
    Claim("§1", "fewer connections than dense networks of the size, “only slightly worse” at best", UNTESTED, "",
          "stated without an experiment"),
    Claim("§1", "each convolution has no more than 1 % of the parameters", TESTED, COUNTED,
          results.shares_of_parameters),
    Claim("§1", "removing any convolution is inferior", SMALL, "`small_claims.py`", results.removing_convolutions),
    Claim("§1, §5", "five to six days on two GTX 580 of 3 GB", UNTESTED, TRAIN, f"{IMAGENET} and these GPUs"),
    Claim("§1, §7", "faster GPUs, bigger data sets and longer training improve it", UNTESTED, TRAIN, IMAGENET),
    Claim("§3", "§3.1 to §3.4 are in the order of their importance", SMALL, "`small_claims.py`",
          results.order_of_importance),
    Claim("§3.1, Figure 1", "ReLU comes to 25 % training error six times faster than tanh", TESTED, FIGURE_1,
          results.relu_times),
    Claim("§3.1", "the size varies with the network, “consistently several times faster”", TESTED, FIGURE_1,
          "both networks of the line above"),
    Claim("§3.1", "such large networks could not be tried with saturating neurons", UNTESTED, TRAIN, IMAGENET),
    Claim("§3.2", "1.2 million examples suffice for networks too big for one GPU of 3 GB", UNTESTED, TRAIN, IMAGENET),
    Claim("§3.2", "two GPUs against one with half the kernels: −1.7 % / −1.2 %", SMALL, PHOTOGRAPHS,
          results.ablation("one GPU", "+1.7 / +1.2")),
    Claim("§3.2", "the two-GPU net takes slightly less time to train", SMALL, "counted; `two_gpus.py`",
          results.two_columns),
    Claim("§3.3", "ReLU needs no normalisation of its input to learn", SMALL, PHOTOGRAPHS,
          lambda: f"without normalisation the training error falls to "
          f"{100 * min(run['result']['training_error'] for run in log('ablations')['results']['no normalisation']):.1f}"
          " % and below 90 %, chance, in all runs"),
    Claim("§3.3", "response normalisation: −1.4 % / −1.2 %", SMALL, PHOTOGRAPHS,
          results.ablation("no normalisation", "+1.4 / +1.2")),
    Claim("§3.3", "CIFAR-10: 13 % without normalisation, 11 % with", TESTED, "`lrn_cifar10.py`",
          results.lrn_on_cifar10),
    Claim("§3.4", "overlapping pooling: −0.4 % / −0.3 %", SMALL, PHOTOGRAPHS,
          results.ablation("pooling does not overlap", "+0.4 / +0.3")),
    Claim("§3.4", "overlapping pooling is slightly harder to overfit", SMALL, "`small_claims.py`",
          results.overlap_overfits),
    Claim("§3.5, Figure 2", "neurons of the layers", TESTED, "`test_paper.py`",
          "as printed but for conv1: 55·55·96 = 290,400, not 253,440"),
    Claim("§4", "so many parameters overfit considerably", SMALL, "`overfitting.py`",
          lambda: "without a cure the training error ends at "
          f"{results.error_at_the_end('neither', 'training error')}, the test error at "
          f"{results.error_at_the_end('neither', 'test error')}; {results.seeds('overfitting')}"),
    Claim("§4.1", "the transformed images are “computationally free”", SMALL, "`feeding.py`",
          results.free_transformations),
    Claim("§4.1", "patches and reflections: a factor of 2,048", TESTED, "`test_augment.py`", "32 · 32 · 2"),
    Claim("§4.1", "without them substantial overfitting", SMALL, "`overfitting.py`, `ablations.py`",
          results.cure("crops and reflections", "no crops")),
    Claim("§4.1, §6", "ten views against one: 39.0 / 18.3 to 37.5 / 17.0", SMALL, "`table2.py`",
          results.table2_gain("1 CNN, ten views")),
    Claim("§4.1", "colour: over 1 % of top-1", SMALL, PHOTOGRAPHS, results.ablation("no colour", "over +1")),
    Claim("§4.2", "combining models lowers the error", SMALL, "`table2.py`", results.table2_gain("5 CNNs, ten views")),
    Claim("§4.2", "outputs × 0.5 approximate the geometric mean of the dropout networks", SMALL, "`small_claims.py`",
          results.geometric_mean),
    Claim("§4.2", "dropout keeps neurons from co-adapting; they learn more robust features", UNTESTED, "",
          "a reason, not measured in the paper either"),
    Claim("§4.2", "without dropout substantial overfitting", SMALL, "`overfitting.py`, `ablations.py`",
          results.cure("dropout", "no dropout")),
    Claim("§4.2", "dropout roughly doubles the iterations to converge", SMALL, "`overfitting.py`",
          results.dropout_iterations),
    Claim("§5", "weight decay lowers the training error", SMALL, "`small_claims.py`", results.weight_decay),
    Claim("§5", "biases of 1 speed the early stages", SMALL, "`small_claims.py`", results.biases_of_one),
    Claim("§5", "the rate falls three times, when the validation error stops improving", SMALL,
          "`test_optim.py`, `test_train.py`", "the rule alone; over a whole run not run: `python -m alexnet_jax.main "
          "--dataset=prepared --plateau_patience=5 --epochs=90 --workdir=my_run`"),
    Claim("§5", "roughly 90 cycles", UNTESTED, TRAIN, IMAGENET),
    Claim("§6, Table 1", "sparse coding 47.1 / 28.2, SIFT and Fisher vectors 45.7 / 25.7", UNTESTED, "",
          "results of others"),
    Claim("§6, Table 2", "1 CNN: 40.7 / 18.2", UNTESTED, TEN_VIEWS, IMAGENET),
    Claim("§6, Table 2", "5 CNNs: 38.1 / 16.4", SMALL, "`table2.py`",
          "the line on combining models; on ILSVRC: ImageNet"),
    Claim("§6, Table 2", "1 CNN\\* (pre-trained): 39.0 / 16.6", SMALL, "`table2.py`",
          results.table2_gain("1 CNN*, ten views")),
    Claim("§6, Table 2", "7 CNNs\\*: 36.7 / 15.4", SMALL, "`table2.py`, six of them",
          results.table2_gain("6 CNNs*, ten views")),
    Claim("§6", "errors on validation and test images differ by 0.1 % at most", UNTESTED, "",
          "the labels of the test images are not public"),
    Claim("§6", "Fall 2009, 10,184 classes: 67.4 / 40.9 (before: 78.1 / 60.9)", UNTESTED,
          "`python -m alexnet_jax.main --dataset=fall2009 --architecture=six_conv --workdir=my_run`",
          "needs the images of Fall 2009"),
    Claim("§6.1, Figure 3", "frequency- and orientation-selective kernels, coloured blobs", SMALL,
          "`kernels_and_neighbors.py`", results.kernels),
    Claim("§6.1, Figure 3", "one GPU blind to colour, the other not, in every run", SMALL, "`specialisation.py`",
          lambda: f"{specialised()} Not in every run"),
    Claim("§6.1, Figure 4", "objects off centre are recognised; the top five labels are reasonable", UNTESTED,
          "`python -m alexnet_jax.predict --workdir=my_run --figure=seen.png photo.jpg`", "pictures to look at"),
    Claim("§6.1, Figure 4", "nearest by features: the same thing, not close in pixels", SMALL,
          "`kernels_and_neighbors.py`", results.neighbors),
    Claim("§6.1", "codes by an auto-encoder would make retrieval fast", UNTESTED, "", "proposed, not tried"),
    Claim("§7", "removing any middle layer costs about 2 % of top-1", SMALL, "`ablations.py`; `small_claims.py`",
          lambda: f"without conv4 of the photographs' network {results.points(rise('without conv4'))}; "
          f"{results.seeds('ablations')}. "
          "Others: the line of §1"),
    Claim("§7", "unsupervised pre-training would help; video has more to give", UNTESTED, "", "expected, not tried"),
)  # fmt: skip


def every_claim() -> str:
    """One line for each claim."""
    rows = []
    for claim in CLAIMS:
        result = claim.result if isinstance(claim.result, str) else claim.result()
        rows.append([claim.section, claim.quote, claim.kind, claim.where, result])
    counts = {kind: sum(claim.kind == kind for claim in CLAIMS) for kind in (TESTED, SMALL, UNTESTED)}
    waiting = sum("not run: `" in row[-1] for row in rows)
    note = (
        f"{len(CLAIMS)} claims: {counts[TESTED]} tested as they are, {counts[SMALL]} in small ({waiting} of these "
        f"not run yet), {counts[UNTESTED]} not testable here. Differences with their 95 % intervals; resolved: where "
        "that leaves out 0 (of a ratio, 1)."
    )
    return f"{table(['section', 'the paper', '', 'by', 'here'], rows)}\n\n{note}"


def claims() -> str:
    """The README's few lines of it: what is tested on CIFAR-10."""
    shown = ("six times faster", "13 % without", "doubles the iterations")
    rows = [
        [claim.section.partition(",")[0], claim.quote, claim.result() if callable(claim.result) else claim.result]
        for claim in CLAIMS
        if any(part in claim.quote for part in shown)
    ]
    return table(["", "the paper", "here, with 95 % intervals"], rows)
