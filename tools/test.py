#!/usr/bin/env python
"""Test a detector with MMDetection's test.py, or a classifier with MMPretrain's; see --help."""
from sa_mmdet.apps.train import run_tool

if __name__ == '__main__':
    run_tool('test.py', splits=('test', ))
