//! pleach-proto
