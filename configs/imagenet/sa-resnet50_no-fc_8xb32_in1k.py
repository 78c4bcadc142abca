_base_ = './sa-resnet50_8xb32_in1k.py'
model = dict(backbone=dict(attention=dict(fc='none')))
