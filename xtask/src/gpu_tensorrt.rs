//! The tests with NVIDIA's own TensorRT, where a machine with a GPU has it.

use std::{
    env, fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, ensure};

use crate::repository;

/// What `docs/tensorrt.md` has, too. Compiling it takes TensorRT's headers, so no other test is of it.
const TEST: &str = "test -p takt-tests --features tensorrt --test tensorrt real:: -- --nocapture";
const HEADER: &str = "NvInfer.h";
/// What names of the library's files begin with.
const LIBRARY: &str = "libnvinfer.so.";

/// Where lines of the tests begin that are kept.
const RECORDED: &str = "recorded: ";

/// Runs the suites with plans of NVIDIA's, and gives what they found in words; one sentence where there is no TensorRT. Kernels beside a plan are
/// compiled with the CUDA folder `root`.
///
/// # Errors
/// A test that fails.
pub fn run(root: &Path) -> anyhow::Result<Vec<String>> {
    if let Some(missing) = missing(&header_folders(), &libraries()) {
        println!("{missing}");
        return Ok(vec![missing]);
    }
    println!(
        "plans of NVIDIA's own TensorRT: every backend's suite, refits, streamed weights, a part of the GPU, bad input"
    );
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.current_dir(repository()).args(TEST.split(' ')).stdin(Stdio::null()).stdout(Stdio::piped());
    // It is there: a library that cannot be used is no reason to skip.
    command.env("TAKT_REQUIRE_TENSORRT", "1").env("TAKT_CUDA_ROOT", root);
    let mut child = command.spawn().context("cargo")?;
    let said = child.stdout.take().context("cargo's output")?;
    let mut kept = Vec::new();
    for line in BufReader::new(said).split(b'\n') {
        let line = line.context("cargo's output")?;
        let line = String::from_utf8_lossy(&line);
        println!("{line}");
        kept.extend(recorded(&line));
    }
    let status = child.wait().context("cargo")?;
    ensure!(status.success(), "the tests with TensorRT: {status}");
    Ok(kept)
}

/// What of a line of the tests is kept. The name of a test may be before it.
fn recorded(line: &str) -> Option<String> {
    line.split_once(RECORDED).map(|(_, fact)| fact.to_owned())
}

/// One sentence, where headers or library are not there.
fn missing(headers: &[PathBuf], libraries: &[String]) -> Option<String> {
    let has_headers = headers.iter().any(|folder| folder.join(HEADER).is_file());
    let has_library = libraries.iter().any(|name| name.starts_with(LIBRARY));
    let what = match (has_headers, has_library) {
        (true, true) => return None,
        (false, false) => "TensorRT is neither installed nor its headers are".to_owned(),
        (true, false) => format!("the system has TensorRT's headers and no {LIBRARY}*"),
        (false, true) => {
            format!(
                "TensorRT is there without its headers (apt install libnvinfer-headers-dev libnvonnxparsers-dev, or {INCLUDE})"
            )
        }
    };
    Some(format!("skipped, no test with NVIDIA's TensorRT: {what}"))
}

const INCLUDE: &str = "TENSORRT_INCLUDE_DIR";

/// Where the crate's build script looks.
fn header_folders() -> Vec<PathBuf> {
    match env::var_os(INCLUDE).filter(|folder| !folder.is_empty()) {
        Some(folder) => vec![folder.into()],
        None => {
            vec![format!("/usr/include/{}-linux-gnu", env::consts::ARCH).into(), "/usr/include".into()]
        }
    }
}

/// Names of the libraries that the loader finds.
fn libraries() -> Vec<String> {
    let cached = Command::new("ldconfig").arg("-p").stderr(Stdio::null()).output();
    let cached =
        cached.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    let mut names: Vec<String> = cached.split_whitespace().map(str::to_owned).collect();
    let folders = env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    for entry in env::split_paths(&folders).filter_map(|folder| fs::read_dir(folder).ok()).flatten().flatten()
    {
        names.push(entry.file_name().to_string_lossy().into_owned());
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_for_tensorrt_is_one_sentence_that_says_what() {
        let folder = repository().join("target/no-such-folder");
        let there = env::temp_dir().join(format!("takt-headers-{}", std::process::id()));
        fs::create_dir_all(&there).unwrap();
        fs::write(there.join(HEADER), "").unwrap();
        let library = ["libnvinfer.so.10".to_owned(), "libc.so.6".into()];
        let other = ["libnvinfer_plugin.so.10".to_owned()];
        assert_eq!(missing(&[folder.clone(), there.clone()], &library), None);
        for (folder, libraries, words) in [
            (&folder, &other[..], "neither installed"),
            (&there, &other, "no libnvinfer.so.*"),
            (&folder, &library, "apt install libnvinfer-headers-dev"),
        ] {
            let said = missing(std::slice::from_ref(folder), libraries).unwrap();
            assert!(said.starts_with("skipped") && said.contains(words) && !said.contains('\n'), "{said}");
        }
        fs::remove_dir_all(there).unwrap();
    }

    #[test]
    fn what_tests_record_is_kept_and_nothing_else() {
        assert_eq!(
            recorded("test real::refit ... recorded: refit, bf16: Refitted").unwrap(),
            "refit, bf16: Refitted"
        );
        assert_eq!(recorded("recorded: one").unwrap(), "one");
        assert_eq!(recorded("test real::refit ... ok"), None);
        // What the tests write.
        let text = fs::read_to_string(repository().join("tests/tests/tensorrt/trials/mod.rs")).unwrap();
        assert!(text.contains(&format!("println!(\"{RECORDED}{{fact}}\")")));
    }

    #[test]
    fn the_command_is_the_one_that_the_documentation_has() {
        let text = fs::read_to_string(repository().join("docs/tensorrt.md")).unwrap();
        assert!(text.contains(&format!("cargo {TEST}")));
    }
}
