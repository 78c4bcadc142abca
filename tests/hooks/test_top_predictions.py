import json

import torch
from mmengine.registry import METRICS

from sa_mmdet.hooks import DumpTopPredictions


def sample(name, label, scores):
    return dict(img_path=f'/data/val/{name}', gt_label=torch.tensor([label]),
                pred_score=torch.tensor(scores))


def test_best_classes_of_every_image(tmp_path):
    out = tmp_path / 'run/predictions.json'
    metric = METRICS.build(dict(
        type='DumpTopPredictions', out_file=str(out), root='/data/val', topk=3))
    assert isinstance(metric, DumpTopPredictions)
    metric.process(None, [sample('a/1.jpg', 2, [.1, .2, .4, .3]), sample('b/2.jpg', 0, [0., 1.])])
    metric.process(None, [sample('b/3.jpg', 1, [0., 0.])])
    assert metric.evaluate(3) == {}
    assert json.loads(out.read_text()) == [
        dict(image='a/1.jpg', label=2, classes=[2, 3, 1]),
        dict(image='b/2.jpg', label=0, classes=[1]),  # a score of 0 is no prediction
        dict(image='b/3.jpg', label=1, classes=[])]
