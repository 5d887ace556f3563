//! pleach-tests
