#!/usr/bin/env bash
# Source MMDetection's dist_train.sh. $0 is still this file, so it starts this folder's train.py.
if [[ $# -lt 2 || ! ${2} =~ ^([1-9][0-9]*|auto|gpu|cpu)$ ]]; then
    echo "usage: $0 CONFIG GPUS [option of train.py ...], got: ${*:-nothing}" >&2
    exit 2
fi
tools=$(python -c 'import sa_mmdet, mmdet; print(mmdet.__path__[0])')/.mim/tools || exit
source "$tools/dist_train.sh"
