"""Models that hf-clip export wrote, run on ONNX Runtime or OpenVINO with the methods of HFCLIPModel."""
