"""Grad-CAM and group scores on a network small enough to be computed by hand."""
from pathlib import Path

import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.model import BaseDataPreprocessor
from mmengine.structures import InstanceData
from torch import nn

from sa_mmdet.apps.validate.config import ConfigError
from sa_mmdet.apps.visualize.grad_cam import Target, box_target, class_target, compute_grad_cam
from sa_mmdet.apps.visualize.groups import GroupScores, draw_groups, group_scores
from sa_mmdet.apps.visualize.pictures import Picture
from sa_mmdet.models import ShuffleAttention

BOXES = torch.tensor([[0., 0., 2., 2.], [1., 1., 4., 4.]])


class Preprocessor(BaseDataPreprocessor):
    """Stacks images, as they are, and tells their shapes."""

    def forward(self, data, training=False):
        samples = data['data_samples']
        for sample in samples:
            sample.set_metainfo(dict(batch_input_shape=tuple(data['inputs'][0].shape[1:])))
        return dict(inputs=torch.stack(data['inputs']).float(), data_samples=samples)


class Detector(nn.Module):
    """Two detections, each with the score that its row of ``weights`` makes of the features."""

    def __init__(self, features: nn.Module, weights: torch.Tensor, labels=(0, 1)):
        super().__init__()
        self.data_preprocessor = Preprocessor()
        self.features = features
        self.unused = nn.Conv2d(1, 1, 1)
        self.pair = Pair()
        self.weights = nn.Parameter(weights)
        self.labels = torch.tensor(labels)

    def forward(self, inputs, data_samples, mode):
        assert mode == 'predict'
        maps = self.features(inputs)
        self.pair(maps)
        scores = (self.weights * maps.mean((2, 3))).sum(1)
        for sample in data_samples:
            sample.pred_instances = InstanceData(
                bboxes=BOXES[:len(scores)].clone(), scores=scores, labels=self.labels)
        return data_samples


class Pair(nn.Module):

    def forward(self, x):
        return x, x


def picture(values, visible=None):
    """A picture whose detector's input is ``values``, (C, H, W), ``visible`` of it no padding."""
    shape = visible or values.shape[1:]
    sample = DetDataSample(metainfo=dict(img_shape=values.shape[1:], ori_shape=shape))
    return Picture(Path('drawn.png'), np.full((*shape, 3), 100, np.uint8),
                   dict(inputs=values, data_samples=sample))


@pytest.fixture
def two_channels():
    """Channel 0 passes the input on, channel 1 turns its sign and doubles it."""
    conv = nn.Conv2d(1, 2, 1, bias=False)
    conv.weight.data[:] = torch.tensor([1., -2.]).reshape(2, 1, 1, 1)
    return Detector(conv, torch.tensor([[4., 1.], [3., 5.]]))


VALUES = torch.tensor([[[1., 2.], [-3., 4.]]])


def test_by_hand(two_channels):
    """The gradient of the mean of 4 positions is weight / 4, and its mean over positions too.

    Class 0: 4/4 x - 2 * 1/4 x = x/2; class 1: 3/4 x - 2 * 5/4 x = -7/4 x; below 0 nothing.
    """
    for label, expected in ((0, [[0.5, 1.], [0., 2.]]), (1, [[0., 0.], [5.25, 0.]])):
        target = class_target(label, 'object', threshold=-100.)
        cam = compute_grad_cam(two_channels, 'features', picture(VALUES), target)
        torch.testing.assert_close(cam, torch.tensor(expected))


def test_of_both_classes_is_of_their_sum(two_channels):
    both = Target('both', lambda found: found.labels >= 0)
    cam = compute_grad_cam(two_channels, 'features', picture(VALUES), both)
    torch.testing.assert_close(cam, torch.relu((0.5 - 1.75) * VALUES[0]))


def test_of_a_box(two_channels):
    """The detection that covers the box best, if it is of the class, whatever its place."""
    target = box_target(torch.tensor([1., 1., 4., 3.5]), 1, 'object')
    cam = compute_grad_cam(two_channels, 'features', picture(VALUES), target)
    torch.testing.assert_close(cam, torch.relu(-1.75 * VALUES[0]))
    found = InstanceData(bboxes=BOXES, labels=torch.tensor([0, 1]), scores=torch.ones(2))
    assert box_target(BOXES[1], 0, 'other class').choose(found).sum() == 0
    assert box_target(torch.tensor([0., 0., 4., 1.]), 1, 'elsewhere').choose(found).sum() == 0


