"""Export of detectors to ONNX files that run without this package."""
