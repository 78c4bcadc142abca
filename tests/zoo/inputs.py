"""Small random batches with what a config's training loads: boxes, masks, frames, ..."""
import numpy as np
from mmdet.models.detectors.semi_base import SemiBaseDetector
from mmdet.models.mot import BaseMOTModel
from mmdet.registry import MODELS
from mmdet.testing import demo_mm_inputs, demo_mm_proposals, demo_track_inputs
from mmengine.config import Config

from sa_mmdet.apps.validate.config import dicts_below

OBJECTS = [3, 2]
BRANCHES = ('sup', 'unsup_teacher', 'unsup_student')


def make_batch(config: Config, side: int, training: bool) -> dict:
    """Make a batch in the form in which a data loader gives it to the data preprocessor.

    It has a square image; in training a lower one too (or a second square, where all are resized to
    one size), and for a semi-supervised detector as much for each branch. For a tracker it is one
    video of two frames.
    """
    model = MODELS.get(config.model.type)
    if issubclass(model, BaseMOTModel):
        return demo_track_inputs(
            1, 2, key_frames_inds=[0], image_shapes=[(3, side, side)], num_items=OBJECTS[:1],
            num_classes=_num_classes(config), with_mask=_loads(config, 'with_mask'))
    shapes = [(3, side, side)]
    if training:
        one_size = any(node.get('keep_ratio') is False
                       for node in dicts_below(config.get('train_dataloader')))
        shapes.append((3, side if one_size else side * 3 // 4, side))
    if training and issubclass(model, SemiBaseDetector):
        batches = {branch: _images(config, shapes) for branch in BRANCHES}
        return {key: {branch: batch[key] for branch, batch in batches.items()}
                for key in ('inputs', 'data_samples')}
    return _images(config, shapes)


def _images(config: Config, shapes: list[tuple[int, int, int]]) -> dict:
    classes = _num_classes(config)
    batch = demo_mm_inputs(
        len(shapes), shapes, num_items=OBJECTS[:len(shapes)], num_classes=max(2, classes),
        with_mask=_loads(config, 'with_mask', 'LoadPanopticAnnotations'),
        with_semantic=_loads(config, 'with_seg', 'LoadPanopticAnnotations'),
        texts=['object'] * len(shapes))
    proposals = demo_mm_proposals(shapes, 50)
    for sample, proposal in zip(batch['data_samples'], proposals, strict=True):
        sample.gt_instances.labels %= classes
        sample.set_metainfo(dict(homography_matrix=np.eye(3, dtype=np.float32)))
        if _loads(config, 'with_proposals', 'LoadProposals'):
            sample.proposals = proposal
    return batch


def _loads(config: Config, option: str, *types: str) -> bool:
    """Whether a transform of the training has an option turned on, or is of one of the types."""
    return any(node.get(option) is True or node.get('type') in types
               for node in dicts_below(config.get('train_dataloader')))


def _num_classes(config: Config) -> int:
    """Return the fewest classes of all the heads."""
    counts = [node[key] for node in dicts_below(config.model)
              for key in ('num_classes', 'num_things_classes') if key in node]
    if config.model.type != 'RPN' and not counts:
        raise ValueError(f'{config.model.type} has no object classes to make inputs of')
    return 1 if config.model.type == 'RPN' else min(counts)
