"""Export of CLIP models to ONNX and OpenVINO, for ONNX Runtime, browsers and inference servers."""
