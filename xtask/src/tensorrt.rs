//! TensorRT without its library: the shim compiled with the headers of two major versions, for two kinds of processor; with `--test`, every test
//! of it on a stand-in, which `--include` has made of the headers of other releases.
//!
//! The headers are NVIDIA's, as crate `trtx-sys` carries them. They are fetched into cargo's registry and read there; nothing of them is kept here.

use std::{
    env,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, bail, ensure};
use clap::Args;
use serde_json::Value;
use takt_kernels_cu::Target;

use crate::{cuda_root, kernels, repository, target_folder, tensorrt_headers::gathered};

/// What to do.
#[derive(Args)]
pub struct Options {
    /// Afterwards lints what only is there with the feature, and runs the tests that need TensorRT's headers, on a stand-in for its libraries; with
    /// --include on one made of each of those headers instead, without lints
    #[arg(long)]
    test: bool,
    /// Fails where there is no aarch64-linux-gnu-g++, rather than compile for this processor alone
    #[arg(long)]
    require_aarch64: bool,
    /// A folder of further headers to compile with; a second one after a comma for what the first lacks
    #[arg(long, value_name = "FOLDER[,FOLDER]")]
    include: Vec<String>,
    #[command(flatten)]
    cuda: cuda_root::Compiler,
}

/// What carries the headers, and where.
const CRATE: (&str, &str) = ("trtx-sys", "=0.9.1");
const HEADERS: &str = "TensorRT-Headers";

/// The newest release among them, which tests are run on unless others are named.
const TESTED: &str = "TRT-Enterprise-11.4";

/// Headers of one release.
#[derive(Clone)]
struct Headers {
    name: String,
    folders: Vec<PathBuf>,
    flags: &'static [&'static str],
}

/// What has to have the headers, for cargo: lints once, tests with those of each release.
const LINTS: &str = "clippy -p takt-tensorrt -p takt-tests -p takt-node --features takt-tests/tensorrt,takt-node/tensorrt --all-targets -- -D warnings";
const TESTS: [&str; 4] = [
    "test -p takt-tensorrt --features tensorrt",
    "test -p takt-tests --features tensorrt --test tensorrt --test no_alloc_tensorrt",
    // What the next one has computed plans.
    "build -p takt-tests --features tensorrt --example standin_executor",
    "test -p takt-node --features tensorrt --test cli tensorrt::",
];

/// The device that the tests' emulated one says it is: its cubins have to be there.
const EMULATED: Target = Target::Orin;

/// Parts of names that no undefined symbol of the shim's may have: all else is C's and C++'s own.
const FOREIGN: [&str; 5] = ["infer", "onnx", "plugin", "cuda", "cudnn"];

/// Fetches, compiles, and tests if asked to.
pub fn run(options: &Options) -> anyhow::Result<()> {
    let folder = fetched()?;
    let given = given(&options.include);
    let mut sets = published(&folder);
    sets.extend(given.iter().cloned());
    let compilers = compilers(options.require_aarch64)?;
    for compiler in &compilers {
        header_is_c(compiler)?;
        for set in &sets {
            let symbols = compile(compiler, set, &folder)?;
            println!("{compiler}: {}: {symbols} undefined symbols, none of TensorRT's", set.name);
        }
    }
    if options.test {
        let cuda_root = options.cuda.folder()?;
        kernels::compile_for(&cuda_root, EMULATED)?;
        if given.is_empty() {
            let include = folder.join(TESTED);
            cargo(LINTS, &include, &cuda_root)?;
            tests(TESTED, &include, &cuda_root)?;
        }
        for set in &given {
            let sets = target_folder().join("tensorrt-headers/sets");
            tests(&set.name, &gathered(&set.folders, &folder, &sets)?, &cuda_root)?;
        }
    }
    Ok(())
}

