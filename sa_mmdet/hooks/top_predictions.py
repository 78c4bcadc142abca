import json
import os
from collections.abc import Sequence
from pathlib import Path

from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS

from ..checkpoint.files import write_atomically


@METRICS.register_module()  # the root registry: MMPretrain's own is optional
class DumpTopPredictions(BaseMetric):
    """Write the classes that an MMPretrain classifier predicts for each image, for later checks.

    The file is JSON and lists for each image: 'image', its path below ``root``; 'label', its class;
    and 'classes', the classes with the highest scores, best first. A score of 0 counts as no
    prediction, as in MMPretrain's ``Accuracy``.

    Args:
        out_file: the file, which is written whole or not at all.
        root: the folder of the images.
        topk: the number of classes for each image.
    """

    def __init__(self, out_file: str, root: str, topk: int = 5):
        super().__init__(collect_device='cpu')
        self.out_file = Path(out_file)
        self.root = root
        self.topk = topk

    def process(self, data_batch, data_samples: Sequence[dict]) -> None:
        """Note the predictions of a batch: 'pred_score', (classes,), 'gt_label' and 'img_path'."""
        for sample in data_samples:
            scores = sample['pred_score'].cpu()
            best, classes = scores.topk(min(self.topk, len(scores)))
            self.results.append(dict(
                image=Path(os.path.relpath(sample['img_path'], self.root)).as_posix(),
                label=int(sample['gt_label']),
                classes=[int(index) for index in classes[best > 0]]))

    def compute_metrics(self, results: list[dict]) -> dict:
        """Write the file. Return no metric."""
        self.out_file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.out_file, json.dumps(results))
        return {}
