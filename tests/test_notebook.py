"""The two notebooks, from top to bottom, without a network; and what they say of themselves."""

import ast
import hashlib
import http.server
import importlib.metadata
import json
import re
import shutil
import subprocess
import threading
import types

import nbclient
import nbformat
import numpy as np
import pytest
from conftest import ROOT

import alexnet_jax
from alexnet_jax import figures
from alexnet_jax.networks import interchange, pretrained
from alexnet_jax.options import InputError
from alexnet_jax.paper.architectures import TORCHVISION
from alexnet_jax.paper.model import AlexNet
from alexnet_jax.paper.train_state import shapes_of_params

FIRST, PRETRAINED = (ROOT / "notebooks" / f"{name}.ipynb" for name in ("first_run", "pretrained"))
SOURCE = "ALEXNET_JAX_SOURCE"
UPLOAD = "https://colab.research.google.com/#upload=true"  # Colab's window for uploads


@pytest.fixture(params=[FIRST, PRETRAINED], ids=lambda file: file.stem)
def notebook(request):
    return nbformat.read(request.param, as_version=4)


def cells(notebook):
    """The code, by the cells' names."""
    return {cell.id: cell.source for cell in notebook.cells if cell.cell_type == "code"}


def names_stored(code):
    return {of.id for of in ast.walk(ast.parse(code)) if isinstance(of, ast.Name) and isinstance(of.ctx, ast.Store)}


def test_one_variable_says_where_the_package_comes_from(notebook):
    assert [name for name, code in cells(notebook).items() if SOURCE in names_stored(code)] == ["source"]
    assert [name for name, code in cells(notebook).items() if "pip" in code] == ["install"]
    install = cells(nbformat.read(FIRST, as_version=4))["install"]
    assert cells(notebook)["install"] == install
    installing = re.findall(r"^.*pip install.*$", (ROOT / "README.md").read_text(), re.MULTILINE)
    in_a_checkout = "pip install -e '.[test]' && python -m pytest"
    assert len(installing) == 2
    assert all(SOURCE in line or line == in_a_checkout for line in installing)


def test_the_readme_installs_nothing_without_it():
    (line,) = re.findall(rf"^pip install .*{SOURCE}.*$", (ROOT / "README.md").read_text(), re.MULTILINE)
    command = [shutil.which("bash"), "-c", line]
    process = subprocess.run(command, env={"PATH": "/nowhere"}, capture_output=True, text=True)
    assert process.returncode != 0
    (said,) = process.stderr.splitlines()
    assert said.endswith(f"{SOURCE}: must be set to a folder, a wheel or an address")


def installing(notebook, monkeypatch, *there, source="", returncode=0):
    """Runs its first two cells where the first of `there` are the versions, and the next ones once pip has been asked.
    Returns their names, and under "asked" what pip was asked for.
    """
    left, asked = list(there), []

    def distributions():
        versions = left.pop(0) if len(left) > 1 else left[0]
        return [types.SimpleNamespace(metadata={"Name": name}, version=of) for name, of in versions.items()]

    def run(command, **_):
        asked.append(command[5:])
        return subprocess.CompletedProcess(command, returncode, "", "pip's own words" if returncode else "")

    monkeypatch.setattr(importlib.metadata, "distributions", distributions)
    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(shutil, "which", lambda _: None)
    monkeypatch.setenv(SOURCE, source)
    found = {"asked": asked}
    for name in ("source", "install"):
        exec(cells(notebook)[name], found)
    return found


def test_without_it_and_without_the_package_there_is_one_line(notebook, monkeypatch, tmp_path):
    for source, line in (
        ("", f"error: {SOURCE} is empty: it must name a folder, a wheel or an address of the package"),
        (f"{tmp_path}/not.whl", f"error: {SOURCE}: {tmp_path}/not.whl is no folder, no wheel and no address"),
    ):
        with pytest.raises(Exception, match=SOURCE) as caught:
            installing(notebook, monkeypatch, {"jax": "0.7.2"}, source=source)
        assert caught.value._render_traceback_() == [line]


