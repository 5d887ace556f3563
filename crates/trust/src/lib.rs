//! pleach-trust
