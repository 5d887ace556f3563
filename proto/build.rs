//! Compiles the .proto files without an external compiler.

use std::error::Error;

const FILES: [&str; 6] = [
    "pleach/v1/profile.proto",
    "pleach/v1/enrollment.proto",
    "pleach/v1/fleet.proto",
    "pleach/device/v1/local.proto",
    "pleach/runtime/v1/runtime.proto",
    "inference/inference.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");
    let descriptors = protox::compile(FILES, ["proto"])?;
    tonic_prost_build::configure().bytes(".pleach.v1.FetchResponse").compile_fds(descriptors)?;
    Ok(())
}
