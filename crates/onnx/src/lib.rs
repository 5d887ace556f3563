//! pleach-onnx
