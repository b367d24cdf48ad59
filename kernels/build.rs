//! Compiles the kernels for the host where the emulation is wanted: all of `cuda/` as one C++ source. Where
//! there is no compiler of C++20 they are not emulated, and the tests say that they are skipped.

fn main() {
    println!("cargo::rustc-check-cfg=cfg(emulated)");
    #[cfg(feature = "emulation")]
    emulation();
}

#[cfg(feature = "emulation")]
fn emulation() {
    use std::path::{Path, PathBuf};

    for folder in ["cuda", "emulation"] {
        println!("cargo::rerun-if-changed={folder}");
    }
    let root = PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let out = std::env::var_os("OUT_DIR").expect("cargo sets it");
    let written = |name: &str, text: &str| {
        let path = Path::new(&out).join(name);
        std::fs::write(&path, text).expect("a source can be written");
        path
    };
    let build = |source: &Path| {
        let mut build = cc::Build::new();
        build.cpp(true).std("c++20").file(source);
        build
    };
    let tried = build(&written("tried.cpp", "#include <bit>\nint tried = std::bit_width(4u);\n"));
    if let Err(error) = { tried }.cargo_metadata(false).try_compile("tried") {
        println!("cargo::warning=the kernels are not emulated: no compiler of C++20 ({error})");
        return;
    }
    let kernels = |folder: &str| -> Vec<PathBuf> {
        let entries = std::fs::read_dir(root.join(folder)).expect("a folder of sources");
        let paths = entries.map(|entry| entry.expect("an entry").path());
        let kernel = |path: &PathBuf| path.extension().is_some_and(|end| end == "cu");
        let mut paths: Vec<PathBuf> = paths.filter(kernel).collect();
        paths.sort();
        paths
    };
    // In one source, so that the linker cannot leave out kernels that nobody calls by name.
    let blocks = root.join("emulation/blocks.cpp");
    let sources = kernels("cuda").into_iter().chain(kernels("emulation")).chain([blocks]);
    let lines = sources.map(|path| format!("#include \"{}\"\n", path.display()));
    build(&written("all.cpp", &lines.collect::<String>()))
        .include(root.join("cuda"))
        .include(root.join("emulation"))
        // Products and sums are rounded one by one, but for those a kernel writes as one.
        .flag("-ffp-contract=off")
        .warnings(true)
        .extra_warnings(true)
        .compile("emulated_kernels");
    println!("cargo::rustc-cfg=emulated");
}
