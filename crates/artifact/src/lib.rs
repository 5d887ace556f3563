//! pleach-artifact
