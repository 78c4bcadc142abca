"""Python runs this at its start where the folder is on PYTHONPATH: torchvision imports then.

The operators of torchvision's own library cannot be loaded beside another build of torch than that
they were made for; its Python, of which MMPretrain needs the transforms alone, asks at import that
these two are declared.
"""
import torch

for name in ('nms', 'qnms'):
    torch.library.define(
        f'torchvision::{name}', '(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')
