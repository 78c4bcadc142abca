_base_ = './resnet101_8xb32_in1k.py'
# With biases, as the Params of Table 2 show. In Table 3, only RetinaNet has them. To train SE for
# the other detectors, pass --cfg-options model.backbone.attention.bias=False
model = dict(backbone=dict(
    type='mmdet.AttentionResNet', attention=dict(type='SqueezeExcitation', bias=True)))
