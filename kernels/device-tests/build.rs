//! Compiles the device kernels for the host. Without a C++ compiler the tests say that they were skipped, unless
//! `LEAPFROG_REQUIRE_CXX=1` asks for an error.

use std::{error::Error, path::Path, process::Command};

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rustc-check-cfg=cfg(has_cxx)");
    for path in ["shim", "../src/cuh", "../src/ops"] {
        println!("cargo::rerun-if-changed={path}");
    }
    println!("cargo::rerun-if-env-changed=LEAPFROG_REQUIRE_CXX");
    println!("cargo::rerun-if-env-changed=LEAPFROG_SHIM_FLAGS");

    let mut build = cc::Build::new();
    build.cpp(true).std("c++17").warnings(false);
    if !has_compiler(&build) {
        let missing = "no C++ compiler: the tests of the device kernels are skipped";
        if std::env::var("LEAPFROG_REQUIRE_CXX").is_ok_and(|value| value == "1") {
            return Err(format!("{missing}, but LEAPFROG_REQUIRE_CXX=1").into());
        }
        println!("cargo::warning={missing}");
        return Ok(());
    }
    // The fibers jump between stacks, which the fortified longjmp takes for an error.
    build.opt_level(2).define("_GNU_SOURCE", None).flag_if_supported("-U_FORTIFY_SOURCE");
    build.flag("-include").flag("shim/shim.hpp").include("shim");
    for flag in std::env::var("LEAPFROG_SHIM_FLAGS").unwrap_or_default().split_whitespace() {
        build.flag(flag);
    }
    // Where kernels must agree on every bit they say which products are fused with sums.
    build.flag_if_supported("-ffp-contract=off");
    for warning in ["-Wall", "-Wextra", "-Wno-unknown-pragmas"] {
        build.flag_if_supported(warning);
    }
    let files = ["shim.cpp", "registry.cpp", "attention.cpp", "fused.cpp", "lla.cpp", "matmul.cpp", "score.cpp"];
    let files = files.map(|file| Path::new("shim").join(file));
    build.files(files).try_compile("leapfrog_shim")?;
    println!("cargo::rustc-cfg=has_cxx");
    Ok(())
}

/// Whether the compiler that `build` would call is there.
fn has_compiler(build: &cc::Build) -> bool {
    let found = build.try_get_compiler();
    found.is_ok_and(|compiler| {
        Command::new(compiler.path()).arg("--version").output().is_ok_and(|out| out.status.success())
    })
}
