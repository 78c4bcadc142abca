"""Check at import that the packages that sa_mmdet needs are installed and work."""
import importlib
import platform
import shlex
import sys
import warnings
from contextlib import suppress
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from packaging.version import Version

MINIMUM_VERSIONS = {'torch': '2.0', 'mmengine': '0.10.0', 'mmcv': '2.1.0', 'mmdet': '3.3.0'}

MMPRETRAIN = {'openmmlab': 'mmpretrain', 'onedl': 'onedl-mmpretrain'}  # by stack
MMPRETRAIN_PARTS = ('datasets', 'models', 'evaluation', 'engine')  # these register its classes


def check_environment() -> None:
    """Import torch, mmengine, mmcv and mmdet, in this order.

    Warn if there is a GPU and mmcv's operators were compiled without CUDA.

    Raises:
        ImportError: a package is missing, too old or refused by MMDetection, or mmcv lacks its
            operators. The message names the package, its version and what to do.
    """
    for package, minimum in MINIMUM_VERSIONS.items():
        _check_package(package, minimum)
    _check_operators()


def mmpretrain_problem() -> str | None:
    """Return why MMPretrain cannot be used. Only the ImageNet classifiers need it.

    Returns:
        A message with the remedy, or None if MMPretrain works.
    """
    if find_spec('mmpretrain') is None:
        return ('the ImageNet classifiers need MMPretrain, which is not installed. Run '
                f'`pip install --no-deps {MMPRETRAIN[stack()]}`, then install its requirements and '
                'the torchvision that matches your torch (docs/imagenet.md)')
    try:
        for part in MMPRETRAIN_PARTS:
            importlib.import_module(f'mmpretrain.{part}')
    except Exception as error:  # another torch's torchvision raises RuntimeError
        if 'torchvision' in str(error):
            return _other_torchvision(error)
        return (f'MMPretrain does not import ({error}). Install it with its requirements: '
                f'`make install` or `pip install {MMPRETRAIN[stack()]}`')
    return None


def torchvision_problem() -> str | None:
    """Return why MMEngine cannot load torchvision's weights, with the remedy, or None."""
    try:
        importlib.import_module('torchvision')
    except (ImportError, RuntimeError):  # the latter from another torch's torchvision
        return ("the initial weights are torchvision's (torchvision://...). MMEngine finds them "
                'through torchvision, but torchvision does not import. Install the torchvision '
                'that matches your torch. Or give a downloaded file or another URL: --cfg-options '
                'model.backbone.init_cfg.checkpoint=FILE. For random weights, use '
                'model.backbone.init_cfg=None.')
    return None


def _other_torchvision(error: Exception) -> str:
    torch = importlib.import_module('torch').__version__
    return (f'MMPretrain imports torchvision, which does not load here ({error}). Install the '
            f'torchvision for torch {torch}, in the same build, with CUDA or for the CPU')


def tools_of(package: str) -> Path:
    """Return the folder of scripts in the installed 'mmdet' or 'mmpretrain'."""
    return Path(find_spec(package).origin).parent / '.mim' / 'tools'


def stack() -> str:
    """Return which stack is installed: 'openmmlab' or 'onedl'."""
    try:
        metadata.distribution('onedl-mmdetection')
    except metadata.PackageNotFoundError:
        return 'openmmlab'
    return 'onedl'


def versions() -> dict[str, str]:
    """Return the installed stack ('openmmlab' or 'onedl') and the versions of its parts."""
    parts = {name: importlib.import_module(name).__version__
             for name in ('sa_mmdet', *MINIMUM_VERSIONS)}
    with suppress(metadata.PackageNotFoundError):
        parts['mmpretrain'] = metadata.version(MMPRETRAIN[stack()])
    return dict(stack=stack(), python=platform.python_version(), **parts)


def _check_package(package: str, minimum: str) -> None:
    if find_spec(package) is None:
        raise ImportError(f'sa_mmdet needs {package} >= {minimum}, which is not installed. '
                          f'{_how_to_install()}')
    try:
        version = importlib.import_module(package).__version__
    except AssertionError as error:  # how mmdet refuses an mmcv or mmengine
        raise ImportError(f'{package} does not import: {error} {_how_to_install()}') from error
    if Version(version) < Version(minimum):
        raise ImportError(f'sa_mmdet needs {package} >= {minimum}, found {version}. '
                          f'{_how_to_install()}')


def _check_operators() -> None:
    try:
        importlib.import_module('mmdet.models')
    except (ImportError, RuntimeError) as error:
        if 'torchvision' in str(error):  # MMDetection imports it if MMPretrain is installed
            raise ImportError(
                f'{_other_torchvision(error)}. Or uninstall MMPretrain: MMDetection imports it '
                'if it is installed, and does not need torchvision without it') from error
        if '_ext' not in f'{error} {getattr(error, "path", "")}':  # a library it needs is missing
            raise
        raise ImportError(
            f'mmcv is installed without operators that work with this torch ({error}). It is '
            'mmcv-lite, or was built before torch or for another torch, or has CUDA while torch '
            f'does not. Reinstall it: {_install_mmcv()}') from error
    torch, operators = map(importlib.import_module, ('torch', 'mmcv.ops'))
    if (torch.version.cuda and torch.cuda.is_available()
            and operators.get_compiling_cuda_version() == 'not available'):
        warnings.warn(
            "mmcv's operators are compiled for the CPU only, so RoIAlign and NMS will fail on the "
            f'GPU. Reinstall mmcv with CUDA: {_install_mmcv()}', RuntimeWarning, stacklevel=4)


def _how_to_install() -> str:
    return ('Install one of the two supported stacks (docs/use.md, "Installation"). Run '
            '`make install` in the repository. Or, by hand, install torch, then '
            '`mmengine mmdet==3.3.0 "setuptools<81"` or `onedl-mmengine onedl-mmdetection`, '
            f'then mmcv: {_install_mmcv()}')


def _install_mmcv() -> str:
    """Return the command that installs a working mmcv in a version that mmdet accepts."""
    tool = Path(__file__).parents[1] / 'tools/install_mmcv.py'
    if not tool.exists():
        tool = Path(__file__).with_name('.mim') / 'tools/install_mmcv.py'
    wanted = ['mmcv==2.1.0'] if stack() == 'openmmlab' else []
    return shlex.join([sys.executable, str(tool), *wanted])
