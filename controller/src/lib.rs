//! pleach-controller
