"""ONNX bytes -> plain graph, step by step: load, bind dims, parse nodes, propagate constants and shapes."""
