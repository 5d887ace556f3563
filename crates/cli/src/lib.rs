//! pleach-cli
