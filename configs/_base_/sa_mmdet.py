# What every detector shares. Schedule, data set and detector come from MMDetection's own 1x
# configs, which match the paper. This file registers the attention layers. Configs without
# attention add checkpoints that survive a kill, and the configs with attention inherit from them.
#
# Initial weights: all configs start from torchvision's ResNet, as MMDetection's own do. A network
# with attention converts these weights on load, so every config starts from the same function. The
# paper starts from backbones trained on ImageNet with their attention. To do so, train one with
# ../imagenet, convert it with tools/convert_checkpoint.py, and pass
# --cfg-options model.backbone.init_cfg.checkpoint=FILE
custom_imports = dict(imports=['sa_mmdet'], allow_failed_imports=False)
