//! A Python with the packages that judge, in an environment of its own; without one the tests say so and pass, unless `TAKT_REQUIRE_ONNX=1`, which
//! makes one.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
    sync::LazyLock,
};

/// Pinned: another version may judge otherwise.
const PACKAGES: [&str; 4] = ["onnx==1.23.2", "onnxruntime==1.31.1", "numpy==2.4.6", "ml_dtypes==0.6.0"];

static PYTHON: LazyLock<Option<PathBuf>> = LazyLock::new(|| {
    if let Some(given) = env::var_os("TAKT_ONNX_PYTHON") {
        return Some(given.into());
    }
    // Also where an environment is there already: these tests take minutes.
    if env::var_os("TAKT_REQUIRE_ONNX").is_none() {
        eprintln!("skipped: takes minutes; TAKT_REQUIRE_ONNX=1 runs it, with a Python of its own");
        return None;
    }
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("onnx-venv");
    let python = folder.join("bin/python");
    let is_current =
        std::fs::read_to_string(folder.join("complete")).is_ok_and(|made| made == PACKAGES.join("\n"));
    if is_current {
        return Some(python);
    }
    run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&folder));
    run(Command::new(&python)
        .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--only-binary", ":all:"])
        .args(PACKAGES));
    std::fs::write(folder.join("complete"), PACKAGES.join("\n")).unwrap();
    Some(python)
});

fn run(command: &mut Command) {
    let status = command
        .status()
        .expect("Python 3.11 or newer with venv is needed (Debian: apt install python3-venv)");
    assert!(
        status.success(),
        "{command:?}: {status} (without venv: Python 3.11 or newer is needed, Debian: apt install python3-venv)"
    );
}

/// The interpreter, or `None` when the test is to be skipped.
pub fn python() -> Option<&'static Path> {
    PYTHON.as_deref()
}

/// What `check.py` found of the export at `folder` with the case at `case`; panics with its message when it failed.
pub fn check(python: &Path, folder: &Path, case: &Path, runtime: &str) -> serde_json::Value {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/onnx_export/check.py");
    let output = Command::new(python).arg(script).args([folder, case]).arg(runtime).output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{runtime} on {folder:?}: {err}");
    eprint!("{err}");
    serde_json::from_str(out.lines().last().unwrap_or_default())
        .unwrap_or_else(|e| panic!("{e}: {out}\n{err}"))
}
