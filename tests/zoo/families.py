"""The families (folders) of MMDetection's configs, and one config of each to try."""
import functools
import inspect
import warnings
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import mmdet
from mmdet.registry import MODELS
from mmengine.config import Config, ConfigDict

from zoo.reasons import explain

ZOO = Path(mmdet.__file__).parent / '.mim/configs'
ROUTES = PLUGIN, BACKBONE = 'plugin', 'SAResNet'


class Family(NamedTuple):
    """A config, relative to the zoo, its backbone in words, and how attention can go into it.

    Where no backbone takes plugins there is no config, and ``backbone`` tells those of the folder.
    """
    name: str
    config: str | None
    backbone: str
    routes: tuple[str, ...] = ()


def family_names() -> list[str]:
    """Return the folders with configs; those that begin with '_' hold parts of them."""
    return sorted(folder.name for folder in ZOO.iterdir()
                  if folder.name[0] != '_' and any(folder.rglob('*.py')))


@functools.cache
def find_family(name: str) -> Family:
    """Choose the config to try: always the same one for the same zoo.

    Of the configs whose backbone takes plugins, whole detectors come before trackers, region
    proposal networks and what needs their proposals; then the family's most frequent kind of
    backbone (its type, with or without DCN, with or without plugins of its own); then the
    shallowest with bottlenecks, so ResNet-50; then the shortest name.
    """
    models, problems = _load(name)
    backbones = {path: find_backbone(model) for path, model in models.items()}
    paths = [path for path, backbone in backbones.items() if backbone and _takes_plugins(backbone)]
    if not paths:
        types = {(backbones[path] or models[path]).type.removeprefix('mmdet.') for path in models}
        return Family(name, None, ', '.join(sorted(types or problems or {'no detector'})))
    frequency = Counter(_kind(backbones[path]) for path in paths)

    def rank(path: Path) -> tuple:
        model, backbone, kind = models[path], backbones[path], _kind(backbones[path])
        proposes = 'backbone' not in model or model.type in ('RPN', 'FastRCNN')
        depth = backbone.get('depth', 0)
        return (proposes, -frequency[kind], kind, depth in (18, 34), depth, len(path.name),
                path.name)

    path = min(paths, key=rank)
    plain = backbones[path].type in ('ResNet', 'mmdet.ResNet')
    return Family(name, path.relative_to(ZOO).as_posix(), _describe(backbones[path]),
                  ROUTES if plain else (PLUGIN, ))


def find_backbone(model: ConfigDict) -> ConfigDict | None:
    """Return the backbone's part of a model's config, also of a detector inside another model."""
    backbone = model.get('backbone') or model.get('detector', {}).get('backbone', {})
    return backbone if 'type' in backbone else None


def _load(name: str) -> tuple[dict[Path, ConfigDict], set[str]]:
    """Return the models of a family's configs, and what stops the other configs."""
    models, problems = {}, set()
    for path in sorted((ZOO / name).rglob('*.py')):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')
                models[path] = Config.fromfile(path).get('model')
        except Exception as error:
            problems.add(explain(error))
    return {path: model for path, model in models.items() if model is not None}, problems


def _takes_plugins(backbone: ConfigDict) -> bool:
    """Whether the class of a backbone, or a class that it inherits from, has ``plugins``."""
    try:
        cls = MODELS.get(backbone.type)
    except ImportError:
        return False
    return cls is not None and any(
        'plugins' in inspect.signature(base.__init__).parameters for base in cls.__mro__[:-1])


def _kind(backbone: ConfigDict) -> tuple[bool, bool, bool, str]:
    return (bool(backbone.get('plugins')), bool(backbone.get('dcn')), backbone.type != 'ResNet',
            backbone.type)


def _describe(backbone: ConfigDict) -> str:
    """Return its type, its depth, and what is not as in plain ResNet."""
    layers = [backbone.get(key) or {} for key in ('norm_cfg', 'conv_cfg', 'dcn', 'sac')]
    layers += [plugin['cfg'] for plugin in backbone.get('plugins') or []]
    words = [str(layer['type']) for layer in layers if layer.get('type', 'BN') != 'BN']
    words += [key for key in ('deep_stem', 'avg_down') if backbone.get(key)]
    words += ['caffe'] if backbone.get('style') == 'caffe' else []
    return ', '.join([f'{backbone.type} {backbone.get("depth") or backbone.get("arch")}', *words])