/// The sets that are named on the command line.
fn given(include: &[String]) -> Vec<Headers> {
    let set = |given: &String| Headers {
        name: given.clone(),
        folders: given.split(',').map(PathBuf::from).collect(),
        flags: &[],
    };
    include.iter().map(set).collect()
}

/// The sets that are compiled with: TensorRT 11, and the nearest that there is to TensorRT 10, which counts its versions anew.
fn published(folder: &Path) -> Vec<Headers> {
    let set = |name: &str, flags| Headers { name: name.into(), folders: vec![folder.join(name)], flags };
    vec![
        set(TESTED, &[]),
        // Timing caches are deprecated in it, as they are not in TensorRT.
        set(
            "TRT-RTX-1.3",
            &[
                "-DTAKT_TRT_MAJOR=10",
                "-DTAKT_TRT_MINOR=16",
                "-DTAKT_TRT_PATCH=0",
                "-Wno-deprecated-declarations",
            ],
        ),
    ]
}

/// The folder of the headers, fetched into cargo's registry if need be: a package that is never built depends on the crate.
fn fetched() -> anyhow::Result<PathBuf> {
    let (name, version) = CRATE;
    let package = target_folder().join("tensorrt-headers");
    fs::create_dir_all(&package)?;
    fs::write(package.join("lib.rs"), "")?;
    let manifest = package.join("Cargo.toml");
    let text = format!(
        "[package]\nname = \"headers\"\nversion = \"0.0.0\"\nedition = \"2024\"\n\n[lib]\npath = \"lib.rs\"\n\n[dependencies]\n{name} = \"{version}\"\n\n\
         [workspace]\n"
    );
    fs::write(&manifest, text)?;
    let cargo = || env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
    let mut fetch = Command::new(cargo());
    fetch.args(["fetch", "--quiet", "--manifest-path"]).arg(&manifest);
    succeed(&mut fetch)?;
    let mut metadata = Command::new(cargo());
    metadata.args(["metadata", "--offline", "--format-version", "1", "--manifest-path"]).arg(&manifest);
    let output = metadata.stderr(Stdio::inherit()).output().context("cargo metadata")?;
    ensure!(output.status.success(), "cargo metadata: {}", output.status);
    let metadata: Value = serde_json::from_slice(&output.stdout).context("what cargo metadata prints")?;
    let folder = folder_of(&metadata, name).with_context(|| format!("cargo metadata names no {name}"))?;
    let headers = folder.join(HEADERS);
    ensure!(headers.is_dir(), "{} has no folder {HEADERS}", folder.display());
    Ok(headers)
}

/// Where cargo keeps package `name`.
fn folder_of(metadata: &Value, name: &str) -> Option<PathBuf> {
    let packages = metadata["packages"].as_array()?;
    let package = packages.iter().find(|package| package["name"] == name)?;
    Some(Path::new(package["manifest_path"].as_str()?).parent()?.to_owned())
}

/// The compilers that there are, by the names of their programs.
fn compilers(require_aarch64: bool) -> anyhow::Result<Vec<&'static str>> {
    let is_there = |name: &str| {
        let asked = Command::new(name).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        asked.is_ok_and(|status| status.success())
    };
    ensure!(is_there("g++"), "there is no g++: apt install g++");
    let mut found = vec!["g++"];
    let cross = "aarch64-linux-gnu-g++";
    if cfg!(target_arch = "aarch64") {
        return Ok(found);
    }
    if is_there(cross) {
        found.push(cross);
    } else if require_aarch64 {
        bail!("there is no {cross}: apt install g++-aarch64-linux-gnu");
    } else {
        eprintln!("no {cross}: not compiled for aarch64");
    }
    Ok(found)
}

