"""The commands of alexnet_jax:

  python -m alexnet_jax.main --workdir=DIR                  trains and evaluates
  python -m alexnet_jax.prepare --source=… --output=DIR     makes a data set of your photographs
  python -m alexnet_jax.predict --workdir=DIR photo.jpg     the likeliest classes of pictures
  python -m alexnet_jax.features --workdir=DIR --output=…   the outputs of layers, as features
  python -m alexnet_jax.weights --source=… --output=…       one file for a network; other frameworks' networks

Each explains its flags with --help.
"""

import sys

from alexnet_jax import __version__
from alexnet_jax.shown import say, use_safe_streams

if __name__ == "__main__":
    use_safe_streams()
    say(*([f"alexnet_jax {__version__}"] if "--version" in sys.argv else __doc__.strip().split("\n")))
    sys.exit(0 if len(sys.argv) == 1 or sys.argv[1] in ("--version", "--help", "-h") else 2)
