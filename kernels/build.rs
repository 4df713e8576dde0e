//! Compiles the device kernels, under the feature `cuda` alone: one fatbin for each source file, with code for every
//! architecture of `LEAPFROG_CUDA_ARCHS` and PTX of the newest.

use std::{
    error::Error,
    ffi::OsString,
    path::{Path, PathBuf},
    process::Command,
};

/// Turing to Hopper.
const DEFAULT_ARCHS: &str = "75;80;86;89;90";
/// Folders with sources (`src/ops/<op>/<name>.cu`) and headers; cargo watches all that is in them.
const WATCHED: [&str; 2] = ["src/cuh", OPS];
const OPS: &str = "src/ops";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    // Without the feature nothing below may be needed, and nothing is looked for.
    if std::env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return Ok(());
    }
    for variable in ["NVCC", "CUDA_HOME", "PATH", "LEAPFROG_CUDA_ARCHS"] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    for folder in WATCHED {
        println!("cargo::rerun-if-changed={folder}");
    }
    let archs = std::env::var("LEAPFROG_CUDA_ARCHS").unwrap_or_else(|_| DEFAULT_ARCHS.to_owned());
    let numbers = parse_archs(&archs)?;
    println!("cargo::rustc-env=LEAPFROG_CUDA_ARCHS={archs}");
    let nvcc = find_nvcc().ok_or(
        "the feature `cuda` needs nvcc: set NVCC or CUDA_HOME, put it on PATH, or get it with kernels/scripts/fetch-nvcc",
    )?;
    let out = PathBuf::from(std::env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    let sources = find_sources(Path::new(OPS))?;
    let jobs: Vec<_> = sources.iter().map(|source| (source, compile(&nvcc, &numbers, source, &out))).collect();
    for (source, child) in jobs {
        let status = child?.wait()?;
        if !status.success() {
            return Err(format!("nvcc could not compile {}: {status}", source.display()).into());
        }
    }
    // One element a source, which `cuda/enabled.rs` includes.
    let images: String =
        sources.iter().map(|source| format!("    include_bytes!({:?}),\n", out.join(fatbin(source)))).collect();
    let images = format!("const IMAGES: [&[u8]; {}] = [\n{images}];\n", sources.len());
    std::fs::write(out.join("images.rs"), images)?;
    Ok(())
}

/// All `.cu` files one folder below `ops`, in the order of their names.
fn find_sources(ops: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut sources = Vec::new();
    for folder in std::fs::read_dir(ops)? {
        let folder = folder?.path();
        if folder.is_dir() {
            for file in std::fs::read_dir(folder)? {
                sources.push(file?.path());
            }
        }
    }
    sources.retain(|path| path.extension().is_some_and(|extension| extension == "cu"));
    sources.sort();
    Ok(sources)
}

/// Name of the compiled file: `<op>_<name>.fatbin`.
fn fatbin(source: &Path) -> String {
    let op = source.parent().and_then(Path::file_name).unwrap_or_default().to_string_lossy();
    let name = source.file_stem().unwrap_or_default().to_string_lossy();
    format!("{op}_{name}.fatbin")
}

/// Compute capabilities without the dot.
fn parse_archs(list: &str) -> Result<Vec<u32>, String> {
    let numbers: Result<Vec<u32>, _> = list.split(';').map(str::parse).collect();
    match numbers {
        Ok(numbers) if numbers.iter().all(|number| *number >= 75) => Ok(numbers),
        _ => {
            Err(format!("LEAPFROG_CUDA_ARCHS is `{list}`; it lists capabilities from 75 on, such as `{DEFAULT_ARCHS}`"))
        }
    }
}

/// The compiler that the environment names, or the first on the path.
fn find_nvcc() -> Option<PathBuf> {
    if let Some(nvcc) = std::env::var_os("NVCC") {
        return Some(PathBuf::from(nvcc));
    }
    let home = std::env::var_os("CUDA_HOME").map(|home| Path::new(&home).join("bin"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    home.into_iter().chain(std::env::split_paths(&path)).map(|folder| folder.join("nvcc")).find(|nvcc| nvcc.is_file())
}

/// Starts the compiler.
fn compile(nvcc: &Path, archs: &[u32], source: &Path, out: &Path) -> std::io::Result<std::process::Child> {
    let fatbin = out.join(fatbin(source));
    // Compressed to a fifth: code for five architectures is part of the program.
    let options = ["-fatbin", "-std=c++17", "-O3", "-lineinfo", "--compress-mode=size", "-Werror=all-warnings", "-o"];
    let mut arguments: Vec<OsString> = options.map(OsString::from).to_vec();
    arguments.push(fatbin.into());
    for arch in archs {
        arguments.push(format!("-gencode=arch=compute_{arch},code=sm_{arch}").into());
    }
    if let Some(newest) = archs.iter().max() {
        arguments.push(format!("-gencode=arch=compute_{newest},code=compute_{newest}").into());
    }
    arguments.push(source.into());
    Command::new(nvcc).args(arguments).spawn()
}
