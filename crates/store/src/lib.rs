//! pleach-store
