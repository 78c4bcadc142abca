# What every detector shares: schedule, data set and detector come from MMDetection's own
# 1x configs, which are the paper's; this makes the attention layers known. Rows without attention
# add checkpoints that outlast being killed, and the rows with attention inherit theirs.
#
# Initial weights: all rows start from torchvision's ResNet, as MMDetection's own do. Under an
# attention layer these are converted when they are loaded, so that every row starts from the same
# function. The paper starts from backbones trained on ImageNet with their attention, by the configs
# in ../imagenet and tools/convert_checkpoint.py; to do so:
# --cfg-options model.backbone.init_cfg.checkpoint=FILE
custom_imports = dict(imports=['sa_mmdet'], allow_failed_imports=False)
