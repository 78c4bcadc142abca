"""SA-Net (Shuffle Attention, arXiv 2102.00240) for MMDetection.

Importing the package registers its layers, backbones and hooks, so that a config only needs
``custom_imports = dict(imports=['sa_mmdet'])``.
"""
from .environment import check_environment

check_environment()

from .models import *  # noqa: E402, F403, I001
from .hooks import *  # noqa: E402, F403
from .checkpoint import allow_mmengine_checkpoints  # noqa: E402
from .version import __version__ as __version__  # noqa: E402

allow_mmengine_checkpoints()
