"""The notebook, from top to bottom, without a network."""

import json
from pathlib import Path

import jax
import nbclient
import nbformat
import numpy as np
import pytest

from alexnet_jax.networks import interchange
from alexnet_jax.paper.architectures import TORCHVISION
from alexnet_jax.paper.model import AlexNet
from alexnet_jax.paper.train_state import init_params

NOTEBOOK = Path(__file__).parent.parent / "experiments" / "alexnet.ipynb"


def save_random_torchvision_weights(file):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed; the extra [parity] brings it")
    like = init_params(AlexNet(TORCHVISION), jax.random.key(0), 224)
    axes = {2: (1, 0), 4: (3, 2, 0, 1)}
    state = {}
    for theirs, ours in interchange.TORCHVISION_NAMES.items():
        kernel = np.asarray(like[ours]["kernel"])
        state[f"{theirs}.weight"] = torch.from_numpy(kernel.transpose(axes[kernel.ndim]).copy())
        state[f"{theirs}.bias"] = torch.zeros(kernel.shape[-1])
    torch.save(state, file)


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom(tmp_path, monkeypatch):
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    save_random_torchvision_weights(tmp_path / "alexnet-owt-7be5be79.pth")
    (setting,) = (cell for cell in notebook.cells if cell.source == "epochs = 4.0")
    setting.source = "epochs = 0.1"
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    for proxy in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(proxy, "http://127.0.0.1:9")  # nobody is there
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert json.loads((tmp_path / "first_run" / "result.json").read_text())["steps"] == 12
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    said = "".join(output.get("text", "") for output in outputs)
    assert "star.png" in said
    assert "features (500, 4096)" in said
    kinds = [kind for output in outputs for kind in output.get("data", {}) if kind.startswith("image/")]
    assert kinds == ["image/png", "image/jpeg"]


def test_its_outputs_are_small_in_git():
    assert NOTEBOOK.stat().st_size < 200_000