def test_padding_is_cut_off(two_channels):
    values = torch.arange(16.).reshape(1, 4, 4)
    cam = compute_grad_cam(two_channels, 'features', picture(values, (3, 2)),
                   class_target(0, 'object', -100.))
    torch.testing.assert_close(cam, (4 / 16 - 2 / 16) * values[0, :3, :2])


def test_gradients_through_what_follows():
    """A layer in between, and one that is written over by the next, in place."""
    features = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.ReLU(inplace=True))
    features[0].weight.data[:] = torch.tensor([1., -2.]).reshape(2, 1, 1, 1)
    model = Detector(features, torch.tensor([[4., 1.]]), labels=(0, ))
    # ReLU lets 3 of 4 positions of channel 0 pass and 1 of channel 1: mean gradients 3/4, 1/16
    cam = compute_grad_cam(model, 'features.0', picture(VALUES), class_target(0, 'object', -100.))
    torch.testing.assert_close(cam, torch.relu(0.75 * VALUES[0] - 2 / 16 * VALUES[0]))


class Detached(nn.Conv2d):

    def forward(self, x):
        return super().forward(x.detach())


FLAT, RELU = (nn.Flatten(), nn.Unflatten(1, (2, 2, 2))), nn.ReLU()


@pytest.mark.parametrize(('following', 'layer', 'message'), [
    (FLAT, 'featurs', 'no layer of this name. Did you mean one of .*features'),
    (FLAT, 'features.9', 'no layer of this name. Did you mean one of .*features.0, features.1'),
    (FLAT, 'unused', 'unused does not run .* choose another'),
    (FLAT, 'pair', 'pair returns a tuple, not one map: choose a layer within'),
    (FLAT, 'features.1', 'output of layer features.1 is not a map of the whole image'),
    ((RELU, nn.Conv2d(2, 2, 1), RELU), 'features.1', 'features.1 runs 2 times on one image'),
    ((Detached(2, 2, 1), ), 'features.0', 'no gradient of the score reaches layer features.0'),
])
def test_layers_without_a_map(following, layer, message):
    features = nn.Sequential(nn.Conv2d(1, 2, 1), *following)
    model = Detector(features, torch.ones(1, 2), labels=(0, ))
    with pytest.raises(ConfigError, match=message):
        compute_grad_cam(model, layer, picture(VALUES), class_target(0, 'object', -100.))


@pytest.mark.parametrize('shuffle', [True, False])
def test_score_of_a_group_is_what_is_lost_without_it(shuffle):
    """Exactly so where the score is linear in the layer's output, as here."""
    attention = ShuffleAttention(12, groups=3, shuffle=shuffle)
    for parameter in attention.parameters():
        nn.init.normal_(parameter)
    model = Detector(attention, torch.randn(1, 12), labels=(0, ))
    seen = picture(torch.randn(12, 4, 5))
    found = group_scores(model, 'features', seen, [class_target(0, 'object', -100.)])
    before, after = found.scores['object']

    x = seen.item['inputs'][None]
    y = attention(x)
    unshuffled = ShuffleAttention(12, groups=3, shuffle=False)
    unshuffled.load_state_dict(attention.state_dict(), strict=False)  # it has a buffer that says so
    score = (model.weights * y.mean((2, 3))).sum()
    for group in range(3):
        channels = slice(4 * group, 4 * group + 4)
        torch.testing.assert_close(found.responses[0][group],
                                   unshuffled(x)[:, channels].mean())
        torch.testing.assert_close(found.responses[1][group], y[:, channels].mean())
        without = y.clone()
        without[:, channels] = 0
        lost = score - (model.weights * without.mean((2, 3))).sum()
        torch.testing.assert_close(after[group], lost)
        kept = unshuffled(x)
        kept[:, channels] = 0
        kept = torch.stack(kept.chunk(2, 1), 2).reshape(kept.shape) if shuffle else kept
        lost = score - (model.weights * kept.mean((2, 3))).sum()
        torch.testing.assert_close(before[group], lost)
    torch.testing.assert_close(before.sum(), after.sum())
    assert torch.equal(before, after) != shuffle
    assert draw_groups(seen, found, 'title').startswith(b'\x89PNG')


def test_groups_of_many_targets():
    """Each has its line."""
    maps = (torch.rand(4, 3, 3), ) * 2
    values = (torch.rand(4), ) * 2
    pictures = {draw_groups(picture(VALUES), GroupScores(
        maps, values, {str(i): (torch.full((4, ), float(i)), ) * 2 for i in range(count)}), 'title')
        for count in (5, 6, 7)}
    assert len(pictures) == 3


def test_groups_of_another_layer(two_channels):
    with pytest.raises(ConfigError, match='features is Conv2d: expected ShuffleAttention'):
        group_scores(two_channels, 'features', picture(VALUES), [])
