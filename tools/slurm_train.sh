#!/usr/bin/env bash
# MMDetection's own slurm_train.sh. While it is sourced $0 stays this file, so that it starts the
# train.py beside this one.
if [[ $# -lt 4 ]]; then
    echo "usage: $0 PARTITION JOB CONFIG WORK_DIR [option of train.py ...], got: ${*:-nothing}" >&2
    exit 2
fi
tools=$(python -c 'from sa_mmdet.launch import MMDET_TOOLS; print(MMDET_TOOLS)') || exit
source "$tools/slurm_train.sh"
