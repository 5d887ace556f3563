//! Part of the engine: surgery.
