"""A Mask R-CNN that learns drawn shapes in minutes."""
