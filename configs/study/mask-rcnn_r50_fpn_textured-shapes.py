# Plain Mask R-CNN from random weights on the study's textured shapes. It is the quickstart's small
# detector with more classes, group norm in neck and heads as in MMDetection's own configs for
# training from scratch (configs/scratch), and more objects in each batch of the heads.
# Residual branches start with a weight of 1. From 0, they would still be faint after such a short
# training, and so would the attention at their end.
_base_ = '../quickstart/mask-rcnn_sa-r50_fpn_shapes.py'

classes = ('plain circle', 'striped circle', 'plain square', 'striped square', 'plain triangle',
           'striped triangle', 'plain cross', 'striped cross')
max_epochs = 2
norm = dict(type='GN', num_groups=16, requires_grad=True)

model = dict(
    backbone=dict(type='ResNet', zero_init_residual=False),
    neck=dict(norm_cfg=norm),
    roi_head=dict(
        bbox_head=dict(
            type='Shared4Conv1FCBBoxHead',
            conv_out_channels=64,
            norm_cfg=norm,
            num_classes=len(classes)),
        mask_head=dict(norm_cfg=norm, num_classes=len(classes))),
    train_cfg=dict(rcnn=dict(sampler=dict(pos_fraction=0.5))))

dataset = dict(data_root='data/textured_shapes/', metainfo=dict(classes=classes))
train_dataloader = dict(dataset=dataset)
val_dataloader = dict(batch_size=20, dataset=dataset)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file='data/textured_shapes/annotations/val.json')
test_evaluator = val_evaluator

train_cfg = dict(max_epochs=max_epochs, val_begin=max_epochs + 1)  # tested once, at the end
optim_wrapper = dict(optimizer=dict(lr=7e-4))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(
        type='CosineAnnealingLR',
        T_max=max_epochs,
        end=max_epochs,
        convert_to_iter_based=True)
]
auto_scale_lr = dict(base_batch_size=4)
default_hooks = dict(logger=dict(interval=50))
