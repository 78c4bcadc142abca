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
ROUTES = PLUGIN, BACKBONE, NECK = 'plugin', 'SAResNet', 'FeatureAttention'


class Family(NamedTuple):
    """A config, relative to the zoo, its backbone in words, and how attention can go into it.

    Where there is no detector that can be built there is no config, and ``backbone`` says why.
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

    Configs whose backbone takes plugins come first, and whole detectors before trackers, region
    proposal networks and what needs their proposals; then the family's most frequent kind of
    backbone (its type, with or without DCN, with or without plugins of its own); then the
    shallowest with bottlenecks, so ResNet-50; then the narrowest, and the shortest name.
    """
    models, problems = _load(name)
    backbones = {path: backbone for path, model in models.items()
                 if (backbone := find_backbone(model)) and _class_of(backbone)}
    with_plugins = [path for path, backbone in backbones.items() if _takes_plugins(backbone)]
    if not backbones:
        types = {(find_backbone(model) or model).type for model in models.values()}
        return Family(name, None, ', '.join(sorted(types or problems or {'no detector'})))
    paths = with_plugins or list(backbones)
    frequency = Counter(_kind(backbones[path]) for path in paths)

    def rank(path: Path) -> tuple:
        model, backbone, kind = models[path], backbones[path], _kind(backbones[path])
        proposes = 'backbone' not in model or model.type in ('RPN', 'FastRCNN')
        depth, width = backbone.get('depth', 0), backbone.get('widen_factor', 1)
        return (proposes, -frequency[kind], kind, depth in (18, 34), depth, width, len(path.name),
                path.name)

    path = min(paths, key=rank)
    plain = backbones[path].type in ('ResNet', 'mmdet.ResNet')
    routes = ((PLUGIN, BACKBONE) if plain else (PLUGIN, )) if with_plugins else (NECK, )
    return Family(name, path.relative_to(ZOO).as_posix(), _describe(backbones[path]), routes)


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


def _class_of(backbone: ConfigDict) -> type | None:
    try:
        return MODELS.get(backbone.type)
    except ImportError:
        return None


def _takes_plugins(backbone: ConfigDict) -> bool:
    """Whether the class of a backbone, or a class that it inherits from, has ``plugins``."""
    return any('plugins' in inspect.signature(base.__init__).parameters
               for base in _class_of(backbone).__mro__[:-1])


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
    size = backbone.get('depth') or backbone.get('arch') or ''
    return ', '.join([f'{backbone.type} {size}'.strip(), *words])
