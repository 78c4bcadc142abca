_base_ = './mask-rcnn_r50_fpn_1x_coco.py'
model = dict(backbone=dict(type='AttentionResNet', attention=dict(type='SqueezeExcitation')))
