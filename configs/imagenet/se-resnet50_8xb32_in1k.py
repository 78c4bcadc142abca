_base_ = './resnet50_8xb32_in1k.py'
# With biases, by the Params of Table 2. The detectors of Table 3, RetinaNet excepted, have none: to
# train SE for those, --cfg-options model.backbone.attention.bias=False
model = dict(backbone=dict(
    type='mmdet.AttentionResNet', attention=dict(type='SqueezeExcitation', bias=True)))
