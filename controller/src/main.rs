//! pleach-controller
fn main() {}
