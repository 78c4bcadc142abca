#!/usr/bin/env bash
# Source MMDetection's slurm_train.sh. $0 is still this file, so it starts this folder's train.py.
if [[ $# -lt 4 ]]; then
    echo "usage: $0 PARTITION JOB CONFIG WORK_DIR [option of train.py ...], got: ${*:-nothing}" >&2
    exit 2
fi
tools=$(python -c 'import sa_mmdet, mmdet; print(mmdet.__path__[0])')/.mim/tools || exit
source "$tools/slurm_train.sh"
