"""Trains AlexNet and evaluates it.

  python -m alexnet_jax.main --workdir=DIR                        the built-in data set, minutes on a CPU
  python -m alexnet_jax.main --workdir=DIR --dataset=PREPARED     your photographs, from alexnet_jax.prepare
  python -m alexnet_jax.main --workdir=DIR --dataset=PREPARED --preset=paper

A preset fills in every setting; each flag given beside it replaces one. The same command given again
continues a run that was stopped.
"""

import dataclasses

from alexnet_jax import command
from alexnet_jax.config import PRESETS, Config, InputError, option


@dataclasses.dataclass(frozen=True)
class Options:
    """The flags beside those of Config."""

    workdir: str = option("", "folder of the run: made where it is missing, continued where it is not")
    preset: str = option("demo", f"settings to start from: {' or '.join(PRESETS)}")

    def __post_init__(self):
        if not self.workdir:
            raise InputError("--workdir=DIR is needed: the folder of the run")
        if self.preset not in PRESETS:
            raise InputError(f"--preset={self.preset}: unknown; there are {', '.join(PRESETS)}")


def main() -> None:
    command.define_flags(Options)
    command.define_flags(Config, PRESETS)
    command.run(_train, __doc__)


def _train() -> None:
    options = Options(**command.given_flags(Options))
    config = dataclasses.replace(PRESETS[options.preset], **command.given_flags(Config))
    # Here, so that --help and bad flags do not wait for it.
    from alexnet_jax.train import train_and_evaluate

    train_and_evaluate(config, options.workdir)


if __name__ == "__main__":
    main()
