_base_ = './retinanet_r50_fpn_1x_coco.py'
# With biases, by the Params that the paper prints; those of the other detectors are without.
model = dict(backbone=dict(
    type='AttentionResNet', attention=dict(type='SqueezeExcitation', bias=True)))
