"""The AlexNet of 2012 in JAX: https://papers.nips.cc/paper/4824, section by section.

The names below are loaded when they are first used: `import alexnet_jax` alone imports neither JAX nor anything else.

- `alexnet_jax.paper`: §3 the network, §4 the augmentation, §5 the training, §6 the errors, as formulas
- `alexnet_jax.data`: §2, images from wherever they lie to batches
- `alexnet_jax.device`: several devices and hosts, and the fastest forms of the operations
- `alexnet_jax.runs`: a run's folder
- `alexnet_jax.networks`: trained networks
- `alexnet_jax.train`: `fit`
"""

import lazy_loader

__version__ = "0.2.0.dev0"
__getattr__, __dir__, _names = lazy_loader.attach_stub(__name__, __file__)
__all__ = ["__version__", *_names]
