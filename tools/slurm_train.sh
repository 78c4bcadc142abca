#!/usr/bin/env bash
# MMDetection's own slurm_train.sh. While it is sourced $0 stays this file, so that it starts the
# train.py beside this one.
source "$(python -c 'from sa_mmdet.launch import MMDET_TOOLS; print(MMDET_TOOLS)')/slurm_train.sh"
