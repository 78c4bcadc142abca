#!/usr/bin/env python
"""Train a detector: MMDetection's tools/train.py with its options; see --help."""
from sa_mmdet.launch import run_mmdet_tool

if __name__ == '__main__':
    run_mmdet_tool('train.py', splits=('train', 'val'))
