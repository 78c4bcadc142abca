from .attention import *  # noqa: F403
from .backbones import *  # noqa: F403