def test_a_kernel_shows_this_one_line(monkeypatch):
    monkeypatch.delenv(SOURCE, raising=False)
    notebook = nbformat.read(FIRST, as_version=4)
    notebook.cells = [
        nbformat.v4.new_code_cell("import importlib.metadata\nimportlib.metadata.distributions = list"),
        *[cell for cell in notebook.cells if cell.id in ("source", "install", "network")],
    ]
    for cell in notebook.cells:
        cell.outputs = []
    client = nbclient.NotebookClient(notebook, timeout=60)
    with pytest.raises(nbclient.exceptions.CellExecutionError):
        client.execute()
    (error,) = (output for cell in notebook.cells for output in cell.outputs)
    assert error.traceback == [f"error: {SOURCE} is empty: it must name a folder, a wheel or an address of the package"]


def test_what_pip_is_asked_for(notebook, monkeypatch, tmp_path):
    (tmp_path / "a.whl").touch()
    monkeypatch.chdir(tmp_path)
    names = installing(notebook, monkeypatch, {"alexnet_jax": "0.2.0"})
    assert names["asked"] == []  # it is there
    requirements, new = names["requirements"], {"jax": "0.10.1", "jaxlib": "0.10.0"}
    address = "https://example.org/a.whl"
    assert requirements("a.whl", new) == [f"{tmp_path}/a.whl", "jax==0.10.1", "jaxlib==0.10.0"]
    assert requirements(address, new) == [f"alexnet_jax @ {address}", "jax==0.10.1", "jaxlib==0.10.0"]
    for there in ({}, {"jax": "0.7.2", "jaxlib": "0.7.2"}):
        assert requirements(".", there) == [str(tmp_path)]
    monkeypatch.setattr(shutil, "which", lambda name: name == "nvidia-smi")
    assert requirements("a.whl", {"jax": "0.7.2"}) == [f"{tmp_path}/a.whl[cuda]"]
    assert requirements(address, {}) == [f"alexnet_jax[cuda] @ {address}"]


def test_it_tells_what_was_changed_and_asks_for_a_restart_where_that_was_loaded(
    notebook, monkeypatch, tmp_path, capsys
):
    before, after = {"jax": "0.7.2", "left": "1"}, {"jax": "0.10.2", "left": "1", "alexnet_jax": "0.2.0"}
    monkeypatch.setattr(importlib.metadata, "packages_distributions", lambda: {"jax": ["jax"], "left": ["left"]})
    with pytest.raises(Exception, match="restart the runtime, and run from the top: older jax was loaded already"):
        installing(notebook, monkeypatch, before, after, source=str(tmp_path))
    said = capsys.readouterr().out
    assert "changed: jax 0.7.2 → 0.10.2\nnew: alexnet_jax 0.2.0\n" in said

    monkeypatch.setattr(importlib.metadata, "packages_distributions", lambda: {"not_loaded": ["jax"]})
    assert installing(notebook, monkeypatch, before, after, source=str(tmp_path))["asked"] == [[str(tmp_path)]]

    with pytest.raises(Exception, match="pip could not install it; what it says stands above"):
        installing(notebook, monkeypatch, before, source=str(tmp_path), returncode=1)
    assert "pip's own words" in capsys.readouterr().out


def test_they_need_no_pytorch_and_name_only_what_is_public(notebook):
    public = set(alexnet_jax.__all__)
    for name, code in cells(notebook).items():
        tree = ast.parse(code)
        for node in ast.walk(tree):
            imported = [of.name for of in node.names] if isinstance(node, (ast.Import, ast.ImportFrom)) else []
            module = getattr(node, "module", None) if imported else None
            assert not {of.split(".")[0] for of in (module, *imported) if of} & {"torch", "torchvision"}, name
            if module == "alexnet_jax":
                assert set(imported) <= {*public, "figures", "predict"}, name  # the last two are modules
            elif module:
                assert not module.startswith("alexnet_jax."), name
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("figures", "predict", "network"):
                assert not node.attr.startswith("_"), (name, node.attr)
    assert "from alexnet_jax import" in "".join(cells(notebook).values())


def test_every_figure_that_they_draw_is_one_of_the_library(notebook):
    drawn = re.findall(r"figures\.(\w+)", "".join(cells(notebook).values()))
    assert len(drawn) > 5
    for name in drawn:
        assert hasattr(figures, name), name


def test_their_buttons_open_what_there_is(notebook):
    """The package has no public address yet, and so none by which Colab could fetch a notebook."""
    texts = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    pages = [texts, *((ROOT / page).read_text() for page in ("README.md", "notebooks/README.md"))]
    for text in pages:
        assert set(re.findall(r"https://colab\.research\.google\.com/[^)\s]*(?<!\.svg)(?=\))", text)) == {UPLOAD}
    assert "choose this file" in texts


