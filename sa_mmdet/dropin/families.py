"""The families of MMDetection's own configs, and one config of each that can take attention."""
import difflib
import inspect
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import mmdet
from mmdet.registry import MODELS
from mmengine.config import Config, ConfigDict

from .changes import routes_of
from .reasons import explain

ZOO = Path(mmdet.__file__).parent / '.mim' / 'configs'
DEPTHS_WITHOUT_BOTTLENECKS = (18, 34)


@dataclass(frozen=True)
class Family:
    """A folder of the zoo.

    Attributes:
        name: of the folder.
        config: the path of the config to try, relative to the zoo; None where no backbone takes
            plugins.
        backbone: its backbone in words; without a config all backbones of the folder.
        routes: how attention can go into it, of ``changes``.
    """
    name: str
    config: str | None
    backbone: str
    routes: tuple[str, ...] = ()


def family_names() -> list[str]:
    """The folders with configs; those that begin with '_' hold parts of them."""
    return sorted(folder.name for folder in ZOO.iterdir()
                  if folder.name[0] != '_' and any(folder.rglob('*.py')))


def check_names(names: list[str]) -> None:
    """Raise ValueError, with the nearest names, for a family that the zoo does not have."""
    known = family_names()
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
            hint = f'did you mean {" or ".join(near)}?' if near else f'there are {", ".join(known)}'
            raise ValueError(f'MMDetection has no config family {name!r}: {hint}')


def find_family(name: str) -> Family:
    """Choose the config to try: always the same one for the same zoo.

    Of the configs whose backbone takes plugins, whole detectors come before trackers, region
    proposal networks and what needs their proposals; then the family's most frequent kind of
    backbone (its type, with or without DCN, with or without plugins of its own); then the
    shallowest with bottlenecks, so ResNet-50; then the shortest name.
    """
    found, problems = _load(name)
    candidates = [(path, model) for path, model in found
                  if (backbone := find_backbone(model)) and takes_plugins(backbone)]
    if not candidates:
        types = {(find_backbone(model) or model).type for _, model in found}
        return Family(name, None, ', '.join(sorted(types or problems or {'no detector'})))
    kinds = Counter(_kind(model) for _, model in candidates)

    def rank(candidate: tuple[Path, ConfigDict]) -> tuple:
        path, model = candidate
        kind = _kind(model)
        return (not _is_detector(model), -kinds[kind], kind, _size(model), len(path.name),
                path.name)

    path, model = min(candidates, key=rank)
    backbone = find_backbone(model)
    return Family(name, path.relative_to(ZOO).as_posix(), describe(backbone), routes_of(backbone))


def describe(backbone: ConfigDict) -> str:
    """A backbone in a few words: its type, its depth, and what is not as in plain ResNet."""
    depth = backbone.get('depth') or backbone.get('arch')
    layers = [backbone.get(key) or {} for key in ('norm_cfg', 'conv_cfg', 'dcn', 'sac')]
    plugins = [plugin['cfg'] for plugin in backbone.get('plugins') or []]
    words = [str(layer['type']) for layer in (*layers, *plugins) if layer.get('type', 'BN') != 'BN']
    words += [key for key in ('deep_stem', 'avg_down') if backbone.get(key)]
    words += ['caffe'] if backbone.get('style') == 'caffe' else []
    return ', '.join([f'{backbone.type} {depth}', *words])


def find_backbone(model: ConfigDict) -> ConfigDict | None:
    """The backbone's part of a model's config, also of a detector inside another model."""
    backbone = model.get('backbone') or model.get('detector', {}).get('backbone', {})
    return backbone if 'type' in backbone else None


def takes_plugins(backbone: ConfigDict) -> bool:
    """Whether the class of a backbone, or a class that it inherits from, has ``plugins``."""
    try:
        cls = MODELS.get(backbone.type)
    except ImportError:
        return False
    return cls is not None and any(
        'plugins' in inspect.signature(base.__init__).parameters for base in cls.__mro__[:-1])


def _load(name: str) -> tuple[list[tuple[Path, ConfigDict]], set[str]]:
    """The models of a family's configs with their paths, and what stops the other configs."""
    found, problems = [], set()
    for path in sorted((ZOO / name).rglob('*.py')):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')
                model = Config.fromfile(path).get('model')
        except Exception as error:
            problems.add(explain(str(error)))
            continue
        if model is not None:
            found.append((path, model))
    return found, problems


def _is_detector(model: ConfigDict) -> bool:
    return 'backbone' in model and model.type not in ('RPN', 'FastRCNN')


def _kind(model: ConfigDict) -> tuple[bool, bool, bool, str]:
    backbone = find_backbone(model)
    return (bool(backbone.get('plugins')), bool(backbone.get('dcn')), backbone.type != 'ResNet',
            backbone.type)


def _size(model: ConfigDict) -> tuple[bool, int]:
    depth = find_backbone(model).get('depth', 0)
    return depth in DEPTHS_WITHOUT_BOTTLENECKS, depth