/// `shim.h` is an interface of C's, for whatever calls it.
fn header_is_c(compiler: &str) -> anyhow::Result<()> {
    let header = repository().join("tensorrt/shim/shim.h");
    // Included, as `#pragma once` in the main file is a warning.
    let flags =
        ["-x", "c", "-std=c11", "-pedantic", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", "-include"];
    succeed(Command::new(compiler).args(flags).arg(header).arg("/dev/null"))
}

/// Compiles the shim with one set of headers, and looks at what it would have linked; how many symbols that are.
fn compile(compiler: &str, set: &Headers, cuda: &Path) -> anyhow::Result<usize> {
    let object = target_folder().join("tensorrt-headers").join(format!("{compiler}.o"));
    let mut command = Command::new(compiler);
    command.args(["-std=c++17", "-O2", "-fPIC", "-Wall", "-Wextra", "-Werror"]).args(set.flags);
    for folder in set.folders.iter().map(PathBuf::as_path).chain([cuda]) {
        command.arg("-isystem").arg(folder);
    }
    command.arg("-c").arg(repository().join("tensorrt/shim/shim.cpp")).arg("-o").arg(&object);
    succeed(&mut command).with_context(|| format!("with the headers of {}", set.name))?;
    let program = compiler.replace("g++", "nm");
    let output = Command::new(&program).arg("-u").arg(&object).output().with_context(|| program.clone())?;
    ensure!(output.status.success(), "{program}: {}", output.status);
    let listed = String::from_utf8(output.stdout)?;
    let foreign = foreign(&listed);
    ensure!(foreign.is_empty(), "{compiler}, {}: the shim would link {}", set.name, foreign.join(", "));
    Ok(listed.lines().count())
}

/// Symbols in `nm`'s list that are not of the languages' own libraries.
fn foreign(listed: &str) -> Vec<&str> {
    let symbols = listed.lines().filter_map(|line| line.split_whitespace().last());
    symbols.filter(|symbol| FOREIGN.iter().any(|part| symbol.to_ascii_lowercase().contains(part))).collect()
}

/// Tests on a stand-in made of the headers in `include`, which are of `release`.
fn tests(release: &str, include: &Path, cuda_root: &Path) -> anyhow::Result<()> {
    for arguments in TESTS {
        println!("{release}: cargo {arguments}");
        cargo(arguments, include, cuda_root).with_context(|| format!("with the headers of {release}"))?;
    }
    Ok(())
}

/// With the headers in `include`; the emulated device takes cubins.
fn cargo(arguments: &str, include: &Path, cuda_root: &Path) -> anyhow::Result<()> {
    let mut cargo = Command::new("cargo");
    cargo.current_dir(repository()).args(arguments.split(' '));
    cargo.env("TENSORRT_INCLUDE_DIR", include).env("TAKT_CUDA_ROOT", cuda_root);
    for required in ["TAKT_REQUIRE_TENSORRT_HEADERS", "TAKT_REQUIRE_CXX", "TAKT_REQUIRE_CUBINS"] {
        cargo.env(required, "1");
    }
    succeed(&mut cargo)
}

fn succeed(command: &mut Command) -> anyhow::Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let status = command.status().with_context(|| program.clone())?;
    ensure!(status.success(), "{program}: {status}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_symbol_of_tensorrts_is_found_among_the_languages_own() {
        let own =
            "                 U _ZdlPvm\n                 U __cxa_begin_catch\n                 U snprintf\n";
        assert_eq!(foreign(own), [""; 0]);
        let linked =
            format!("{own}                 U createInferBuilder_INTERNAL\n                 U cudaMalloc\n");
        assert_eq!(foreign(&linked), ["createInferBuilder_INTERNAL", "cudaMalloc"]);
    }

    #[test]
    fn a_package_is_where_its_manifest_is() {
        let metadata = json!({"packages": [
            {"name": "headers", "manifest_path": "/target/tensorrt-headers/Cargo.toml"},
            {"name": "trtx-sys", "manifest_path": "/registry/trtx-sys-0.9.1/Cargo.toml"},
        ]});
        assert_eq!(folder_of(&metadata, "trtx-sys"), Some("/registry/trtx-sys-0.9.1".into()));
        assert_eq!(folder_of(&metadata, "other"), None);
    }
}
