//! pleach-agent
