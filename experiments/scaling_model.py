"""What a step of `paper` takes on several devices, on paper: from the bytes that each has to send, and the rates.

Assumed: a device sends as fast as its link allows, in rings, and receives as much at the same time; nothing is hidden
behind the computation, and no exchange has to wait for a message's way; the computation takes what the roofline of the
compiled program says (compiled.py), and is not less where a device has a part of the dense layers only, since it has
them of all images then. So the exchange is what it costs at the most, and the computation at the least.
"""

import dataclasses

from record import log

from alexnet_jax import PAPER, summary

BATCHES = (128, 1024)  # images a device
LAYERS = {row.name: row for row in summary(PAPER, 224)}
PARAMETERS = sum(row.parameters for row in LAYERS.values())
OF_DENSE = sum(row.parameters for name, row in LAYERS.items() if name.startswith("fc"))
MAPS = {"conv2": 13 * 13 * 256, "conv5": 6 * 6 * 256, "fc6": 4096, "fc7": 4096}  # numbers an image, after the pooling
CLASSES = 1000


@dataclasses.dataclass(frozen=True)
class Machine:
    """devices: how many. link: bytes a second that one can send. compiled: the log that has its step's roofline."""

    name: str
    devices: int
    link: float
    compiled: str


MACHINES = (
    # NVLink of the fourth generation: 900 GB/s a GPU, both directions together.
    Machine("8 × H100, NVLink", 8, 450e9, "compiled_h100"),
    # 45 GB/s each way a link; a ring through all chips uses two links of each, one for each way around.
    Machine("TPU v5e-16", 16, 2 * 45e9, "compiled_v5e"),
    Machine("8 hosts with an H100 each, 100 Gbit/s", 8, 12.5e9, "compiled_h100"),
    Machine("8 hosts with an H100 each, 10 Gbit/s", 8, 1.25e9, "compiled_h100"),
)


def bytes_sent(kind: str, devices: int, batch: int, *, width: int = 4) -> float:
    """By each device in a step, of `batch` images a device, by kind of parallelism (of scaling.py). width: bytes of a
    number where computation has it; parameters, and so their gradients, have four.

    In a ring of n an all-gather or a reduce-scatter of an array passes on (n - 1)/n of the whole, and an all-reduce
    twice that. Data parallelism adds up all gradients. With dense layers divided only those of the convolutions are
    added up; the maps of conv5 and the outputs of fc6 and fc7 are gathered from all, and their gradients scattered;
    logits go back to their images, and their gradients come. Where the devices do not divide the classes, fc8 stays
    whole: its gradients are added up, and the outputs of fc7 go back to their images. In two columns the inputs of
    conv3 are gathered as well, and no gradients of parameters are sent.
    """
    ring, images = (devices - 1) / devices, devices * batch
    if kind == "columns":
        return 2 * ring * width * images * (sum(MAPS.values()) + CLASSES / 2)
    if kind == "dense":
        whole, gathered, back = PARAMETERS - OF_DENSE, MAPS["conv5"] + MAPS["fc6"] + MAPS["fc7"], CLASSES
        if CLASSES % devices:
            whole, gathered, back = whole + LAYERS["fc8"].parameters, gathered - MAPS["fc7"], MAPS["fc7"]
        return 2 * ring * width * (whole + images * gathered + batch * back)
    return 2 * ring * {"float32": 4, "bfloat16": 2}[kind] * PARAMETERS


def images_where_even(devices: int, *, width: int = 4) -> float:
    """Images a device at which divided dense layers make it send as much as all gradients in float32 do."""
    of_none, of_one = (bytes_sent("dense", devices, batch, width=width) for batch in (0, 1))
    return (bytes_sent("float32", devices, 0) - of_none) / (of_one - of_none)


def seconds_computing(machine: Machine, batch: int) -> float:
    """Of a step of so many images on one device, computed in bfloat16, by roofline."""
    rows = log(machine.compiled)["rows"]
    (row,) = [of for of in rows if [of[name] for name in ("task", "precision", "batch", "devices")]
              == ["train", "bfloat16", batch, 1]]  # fmt: skip
    return max(row["memory_ms"], row["computing_ms"]) / 1e3


def speedup(machine: Machine, kind: str, batch: int) -> tuple[float, float]:
    """(seconds of the exchange, how many times as many images a second as on one device), of `batch` images a device,
    computed in bfloat16.
    """
    exchange = bytes_sent(kind, machine.devices, batch, width=2) / machine.link
    computing = seconds_computing(machine, batch)
    return exchange, machine.devices * computing / (computing + exchange)
