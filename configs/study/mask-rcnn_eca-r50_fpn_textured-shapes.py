_base_ = './mask-rcnn_r50_fpn_textured-shapes.py'
model = dict(
    backbone=dict(type='AttentionResNet', attention=dict(type='EfficientChannelAttention')))
