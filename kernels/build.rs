//! Compiles the kernels: for cards where the feature `cuda` is on (nvcc, all of `cuda/` as one source), and for the host
//! where the emulation is wanted (as one C++ source). Where there is no compiler of C++20 they are not emulated, and
//! the tests say that they are skipped; without nvcc there is nothing for a card, and the build says so.

fn main() {
    println!("cargo::rustc-check-cfg=cfg(emulated)");
    #[cfg(any(feature = "cuda", feature = "emulation"))]
    {
        for folder in ["cuda", "emulation"] {
            println!("cargo::rerun-if-changed={folder}");
        }
    }
    #[cfg(feature = "cuda")]
    for_cards();
    #[cfg(feature = "emulation")]
    for_the_host();
}

#[cfg(any(feature = "cuda", feature = "emulation"))]
mod sources {
    use std::path::{Path, PathBuf};

    pub(crate) fn root() -> PathBuf {
        PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"))
    }

    /// A file of this text beside what the build makes.
    pub(crate) fn written(name: &str, text: &str) -> PathBuf {
        let path = made(name);
        std::fs::write(&path, text).expect("a source can be written");
        path
    }

    pub(crate) fn made(name: &str) -> PathBuf {
        Path::new(&std::env::var_os("OUT_DIR").expect("cargo sets it")).join(name)
    }

    /// The kernels of a folder.
    pub(crate) fn kernels(folder: &str) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(root().join(folder)).expect("a folder of sources");
        let paths = entries.map(|entry| entry.expect("an entry").path());
        let kernel = |path: &PathBuf| path.extension().is_some_and(|end| end == "cu");
        let mut paths: Vec<PathBuf> = paths.filter(kernel).collect();
        paths.sort();
        paths
    }

    /// A source that includes these.
    pub(crate) fn including(name: &str, sources: impl Iterator<Item = PathBuf>) -> PathBuf {
        let lines = sources.map(|path| format!("#include \"{}\"\n", path.display()));
        written(name, &lines.collect::<String>())
    }
}

/// Code for capabilities 8.0 (which 8.6 and 8.9 run too) and 9.0, and PTX that the driver compiles for newer ones;
/// others by `KERNELS_ARCH`, as nvcc writes them: `KERNELS_ARCH=90,100`.
#[cfg(feature = "cuda")]
fn for_cards() {
    use std::path::{Path, PathBuf};
    use std::process::Command;

    for variable in ["KERNELS_ARCH", "KERNELS_STRICT", "CUDA_HOME", "CUDA_PATH", "NVCC"] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    let wanted = std::env::var("KERNELS_ARCH").unwrap_or_else(|_| "80,90".to_owned());
    let numbers: Vec<&str> = wanted.split(',').map(str::trim).collect();
    let mut code: Vec<String> =
        numbers.iter().map(|of| format!("-gencode=arch=compute_{of},code=sm_{of}")).collect();
    if let Some(last) = numbers.last() {
        code.push(format!("-gencode=arch=compute_{last},code=compute_{last}"));
    }
    let homes = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(std::env::var_os);
    let homes = homes.map(PathBuf::from).chain([PathBuf::from("/usr/local/cuda")]);
    let installed = homes.map(|home| home.join("bin/nvcc")).find(|path| Path::exists(path));
    let nvcc = std::env::var_os("NVCC").map(PathBuf::from).or(installed);
    let nvcc = nvcc.unwrap_or_else(|| PathBuf::from("nvcc"));
    let source = sources::including("all.cu", sources::kernels("cuda").into_iter());
    let status = Command::new(&nvcc)
        .args(["-fatbin", "-std=c++17", "-O3", "-lineinfo", "--threads=0"])
        // Another version may warn of more.
        .args(std::env::var_os("KERNELS_STRICT").map(|_| "-Werror=all-warnings"))
        .args(code)
        .arg("-I")
        .arg(sources::root().join("cuda"))
        .arg("-o")
        .arg(sources::made("kernels.fatbin"))
        .arg(source)
        .status();
    match status {
        Ok(status) if status.success() => {}
        Ok(_) => panic!("nvcc refused the kernels: what it said stands above"),
        Err(error) => panic!(
            "the feature `cuda` needs nvcc of CUDA 13.0: {} cannot be run ({error}); install the CUDA toolkit and set \
             CUDA_HOME, or NVCC to nvcc itself",
            nvcc.display()
        ),
    }
}

#[cfg(feature = "emulation")]
fn for_the_host() {
    use std::path::Path;

    use sources::{including, kernels, root, written};

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
    // In one source, so that the linker cannot leave out kernels that nobody calls by name.
    let blocks = root().join("emulation/blocks.cpp");
    let sources = kernels("cuda").into_iter().chain(kernels("emulation")).chain([blocks]);
    build(&including("all.cpp", sources))
        .include(root().join("cuda"))
        .include(root().join("emulation"))
        // Products and sums are rounded one by one, but for those a kernel writes as one.
        .flag("-ffp-contract=off")
        // Fibers jump from stack to stack, which the fortified longjmp takes for an error.
        .flag("-U_FORTIFY_SOURCE")
        .warnings(true)
        .extra_warnings(true)
        .compile("emulated_kernels");
    println!("cargo::rustc-cfg=emulated");
}
