//! pleach-inference
