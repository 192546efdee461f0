"""torchvision's and Caffe's networks by their names, from a server on this machine with files of their true form."""

import dataclasses
import hashlib
import http.server
import io
import json
import shutil
import threading

import jax
import numpy as np
import pytest
import test_preprocessing
import test_pth
import test_weights
from PIL import Image

import alexnet_jax
from alexnet_jax import command, downloads, features, main, predict, weights
from alexnet_jax.config import Config
from alexnet_jax.data import archives, imagenet
from alexnet_jax.data.datasets import open_dataset
from alexnet_jax.networks import interchange, pretrained, transfer
from alexnet_jax.networks.loading import load
from alexnet_jax.options import InputError
from alexnet_jax.paper.architectures import CAFFE, TORCHVISION
from alexnet_jax.paper.model import AlexNet
from alexnet_jax.paper.table import named, with_classes, with_column

pytestmark = pytest.mark.usefixtures("quickly_compiled")
WIDTHS = (8, 12, 16, 12, 8, 24, 20, 1000)
CONTENT = {}


@pytest.fixture(scope="module")
def owner(tmp_path_factory):
    """Serves narrow networks with 1,000 outputs; (address, paths that were asked for)."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_GET(self):
            asked.append(self.path)
            content = CONTENT[self.path]
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()


@pytest.fixture(autouse=True)
def published(owner, monkeypatch, tmp_path):
    """The two of the package, with the address and the checksum of the narrow ones, and an empty cache."""
    for name, layers in {"CAFFE": CAFFE, "TORCHVISION": TORCHVISION}.items():
        monkeypatch.setattr(interchange, name, with_column(layers, features=WIDTHS))
    monkeypatch.setenv("ALEXNET_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")
    address, asked = owner
    asked.clear()
    if not CONTENT:
        CONTENT.update(files())
    found = {}
    for name, file in pretrained.PUBLISHED.items():
        place = f"/{file.name}"
        digest = hashlib.new(file.algorithm, CONTENT[place]).hexdigest()
        found[name] = file._replace(address=address + place, digest=digest)
    monkeypatch.setattr(pretrained, "PUBLISHED", found)
    return found


def files():
    """By their addresses, as PyTorch writes it, by itself where it is installed, and as Caffe does."""
    tensors = test_weights.torchvision_tensors()
    try:
        import torch
    except ImportError:
        pth = test_pth.state_dict(tensors)
    else:
        written = io.BytesIO()
        torch.save({name: torch.from_numpy(of) for name, of in tensors.items()}, written)
        pth = written.getvalue()
    caffemodel = test_weights.caffemodel(test_weights.oihw(interchange.CAFFE, 227, scale=0.5), old=False)
    return {"/alexnet-owt-7be5be79.pth": pth, "/bvlc_alexnet.caffemodel": caffemodel}


@pytest.fixture
def photo(tmp_path):
    file = tmp_path / "photo.jpg"
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((400, 300), Image.Resampling.BICUBIC).save(file)
    return file


def test_what_is_published_stands_in_the_package_as_its_owners_have_it(monkeypatch):
    monkeypatch.undo()
    torchvision, caffe = pretrained.PUBLISHED.values()
    assert torchvision.address == f"https://download.pytorch.org/models/{torchvision.name}"
    assert torchvision.digest.startswith(torchvision.name.removesuffix(".pth").split("-")[-1])
    assert (caffe.algorithm, caffe.digest) == ("sha1", "9116a64c0fbe4459d18f4bb6b56d647b63920377")
    for file in (torchvision, caffe):
        assert len(file.digest) == hashlib.new(file.algorithm).digest_size * 2


def test_a_network_by_its_name_is_that_of_its_file(owner, tmp_path):
    for name in ("torchvision", "caffe"):
        network = alexnet_jax.pretrained(name)
        file = tmp_path / "cache" / pretrained.PUBLISHED[name].name
        if name == "torchvision":
            expected = interchange.from_torchvision(file)
        else:
            of_colors = np.array([104.00698793, 116.66876762, 122.67891434])[None, :, None, None]  # BGR
            mean = test_weights.blob(np.broadcast_to(of_colors, (1, 3, 256, 256)), old=True)
            (tmp_path / "mean").write_bytes(mean)
            expected = interchange.from_caffe(file, tmp_path / "mean")
        assert network.class_names == imagenet.class_names()
        assert (network.net.layers, network.config) == (expected.net.layers, expected.config)
        np.testing.assert_allclose(network.mean_image, expected.mean_image, rtol=1e-6)
        jax.tree.map(np.testing.assert_array_equal, network.params, expected.params)
        again = load(name)
        np.testing.assert_array_equal(again.params["conv1"]["kernel"], network.params["conv1"]["kernel"])
        with pytest.raises(InputError, match=f"{name}: holds one network and has no checkpoint '7'"):
            load(name, "7")
    assert owner[1] == [f"/{file.name}" for file in pretrained.PUBLISHED.values()]  # once each


def test_whoever_asks_for_a_run_takes_its_name(tmp_path, monkeypatch, capsys, photo):
    def run(function, *arguments, **flags):
        monkeypatch.setattr(command, "given_flags", lambda _: flags)
        function(*arguments)
        return capsys.readouterr().out

    monkeypatch.chdir(tmp_path)
    (line,) = run(predict._predict, [str(photo)], workdir="torchvision", json=True).splitlines()
    network = load("torchvision")
    likeliest = np.argsort(-np.asarray(network.probabilities(network.preprocess(photo)[None]))[0])[:5]
    assert [row["class"] for row in json.loads(line)["top"]] == [network.class_names[of] for of in likeliest]
    for folder, label in (("n02123045", "tabby"), ("tabby", "tabby"), ("photographs", None)):
        (tmp_path / folder).mkdir()
        (seen,) = predict.predictions(network, [str(shutil.copy(photo, tmp_path / folder))])
        assert seen.label == label
    run(features._write, [str(photo)], workdir="torchvision", layers=("fc7:relu",), output="f.npy")
    assert np.load("f.npy").shape == (1, 20)
    for name in ("torchvision", "caffe"):
        run(weights._convert, source=name, output="a.safetensors")
        assert load("a.safetensors").class_names == imagenet.class_names()
    (tmp_path / "mean").write_bytes(test_weights.blob(np.full((1, 3, 256, 256), 100.0), True))
    run(weights._convert, source="caffe", output="a.safetensors", mean="mean")
    assert (load("a.safetensors").mean_image == 100).all()
    assert not load("a.safetensors").preprocessing.upright
    run(weights._convert, source="torchvision", output="a.safetensors", upright=True)
    assert load("a.safetensors").preprocessing.upright
    for flags, message in (
        ({"source": "torchvision", "mean": "mean"}, "mean: is a mean for caffe; torchvision's network has its own"),
        ({"source": "caffe", "checkpoint": "5"}, "--checkpoint=5 is for a run's folder; caffe is none"),
        (
            {"source": "caffe", "classes": "names"},
            "--classes=names is for files without names of their own; caffe has its own",
        ),
    ):
        with pytest.raises(InputError, match=message):
            run(weights._convert, output="b.safetensors", **flags)
    (tmp_path / "torchvision").mkdir()  # a folder of this name is a run
    with pytest.raises(InputError, match="torchvision: there is no run"):
        load("torchvision")


def answers_of_pytorch(contents, monkeypatch):
    """By Pillow and PyTorch alone, from the file that PyTorch wrote."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed; the extra [parity] brings it")
    monkeypatch.setattr(test_weights, "WIDTHS", WIDTHS)
    state = torch.load(io.BytesIO(CONTENT["/alexnet-owt-7be5be79.pth"]), weights_only=True)
    module = test_weights.torchvision_module(torch, state)
    pixels = np.stack([test_preprocessing.torchvision_transform(content) for content in contents])
    scaled = (pixels / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    with torch.no_grad():
        return module(torch.from_numpy(scaled.transpose(0, 3, 1, 2))).softmax(1).numpy()


def answers_of_opencv(contents, folder):
    """By OpenCV alone, from the file of Caffe's form; minus the mean value of each colour, BGR."""
    cv2 = pytest.importorskip("cv2", reason="OpenCV is not installed; the extra [parity] brings it")
    (folder / "deploy.prototxt").write_text(test_weights.prototxt(WIDTHS))
    (folder / "a.caffemodel").write_bytes(CONTENT["/bvlc_alexnet.caffemodel"])
    reader = cv2.dnn.readNetFromCaffe(str(folder / "deploy.prototxt"), str(folder / "a.caffemodel"))
    images = np.stack([test_preprocessing.of_caffe(cv2, content) for content in contents])[:, 14:241, 14:241]
    of_colors = np.array([104.00698793, 116.66876762, 122.67891434])
    reader.setInput((images - of_colors).transpose(0, 3, 1, 2).astype(np.float32))
    logits = reader.forward("fc8").astype(np.float64)
    return np.exp(logits) / np.exp(logits).sum(1, keepdims=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["torchvision", "caffe"])
def test_from_the_server_and_jpegs_to_the_five_likeliest_of_its_own_framework(tmp_path, monkeypatch, name):
    photographs = [content for _, content in test_preprocessing.photographs()]
    files = [tmp_path / f"{number:02}.jpg" for number in range(len(photographs))]
    for file, content in zip(files, photographs, strict=True):
        file.write_bytes(content)
    if name == "torchvision":
        expected = answers_of_pytorch(photographs, monkeypatch)
    else:
        expected = answers_of_opencv(photographs, tmp_path)
    likeliest = np.argsort(-expected, axis=1)[:, :5]
    assert len({*map(tuple, likeliest)}) > 30  # the photographs are told apart
    network = alexnet_jax.pretrained(name)
    found = [*predict.predictions(network, [*map(str, files)])]
    classes = imagenet.class_names()
    for of, row, numbers in zip(found, expected, likeliest, strict=True):
        assert [word for word, _ in of.top] == [classes[number] for number in numbers], of.file
        np.testing.assert_allclose([probability for _, probability in of.top], row[numbers], rtol=1e-3)


def test_without_the_network_one_line_says_what_to_put_where(tmp_path, monkeypatch):
    file = pretrained.PUBLISHED["torchvision"]._replace(address="http://127.0.0.1:9/alexnet.pth")
    monkeypatch.setattr(pretrained, "PUBLISHED", {"torchvision": file})
    monkeypatch.setattr(downloads, "PAUSE", 0)
    with pytest.raises(InputError) as caught:
        load("torchvision")
    for part in (file.address, str(tmp_path / "cache" / file.name), file.digest):
        assert part in str(caught.value)
    with pytest.raises(InputError, match="--workdir=vgg: must be torchvision"):
        alexnet_jax.pretrained("vgg")
    with pytest.raises(InputError, match="mean: is a mean for caffe; torchvision's network has its own"):
        alexnet_jax.pretrained("torchvision", "mean")


def trained_by_main(monkeypatch, **flags):
    """(layers, config) that `main` would train with these flags."""
    seen = []
    monkeypatch.setattr("alexnet_jax.train.fit", lambda layers, dataset, config, workdir: seen.append((layers, config)))
    own = {field.name for field in dataclasses.fields(main.Options)}

    def given(of):
        return {name: value for name, value in flags.items() if (name in own) == (of is main.Options)}

    monkeypatch.setattr(command, "given_flags", given)
    main._run()
    return seen[0]


def test_a_run_that_begins_with_a_network_has_its_layers(tmp_path, prepared, monkeypatch):
    common = {"workdir": str(tmp_path / "run"), "dataset": str(prepared)}
    for name, crop_size in (("torchvision", 224), ("caffe", 227)):
        layers, config = trained_by_main(monkeypatch, **common, init_from=name)
        assert layers == with_classes(getattr(interchange, name.upper()), 3)
        assert config.crop_size == crop_size
        own = AlexNet(layers)
        origin = transfer.find_origin(config, tmp_path / "run", own, open_dataset(str(prepared)))
        assert origin.new == [f"{[*named(layers)][-1]}/bias", f"{[*named(layers)][-1]}/kernel"]
    _, config = trained_by_main(monkeypatch, **common, init_from="caffe", crop_size=195)
    assert config.crop_size == 195
    for given in ({"architecture": "demo"}, {"preset": "demo"}):
        layers, config = trained_by_main(monkeypatch, **common, init_from="torchvision", **given)
        assert layers == with_classes(alexnet_jax.DEMO, 3)
    hint = (
        r"--init_from=torchvision: none of its layers has the name and shapes of one here \(conv1/kernel is "
        r"\(11, 11, 3, 8\) there, \(11, 11, 3, 32\) here\); without "
        r"--architecture and --preset, its own network is trained"
    )
    with pytest.raises(InputError, match=hint):
        transfer.find_origin(config, tmp_path / "run", AlexNet(layers), open_dataset(str(prepared)))
    with pytest.raises(InputError, match=r"--init_from=nowhere: nowhere: there is no run"):
        trained_by_main(monkeypatch, **common, init_from="nowhere")


def test_the_classes_are_those_of_torchvision_by_name_and_order():
    synsets, names = imagenet.synsets(), imagenet.class_names()
    assert len(synsets) == len(names) == len(set(names)) == 1000
    # torchvision numbers ImageNet's folders in the order of their names, Caffe's synset_words.txt too.
    assert [*synsets] == sorted(synsets)
    assert all(len(synset) == 9 and synset[0] == "n" and synset[1:].isdigit() for synset in synsets)
    # As anybody knows them who has used a network of torchvision.
    known = {
        0: "tench", 134: "crane (n02012849)", 207: "golden retriever", 281: "tabby", 517: "crane (n03126707)",
        638: "maillot (n03710637)", 639: "maillot (n03710721)", 999: "toilet tissue",
    }  # fmt: skip
    assert {number: names[number] for number in known} == known
    assert synsets["n02123045"] == "tabby, tabby cat"
    assert imagenet.named(["n02123045", "n02012849", "else"]) == ("tabby", "crane (n02012849)", "else")
    assert archives._lines("labels.txt") == [*synsets]  # of TFDS, by which `prepare` numbers them


def test_a_prepared_imagenet_whose_classes_are_identifiers_has_the_same_classes(prepared, tmp_path):
    data = open_dataset(str(prepared))
    three = dataclasses.replace(data, class_names=tuple([*imagenet.synsets()][:3]))
    config = Config(crop_size=224, init_from="torchvision")
    origin = transfer.find_origin(config, tmp_path, AlexNet(interchange.TORCHVISION), three)
    assert origin.new == []
    origin = transfer.find_origin(config, tmp_path, AlexNet(interchange.TORCHVISION), data)
    assert origin.new == ["fc8/bias", "fc8/kernel"]
