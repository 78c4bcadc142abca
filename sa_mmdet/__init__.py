"""SA-Net (Shuffle Attention, arXiv 2102.00240) for MMDetection.

Importing the package registers its layers, backbones, necks and hooks. A config only needs
``custom_imports = dict(imports=['sa_mmdet'])``.
"""
from .environment import check_environment, versions

check_environment()

from . import checkpoint, hooks, models, ops  # noqa: E402
from .checkpoint import *  # noqa: E402, F403
from .hooks import *  # noqa: E402, F403
from .models import *  # noqa: E402, F403
from .ops import *  # noqa: E402, F403
from .version import __version__  # noqa: E402

__all__ = ['__version__', 'check_environment', 'versions', *checkpoint.__all__, *hooks.__all__,
           *models.__all__, *ops.__all__]

allow_mmengine_checkpoints()  # noqa: F405
