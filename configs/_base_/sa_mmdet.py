# What every row shares: the schedule, the data set and the detector come from MMDetection's own
# 1x configs, which are the paper's; this makes the attention layers known.
#
# Initial weights: the rows without attention start from torchvision's ResNet, as MMDetection's own
# do. Under an attention layer those weights would be wrong (the channel shuffle scrambles them), so
# the other rows name none: give yours with `--cfg-options model.backbone.pretrained=FILE`. Without
# it they start from random weights, which 12 epochs behind a frozen stem will not make good.
custom_imports = dict(imports=['sa_mmdet'], allow_failed_imports=False)
