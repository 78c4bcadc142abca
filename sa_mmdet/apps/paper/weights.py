"""Initial weights: which checkpoint starts which backbone, and whether it fits."""
import itertools
import re
from pathlib import Path

from mmdet.models.backbones import ResNet
from mmdet.registry import MODELS
from mmengine.config import Config

from ...checkpoint import CheckpointError, read_checkpoint
from ..validate.config import class_of
from .runs import ReproduceError, read_result
from .tables import Row

BLOCKS_OF_LAYER3 = {6: 50, 23: 101, 36: 152}
BLOCK = re.compile(r'(?:module\.)?(backbone\.)?layer3\.(\d+)\.(\w+)\.')
OWN_PARTS = ('conv1', 'conv2', 'conv3', 'bn1', 'bn2', 'bn3', 'downsample')
SHUFFLE_ATTENTION = {'cweight', 'cbias', 'sweight', 'sbias', 'gn.weight', 'gn.bias'}


def imagenet_backbones(paths: list[Path], rows: list[Row]) -> dict[tuple[int, str], dict]:
    """Find out from their content which checkpoint starts which rows.

    Args:
        paths: checkpoints of backbones or classifiers, plain or with attention, and work dirs,
            whose finished classifiers with seed 0 are taken.
        rows: rows to start.

    Returns:
        What changes in a backbone's config, at least its ``init_cfg``, by (depth, attention), such
        as (50, 'SA').

    Raises:
        ReproduceError: A file cannot be read, isn't from a ResNet or is the second of its kind, or
            a row has no checkpoint.
    """
    found = {}
    for path in itertools.chain.from_iterable(map(_files, paths)):
        key, start = identify_backbone(path)
        if key in found:
            raise ReproduceError(f'--init imagenet: {found[key]["init_cfg"]["checkpoint"]} and '
                                 f'{path} are both of {_described(key)}: pass only one of them')
        found[key] = start
    needed = {(row.depth, row.attention): row.name for row in rows}
    lacking = [f'{_described(key)} (for {name})' for key, name in needed.items()
               if key not in found]
    if lacking:
        raise ReproduceError(
            f'--init imagenet has no checkpoint of {", ".join(lacking)}, only of '
            f'{", ".join(map(_described, found))}. Add the missing ones, or choose '
            'other rows with --rows')
    return {key: found[key] for key in needed}


def _files(path: Path) -> list[Path]:
    """Return a checkpoint itself; for a work dir, the last checkpoints of its classifiers."""
    if not path.is_dir():
        return [path]
    results = sorted(path.glob('*/seed0/result.json'))
    if not results:
        raise ReproduceError(f'--init imagenet: {path} has no finished run with seed 0. Pass the '
                             '--work-dir of Tables 1 and 2, or checkpoints')
    return [result.with_name(Path(read_result(result)['checkpoint']).name) for result in results]


def identify_backbone(path: Path) -> tuple[tuple[int, str], dict]:
    """Return the kind of ResNet that a checkpoint is from, and how a backbone starts from it.

    Returns:
        The depth and the attention: 'none', 'SE', 'SA', ... or, for an ablation of shuffle
        attention, 'SA with' or 'SA without' some parameters. Then changes to a backbone's config:
        ``init_cfg``, and for SE also ``attention``, which says whether it has biases.
    """
    try:
        state = read_checkpoint(path)['state_dict']
    except CheckpointError as error:
        raise ReproduceError(str(error)) from error
    matches = [match for match in map(BLOCK.match, state) if match]
    depth = BLOCKS_OF_LAYER3.get(len({match[2] for match in matches}))
    if depth is None:
        raise ReproduceError(f'{path} begins with {next(iter(state))}: expected a checkpoint of a '
                             'ResNet-50, -101 or -152')
    parts = {match[3] for match in matches}.difference(OWN_PARTS)
    if len(parts) > 1:
        raise ReproduceError(f'{path} has several extra layers in its bottlenecks, '
                             f'{", ".join(sorted(parts))}: expected a ResNet with one attention')
    prefix = dict(prefix=matches[0][1]) if matches[0][1] else {}
    start = dict(init_cfg=dict(type='Pretrained', checkpoint=str(path), **prefix))
    part = parts.pop() if parts else ''
    names = {name.partition(f'.{part}.')[2] for name in state if part and f'.{part}.' in name}
    if part == 'se':
        start['attention'] = dict(type='SqueezeExcitation', bias='fc1.bias' in names)
    if part == 'sa' and names != SHUFFLE_ATTENTION:
        return (depth, f'SA {_ablation(names)}'), start
    return (depth, part.upper() or 'none'), start


def _ablation(names: set[str]) -> str:
    """Return how the parameters of an ablation differ from those of shuffle attention."""
    more, less = names - SHUFFLE_ATTENTION, SHUFFLE_ATTENTION - names
    return ' '.join(f'{word} {", ".join(sorted(those))}'
                    for word, those in (('with', more), ('without', less)) if those)


def _described(key: tuple[int, str]) -> str:
    depth, attention = key
    return f'ResNet-{depth}' + ('' if attention == 'none' else f' with {attention}')


def describe_start(config: Config) -> str:
    """Return the initial weights of a config's model, or of its backbone, as text."""
    inits = [part.get('init_cfg') for part in (config.model.backbone, config.model)]
    sources = [init.get('checkpoint') for init in inits if isinstance(init, dict)]
    source = config.get('load_from') or config.model.get('pretrained') or next(
        filter(None, sources), None)
    if not source:
        return 'random'
    attention = class_of(config.model.backbone.type, MODELS) is not ResNet
    if source.startswith('torchvision://') and attention:
        return f'{source}, converted'
    return str(source)
