#!/usr/bin/env bash
# MMDetection's own dist_test.sh. While it is sourced $0 stays this file, so that it starts the
# test.py beside this one.
source "$(python -c 'from sa_mmdet.launch import MMDET_TOOLS; print(MMDET_TOOLS)')/dist_test.sh"