def test_what_they_keep_is_small_and_of_no_random_weights():
    assert FIRST.stat().st_size < 450_000
    assert any(cell.outputs for cell in nbformat.read(FIRST, as_version=4).cells if cell.cell_type == "code")
    kept = nbformat.read(PRETRAINED, as_version=4)
    assert all(cell.outputs == [] for cell in kept.cells if cell.cell_type == "code")
    assert "kept without its pictures" in kept.cells[0].source


def test_bad_input_is_one_line_in_a_notebook():
    assert InputError("a\nb: is not there")._render_traceback_() == [r"error: a\nb: is not there"]


def run(notebook, folder, monkeypatch):
    """In a new kernel, without a network; its text, and the kinds of its pictures."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    for proxy in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(proxy, "http://127.0.0.1:9")  # nobody is there
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    for name in ("XLA_FLAGS", "JAX_COMPILATION_CACHE_DIR"):  # as users have it
        monkeypatch.delenv(name, raising=False)
    notebook.cells.append(nbformat.v4.new_code_cell('import sys\nassert "torch" not in sys.modules'))
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(folder)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    said = "".join(output.get("text", "") for output in outputs)
    kinds = [kind for output in outputs for kind in output.get("data", {}) if kind.startswith("image/")]
    return said, kinds


@pytest.mark.slow
def test_the_first_one_runs_from_top_to_bottom(tmp_path, monkeypatch):
    notebook = nbformat.read(FIRST, as_version=4)
    (setting,) = (cell for cell in notebook.cells if cell.source == "epochs = 4.0")
    setting.source = "epochs = 0.1"
    said, kinds = run(notebook, tmp_path, monkeypatch)
    assert json.loads((tmp_path / "first_run" / "result.json").read_text())["steps"] == 12
    assert "60,965,224" in said  # §3.5, counted
    assert "(64, 500, 10) networks, pictures, classes" in said
    assert len(kinds) == 9


def save_random_torchvision_weights(file):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed; the extra [parity] brings it")
    like = shapes_of_params(AlexNet(TORCHVISION), 224)
    rng = np.random.default_rng(2012)
    axes = {2: (1, 0), 4: (3, 2, 0, 1)}
    state = {}
    for theirs, ours in interchange.TORCHVISION_NAMES.items():
        shape = like[ours]["kernel"].shape
        kernel = rng.standard_normal(shape, np.float32) * np.sqrt(2 / np.prod(shape[:-1]))  # answers differ
        state[f"{theirs}.weight"] = torch.from_numpy(kernel.transpose(axes[kernel.ndim]).copy())
        state[f"{theirs}.bias"] = torch.zeros(shape[-1])
    torch.save(state, file)


@pytest.fixture
def server(tmp_path):
    """Serves a folder of its own; (folder, address)."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=str(tmp_path / "served"))

        def log_message(self, *_):
            pass

    (tmp_path / "served").mkdir()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        yield tmp_path / "served", f"http://127.0.0.1:{serving.server_port}"
        serving.shutdown()


@pytest.mark.slow
def test_the_pretrained_one_runs_with_a_file_of_the_true_form(server, tmp_path, monkeypatch):
    """Its one line fetches it from a server on this machine: of torchvision's form and size, with random weights."""
    folder, address = server
    name = pretrained.PUBLISHED["torchvision"].name
    save_random_torchvision_weights(folder / name)
    digest = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    notebook = nbformat.read(PRETRAINED, as_version=4)
    exchange = f"""\
from alexnet_jax.networks import pretrained as owners
of_torch = owners.PUBLISHED["torchvision"]._replace(address="{address}/{name}", digest="{digest}")
owners.PUBLISHED = {{**owners.PUBLISHED, "torchvision": of_torch}}"""
    notebook.cells.insert(0, nbformat.v4.new_code_cell(exchange))
    monkeypatch.setenv("ALEXNET_JAX_CACHE", str(tmp_path / "cache"))
    said, kinds = run(notebook, tmp_path, monkeypatch)
    assert (tmp_path / "cache" / name).exists()
    assert f"{address}/{name}: fetched into" in said
    assert "1,000 classes: tench, " in said
    assert "(4096,)" in said
    assert len(kinds) == 9
