#!/usr/bin/env bash
# MMDetection's own slurm_train.sh. While it is sourced $0 stays this file, so that it starts the
# train.py beside this one.
if [[ $# -lt 4 ]]; then
    echo "usage: $0 PARTITION JOB CONFIG WORK_DIR [option of train.py ...], got: ${*:-nothing}" >&2
    exit 2
fi
tools=$(python -c 'import sa_mmdet, mmdet; print(mmdet.__path__[0])')/.mim/tools || exit
source "$tools/slurm_train.sh"
