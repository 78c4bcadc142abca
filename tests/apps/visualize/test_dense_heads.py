"""Scores of detectors whose heads detach the maps that they predict from."""
import pytest

from networks import retinanet
from sa_mmdet.apps.visualize.grad_cam import box_target, compute_grad_cam, gradient_times_output
from sa_mmdet.apps.visualize.pictures import predict

LAYER = 'backbone.layer3.2'


def test_gradient_is_what_the_score_gains_where_a_layer_grows(picture):
    model = retinanet(type='SAResNet', attention=dict(groups=4))
    for layer in (model.bbox_head.retina_cls, model.bbox_head.retina_reg):
        layer.weight.data *= 1e-5  # boxes within the image, and scores that can grow
    best = predict(model, picture).pred_instances[0]
    target = box_target(best.bboxes[0], best.labels.item(), 'best')
    scores = {}
    for factor in (0.99, 1.01):
        hook = model.get_submodule(LAYER).register_forward_hook(
            lambda _, __, output, factor=factor: output * factor)
        found = predict(model, picture).pred_instances
        scores[factor] = found.scores[target.choose(found)].item()
        hook.remove()

    gain = gradient_times_output(model, LAYER, picture, target).sum().item()
    assert gain == pytest.approx((scores[1.01] - scores[0.99]) / 0.02, rel=0.05)
    assert abs(gain) > 1e-4
    assert compute_grad_cam(model, LAYER, picture, target).shape == picture.image.shape[:2]
