//! pleach-cli
fn main() {}
