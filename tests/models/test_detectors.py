"""Whole detectors of MMDetection, carried over to their configs with attention."""
from pathlib import Path

import pytest
import torch
from mmdet.apis import inference_detector, init_detector
from mmdet.registry import DATASETS
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.runner import save_checkpoint

from networks import give_weights

CONFIGS = Path(__file__).parents[2] / 'configs'
NAMES = dict(mask_rcnn='mask-rcnn', retinanet='retinanet')


def config_of(folder, attention, coco_tiny, size):
    config = Config.fromfile(CONFIGS / folder / f'{NAMES[folder]}_{attention}r50_fpn_1x_coco.py')
    config.model.backbone.init_cfg = None
    config.model.test_cfg.get('rcnn', config.model.test_cfg).score_thr = 0.
    if folder == 'mask_rcnn':
        take_all_proposals(config.model.train_cfg)
    for loader, resize in ((config.train_dataloader, 2), (config.test_dataloader, 1)):
        loader.dataset.data_root = f'{coco_tiny}/'
        loader.dataset.pipeline[resize].scale = (size, size)
    return config


def take_all_proposals(train_cfg):
    """Without a choice of proposals, which rounding could change, losses can be compared."""
    train_cfg.rpn.sampler.num = train_cfg.rcnn.sampler.num = 10**6
    train_cfg.rpn_proposal.update(nms_pre=10**6, max_per_img=10**6)
    train_cfg.rpn_proposal.nms.iou_threshold = 1.


@pytest.fixture
def detectors(request, coco_tiny, tmp_path):
    """A plain detector, and the one with shuffle attention loaded from its checkpoint."""
    folder, size = request.param
    torch.manual_seed(0)
    plain = init_detector(config_of(folder, '', coco_tiny, size), device='cpu')
    give_weights(plain)
    path = tmp_path / 'plain.pth'
    save_checkpoint(dict(meta=dict(dataset_meta=dict(classes=plain.dataset_meta['classes'])),
                         state_dict=plain.state_dict()), str(path))
    return plain, init_detector(config_of(folder, 'sa-', coco_tiny, size), str(path), device='cpu')


@pytest.mark.parametrize('detectors', [(folder, 320) for folder in NAMES], indirect=True, ids=NAMES)
def test_same_detections(detectors, coco_tiny):
    for detector in detectors:  # scores far apart, in an order that rounding does not change
        for name, value in detector.state_dict().items():
            if 'cls' in name and 'weight' in name:
                value *= 50
    images = sorted((coco_tiny / 'val2017').glob('*.jpg'))[:3]
    for image in images:
        before, after = (inference_detector(d, str(image)).pred_instances for d in detectors)
        assert len(before) > 0
        torch.testing.assert_close(after.scores, before.scores, rtol=0, atol=1e-5)
        torch.testing.assert_close(after.bboxes, before.bboxes, rtol=0, atol=1e-3)
        assert torch.equal(after.labels, before.labels)


@pytest.mark.parametrize('detectors', [(folder, 64) for folder in NAMES], indirect=True, ids=NAMES)
def test_training_starts_from_the_same_loss_and_lowers_it(detectors):
    plain, attention = detectors
    dataset = DATASETS.build(attention.cfg.train_dataloader.dataset)
    batch = pseudo_collate([dataset[0], dataset[1]])

    def loss_of(model):
        torch.manual_seed(0)
        model.train()
        data = model.data_preprocessor(batch, True)
        return model.parse_losses(model(**data, mode='loss'))[0]

    first = loss_of(attention)
    torch.testing.assert_close(first, loss_of(plain), rtol=1e-4, atol=1e-4)
    optimizer = torch.optim.SGD(
        [p for p in attention.parameters() if p.requires_grad], lr=2e-3, momentum=0.9)
    for _ in range(4):
        optimizer.zero_grad()
        loss_of(attention).backward()
        torch.nn.utils.clip_grad_norm_(attention.parameters(), 35)
        optimizer.step()
    assert loss_of(attention) < first
    for name, p in attention.named_parameters():
        if '.sa.' in name and 'layer1' not in name:
            assert p.grad.any(), name
