"""What an optimised program of XLA says of itself: the bytes that each of its kernels moves."""

import math
import re

BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f32": 4, "s32": 4, "u32": 4, "f64": 8}
MOVE_NOTHING = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "iota", "partition-id")


def bytes_of(shape: str) -> int:
    """Of a shape, or a tuple of several, as XLA writes it; of what lies in a TPU's vector memory, S(1), none."""
    found = re.findall(r"\b([a-z]+\d*)\[([\d,]*)\](\{[^}]*S\(\d\)[^}]*\})?", shape)
    return sum(
        BYTES.get(kind, 0) * math.prod(int(of) for of in dims.split(",") if of)
        for kind, dims, elsewhere in found
        if not elsewhere
    )


# What each of n devices sends at the least (in a ring), as multiples of the bytes of its result.
SENT = {
    "all-gather": lambda n: (n - 1) / n,
    "reduce-scatter": lambda n: n - 1,
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "all-to-all": lambda n: (n - 1) / n,
    "collective-permute": lambda n: 1,
}


def exchanges(text: str) -> list[tuple[str, int]]:
    """(kind, bytes of the result) of each exchange between devices in an optimised program."""
    kinds = "|".join(SENT)
    found = re.findall(rf"= (.*?) ({kinds})(?:-start)?\(", text)
    return [(kind, bytes_of(shape)) for shape, kind in found]


def bytes_sent(text: str, devices: int) -> dict[str, int]:
    """By each device, by kind of exchange, in an optimised program for so many."""
    found: dict[str, int] = {}
    for kind, size in exchanges(text):
        found[kind] = found.get(kind, 0) + round(size * SENT[kind](devices))
    return found


def traffic(text: str) -> list[tuple[int, str, str]]:
    """(bytes read and written, instruction, the operation that it comes from) of each kernel of an optimised program.

    What loops do inside is not counted (ten views are one). What is copied ahead of its use counts where it arrives.
    """
    sizes: dict[str, int] = {}
    shapes: dict[str, str] = {}
    sources: dict[str, str] = {}  # of what is on its way
    found = []
    for line in text[text.index("\nENTRY") :].splitlines()[1:]:
        match = re.match(r"\s*(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([a-z][\w\-]*)\((.*)", line)
        if not match:
            continue
        name, shape, kind, rest = match.groups()
        operands = re.findall(r"%([\w.\-]+)", rest.split("), ")[0])
        sizes[name], shapes[name] = bytes_of(shape), shape
        if kind in ("copy-start", "slice-start"):
            sources[name] = shapes.get(operands[0], "")
        elif kind in ("copy-done", "slice-done"):
            read = bytes_of(re.sub(r"S\(\d\)", "", shape)) if "S(" not in sources[operands[0]] else 0
            found.append((read + sizes[name], f"{kind} {name}", ""))
        elif kind not in MOVE_NOTHING and not kind.endswith("-done") and "ConcatBitcast" not in line:
            source = re.search(r'op_name="([^"]*)"', line)
            moved = sizes[name] + sum(sizes.get(of, 0) for of in operands)
            found.append((moved, f"{kind} {name}", source[1] if source else ""))
    return found
