"""checkpoint -> ONNX -> engine -> model repository."""
