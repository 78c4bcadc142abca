_base_ = 'mmpretrain::resnet/resnet50_8xb32_in1k.py'

# What the configs of Tables 1 and 2 share. MMPretrain's recipe for ResNet is the paper's: SGD,
# momentum 0.9, weight decay 1e-4, batch 256 on 8 GPUs, 100 epochs, learning rate 0.1 divided by 10
# every 30 epochs. Training uses random crops of 224x224 and flips, validation the centre crop of
# images resized to 256.
#
# The backbones are the same as in the detectors, which take their weights. Nothing is frozen, batch
# statistics are learned, and the last batch norm of a block starts at 1, as in torchvision's
# ResNet, not at 0.
custom_imports = dict(imports=['sa_mmdet'], allow_failed_imports=False)
model = dict(backbone=dict(type='mmdet.ResNet', norm_eval=False, zero_init_residual=False))
default_hooks = dict(checkpoint=dict(type='mmdet.AtomicCheckpointHook', max_keep_ckpts=3))
