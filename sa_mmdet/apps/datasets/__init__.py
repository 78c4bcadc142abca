"""Drawn data sets in COCO's format, for training without COCO."""
