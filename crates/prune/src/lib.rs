//! pleach-prune
