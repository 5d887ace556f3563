//! Part of the engine: proof.
