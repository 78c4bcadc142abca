_base_ = './resnet101_8xb32_in1k.py'
model = dict(backbone=dict(type='mmdet.AttentionResNet', attention=dict(type='CBAM')))
