#!/usr/bin/env bash
# Source MMDetection's dist_test.sh. $0 is still this file, so it starts this folder's test.py.
if [[ $# -lt 3 || ! ${3} =~ ^([1-9][0-9]*|auto|gpu|cpu)$ ]]; then
    echo "usage: $0 CONFIG CHECKPOINT GPUS [option of test.py ...], got: ${*:-nothing}" >&2
    exit 2
fi
tools=$(python -c 'import sa_mmdet, mmdet; print(mmdet.__path__[0])')/.mim/tools || exit
source "$tools/dist_test.sh"
