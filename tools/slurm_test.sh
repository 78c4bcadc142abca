#!/usr/bin/env bash
# MMDetection's own slurm_test.sh. While it is sourced $0 stays this file, so that it starts the
# test.py beside this one.
if [[ $# -lt 4 ]]; then
    echo "usage: $0 PARTITION JOB CONFIG CHECKPOINT [option of test.py ...], got: ${*:-nothing}" >&2
    exit 2
fi
tools=$(python -c 'import sa_mmdet, mmdet; print(mmdet.__path__[0])')/.mim/tools || exit
source "$tools/slurm_test.sh"
