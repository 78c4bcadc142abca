_base_ = ['mmdet::retinanet/retinanet_r101_fpn_1x_coco.py', '../_base_/sa_mmdet.py']
default_hooks = dict(checkpoint=dict(type='AtomicCheckpointHook'))
