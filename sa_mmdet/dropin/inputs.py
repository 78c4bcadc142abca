"""Small random batches with what a config's training loads: boxes, masks, frames, ..."""
import numpy as np
from mmdet.models.detectors.semi_base import SemiBaseDetector
from mmdet.models.mot import BaseMOTModel
from mmdet.registry import MODELS
from mmdet.testing import demo_mm_inputs, demo_mm_proposals, demo_track_inputs
from mmengine.config import Config

from .changes import dicts

OBJECTS = [3, 2]
FRAMES = 2
PROPOSALS = 50
BRANCHES = ('sup', 'unsup_teacher', 'unsup_student')


def training_batch(config: Config, side: int) -> dict:
    """A batch in the form in which a data loader gives it to the data preprocessor.

    Two images, a square and a lower one (or a second square, where training resizes all images to
    one size), with the annotations that the transforms of the config's training pipeline load; for
    a tracker one video of two frames, for a semi-supervised detector a batch for each branch.
    """
    model = MODELS.get(config.model.type)
    one_size = any(
        node.get('keep_ratio') is False for node in dicts(config.get('train_dataloader')))
    shapes = [(3, side, side), (3, side if one_size else side * 3 // 4, side)]
    if issubclass(model, BaseMOTModel):
        return _video(config, side, key_frames_inds=[0])
    if issubclass(model, SemiBaseDetector):
        batches = {branch: _images(config, shapes) for branch in BRANCHES}
        return {key: {branch: batch[key] for branch, batch in batches.items()}
                for key in ('inputs', 'data_samples')}
    return _images(config, shapes)


def prediction_batch(config: Config, side: int) -> dict:
    """As ``training_batch``, but what a test data loader gives: one image, or one video."""
    if issubclass(MODELS.get(config.model.type), BaseMOTModel):
        return _video(config, side)
    return _images(config, [(3, side, side)])


def _images(config: Config, shapes: list[tuple[int, int, int]]) -> dict:
    batch = demo_mm_inputs(
        len(shapes), shapes, num_items=OBJECTS[:len(shapes)],
        num_classes=max(2, _num_classes(config)),
        with_mask=_loads(config, 'with_mask', 'LoadPanopticAnnotations'),
        with_semantic=_loads(config, 'with_seg', 'LoadPanopticAnnotations'),
        texts=['object'] * len(shapes))
    for sample in batch['data_samples']:
        sample.gt_instances.labels %= _num_classes(config)
        sample.set_metainfo(dict(homography_matrix=np.eye(3, dtype=np.float32)))
    if _loads(config, 'with_proposals', 'LoadProposals'):
        proposals = demo_mm_proposals(shapes, PROPOSALS)
        for sample, proposal in zip(batch['data_samples'], proposals, strict=True):
            sample.proposals = proposal
    return batch


def _video(config: Config, side: int, **options) -> dict:
    return demo_track_inputs(
        1, FRAMES, image_shapes=[(3, side, side)], num_items=OBJECTS[:1],
        num_classes=_num_classes(config), with_mask=_loads(config, 'with_mask'), **options)


def _loads(config: Config, option: str, *types: str) -> bool:
    """Whether a transform of the training has an option turned on, or is of one of the types."""
    return any(node.get(option) is True or node.get('type') in types
               for node in dicts(config.get('train_dataloader')))


def _num_classes(config: Config) -> int:
    """The fewest classes of all the heads; raises ValueError where none has classes of objects."""
    counts = [node[key] for node in dicts(config.model)
              for key in ('num_classes', 'num_things_classes') if key in node]
    if config.model.type == 'RPN':
        return 1
    if not counts:
        raise ValueError(f'{config.model.type} has no classes of objects, of which inputs are made')
    return min(counts)
