#!/usr/bin/env python
"""Test a detector: MMDetection's tools/test.py with its options; see --help."""
from sa_mmdet.launch import run_mmdet_tool

if __name__ == '__main__':
    run_mmdet_tool('test.py', splits=('test', ))
