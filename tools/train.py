#!/usr/bin/env python
"""Train a detector with MMDetection's train.py, or a classifier with MMPretrain's; see --help."""
from sa_mmdet.apps.train import run_tool

if __name__ == '__main__':
    run_tool('train.py', splits=('train', 'val'))
