"""A user's first minutes with a network that is trained already: docs/pretrained_minutes.md is the log.

  python experiments/pretrained_minutes.py dist/*.whl        5 minutes on two cores; needs PyTorch, and 2 GB of disk

The wheel alone, in a new environment and an empty folder. In place of torchvision's server there is one on this
machine, with a file as PyTorch writes it, of torchvision's names and shapes; its weights are random, so its answers
mean nothing.
"""

import argparse
import functools
import hashlib
import http.server
import json
import re
import tempfile
import threading
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import copy

import torch
from first_minutes import VERSIONS, run
from record import save
from torch import nn

PHOTO = """\
import shutil

from matplotlib import cbook

shutil.copy(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False), "photo.jpg")
"""
USE = """\
import alexnet_jax

network = alexnet_jax.pretrained("torchvision")
(row,) = network.probabilities(network.preprocess("photo.jpg")[None])
print(network.class_names[row.argmax()], row.max())
maps = network.features(["photo.jpg"], ["conv1:relu"])["conv1:relu"]
print(maps.shape)
where = alexnet_jax.gradcam(network, network.preprocess("photo.jpg")[None])
print(where.shape)
"""
STEPS: list[tuple[str, str, dict[str, str]]] = [  # what it is, the command, files before it
    ("Install", "pip install --quiet '{wheel}[onnx]'", {}),
    ("A photograph", "python photo.py", {"photo.py": PHOTO}),
    ("What is in it", "python -m alexnet_jax.predict --workdir=torchvision photo.jpg", {}),
    ("Which outputs there are", "python -m alexnet_jax.features --workdir=torchvision --layers=help", {}),
    (
        "Features of two layers",
        "python -m alexnet_jax.features --workdir=torchvision --layers=conv5:pool,fc7:relu --output=f.npz photo.jpg",
        {},
    ),
    (
        "What it looks at",
        "python -m alexnet_jax.predict --workdir=torchvision --explain=gradcam --figure=why.png --format=csv photo.jpg",
        {},
    ),
    ("In one's own code", "python use.py", {"use.py": USE}),
    ("To ONNX", "python -m alexnet_jax.weights --source=torchvision --output=alexnet.onnx", {}),
    ("One file to give away", "python -m alexnet_jax.weights --source=torchvision --output=alexnet.safetensors", {}),
    (
        "It answers the same, from this file alone",
        "python -m alexnet_jax.predict --workdir=alexnet.safetensors photo.jpg",
        {},
    ),
    ("What there is now", "ls", {}),
]


def torchvision_file(file: Path) -> None:
    """torchvision's state dict, as PyTorch writes it, with random weights: large enough that answers differ."""
    torch.manual_seed(2012)
    convolutions = [(3, 64, 11), (64, 192, 5), (192, 384, 3), (384, 256, 3), (256, 256, 3)]
    layers: dict[str, nn.Conv2d | nn.Linear] = {
        f"features.{number}": nn.Conv2d(inputs, outputs, window)
        for number, (inputs, outputs, window) in zip((0, 3, 6, 8, 10), convolutions, strict=True)
    }
    layers |= {
        f"classifier.{number}": nn.Linear(inputs, outputs)
        for number, inputs, outputs in ((1, 9216, 4096), (4, 4096, 4096), (6, 4096, 1000))
    }
    for layer in layers.values():
        nn.init.kaiming_normal_(layer.weight)
    parameters = {
        f"{name}.{part}": getattr(layer, part).detach() for name, layer in layers.items() for part in ("weight", "bias")
    }
    torch.save(parameters, file)


@contextmanager
def server(folder: Path) -> Iterator[str]:
    """Serves a folder; its address."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{serving.server_port}"
        serving.shutdown()


def exchange(home: Path, address: str, file: Path) -> None:
    """In the installed package: the address and the checksum of torchvision's file, by those of this one."""
    (installed,) = home.glob("venv/lib/*/site-packages/alexnet_jax/networks/pretrained.py")
    text = installed.read_text()
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    text, addresses = re.subn(r"https://download\.pytorch\.org/models", address, text)
    text, digests = re.subn(r'"7be5be79[0-9a-f]{56}"', f'"{digest}"', text)
    assert (addresses, digests) == (1, 1)
    installed.write_text(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path)
    wheel = parser.parse_args().wheel
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        folder, served = home / "empty", home / "served"
        folder.mkdir()
        served.mkdir()
        copy(wheel, folder)
        file = served / "alexnet-owt-7be5be79.pth"
        torchvision_file(file)
        venv.create(home / "venv", with_pip=True)
        steps = []
        with server(served) as address:
            for title, command, files in STEPS:
                for file_name, content in files.items():
                    (folder / file_name).write_text(content)
                found = run(command.format(wheel=wheel.name), folder, errors=True)
                if title == "Install":
                    exchange(home, address, file)
                del found["seconds"]  # it may have been made while the machine had other work
                found["output"] = found["output"].replace(address, "http://127.0.0.1")  # of another port each time
                steps.append({"title": title, "files": files, **found})
                print(f"$ {found['command']}\n{found['output']}", flush=True)
        versions = json.loads(run(f'python -c "{VERSIONS}"', folder)["output"])
        save("pretrained_minutes", steps=steps, versions=versions)


if __name__ == "__main__":
    main()
