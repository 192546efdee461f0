"""Trains AlexNet and evaluates it.

  python -m alexnet_jax.main --workdir=DIR                        the built-in data set, minutes on a CPU
  python -m alexnet_jax.main --workdir=DIR --dataset=PREPARED     your photographs, from alexnet_jax.prepare
  python -m alexnet_jax.main --workdir=DIR --dataset=PREPARED --preset=paper

A preset fills in every setting; each flag given beside it replaces one. The same command given again
continues a run that was stopped.
"""

import dataclasses

from absl import flags

from alexnet_jax import command
from alexnet_jax.config import PRESETS, Config, InputError


def main() -> None:
    flags.DEFINE_string("workdir", None, "folder of the run: made where it is missing, continued where it is not")
    flags.DEFINE_enum("preset", "demo", list(PRESETS), "settings to start from")
    command.define_flags(Config, PRESETS)
    command.run(_train)


def _train() -> None:
    if not flags.FLAGS.workdir:
        raise InputError("--workdir=DIR is needed: the folder of the run")
    config = dataclasses.replace(PRESETS[flags.FLAGS.preset], **command.given_flags(Config))
    # Here, so that --help and bad flags do not wait for JAX.
    from alexnet_jax.train import train_and_evaluate

    train_and_evaluate(config, flags.FLAGS.workdir)


if __name__ == "__main__":
    main()
