"""What the README says of use in one's own code."""

import doctest
from pathlib import Path

import jax
import numpy as np
from PIL import Image

from alexnet_jax.config import Config
from alexnet_jax.networks import network as trained
from alexnet_jax.paper.architectures import DEMO
from alexnet_jax.paper.model import AlexNet
from alexnet_jax.paper.train_state import init_params

README = Path(__file__).parent.parent / "README.md"


def test_the_examples_do_what_they_say(tmp_path, monkeypatch):
    (tmp_path / "a_folder").mkdir()
    for number in range(3):
        Image.fromarray(np.full((90, 120, 3), 60 * number, np.uint8)).save(tmp_path / "a_folder" / f"{number}.png")
    monkeypatch.chdir(tmp_path)
    net = AlexNet(DEMO)
    config = Config(architecture="demo", crop_size=224)
    mean, params = np.full((256, 256, 3), 120.0), init_params(net, jax.random.key(0), 224)
    network = trained.Trained(tmp_path, 1, config, ("a",) * 10, mean, net, params)
    monkeypatch.setattr(trained, "load", {"my_run": network}.__getitem__)
    results = doctest.testfile(str(README), module_relative=False, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert results.failed == 0
    assert results.attempted > 25
