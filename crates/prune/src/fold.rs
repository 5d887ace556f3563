//! Part of the engine: fold.
