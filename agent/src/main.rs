//! pleach-agent
fn main() {}
