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
from alexnet_jax.shown import say, short, use_safe_streams

if __name__ == "__main__":
    use_safe_streams()
    given = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if given == "--version":
        say(f"alexnet_jax {__version__}")
    elif given in ("--help", "-h"):
        say(*__doc__.strip().split("\n"))
    else:
        known = f"-m alexnet_jax.{given} " in __doc__
        told = f"is written python -m alexnet_jax.{given}" if known else "no command; python -m alexnet_jax lists them"
        say(f"error: {short(given)}: {told}", error=True)
        sys.exit(2)
