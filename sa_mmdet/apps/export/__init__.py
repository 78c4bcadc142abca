"""Detectors as ONNX files that run without this package."""
