//! Compiles the contract with protox (no protoc needed) and keeps its descriptor set for reflection.

use prost::Message as _;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // tonic-prost-build 0.14 does not emit these itself when it is given a compiled descriptor set.
    println!("cargo:rerun-if-changed=distill/v1/teacher.proto");
    let descriptors = protox::compile(["distill/v1/teacher.proto"], ["."])?;
    let out = std::path::PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure().bytes(".").compile_fds(descriptors)?;
    Ok(())
}
