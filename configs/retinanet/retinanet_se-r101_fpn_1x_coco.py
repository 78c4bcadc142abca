_base_ = './retinanet_r101_fpn_1x_coco.py'
# With biases, as the paper's Params show. SE in the other detectors has none.
model = dict(backbone=dict(
    type='AttentionResNet', attention=dict(type='SqueezeExcitation', bias=True)))
