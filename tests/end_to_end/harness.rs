//! Runs the binary and holds it to its exit status, its JSON and its messages.

use std::{
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::LazyLock,
};

use serde_json::Value;
use takt_node::ros::RosOptions;

pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures").join(name)
}

pub fn takt<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_takt"));
    command
        .args(args)
        .env_remove("RUST_LOG")
        .env_remove("ROS_DOMAIN_ID")
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

pub fn succeed<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> String {
    let output = takt(args);
    assert!(output.status.success(), "{}", stderr(&output));
    String::from_utf8(output.stdout).unwrap()
}

pub fn succeed_json<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Value {
    serde_json::from_str(&succeed(args)).expect("standard output is one JSON object")
}

/// Runs a command that must fail with `code` and say all of `words`.
pub fn fail<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>, code: i32, words: &[&str]) {
    let output = takt(args);
    let message = stderr(&output);
    assert_eq!(output.status.code(), Some(code), "{message}");
    for word in words {
        assert!(message.contains(word), "{word:?} not in {message}");
    }
    assert!(!message.contains("panicked"), "{message}");
}

/// The fixture checkpoint as a bf16 engine, built once by the binary itself.
pub static ENGINE: LazyLock<(tempfile::TempDir, String)> = LazyLock::new(|| {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("engine").display().to_string();
    let source = fixture("hf/tiny-llama").display().to_string();
    let report = succeed_json(["build", &source, "-o", &dir, "--weights", "bf16", "--json"]);
    assert_eq!(report["quantization"]["weights"], "bf16");
    (folder, dir)
});

pub fn engine() -> &'static str {
    &ENGINE.1
}

/// A writable copy of a folder of files.
pub fn copy_of(source: &Path) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(source).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
    }
    folder
}

/// A ROS 2 domain of this process, beyond what the other suites and `takt demo` use.
fn domain_id() -> u16 {
    102 + u16::try_from(std::process::id() % 20).unwrap()
}

/// What a client in this process needs to reach the binary [`on_loopback`].
pub fn options_on_loopback() -> RosOptions {
    RosOptions { domain_id: domain_id(), localhost_only: true, ..RosOptions::default() }
}

/// The binary on [`domain_id`], on this machine only.
pub fn on_loopback(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_takt"));
    command
        .args(args)
        .env("ROS_DOMAIN_ID", domain_id().to_string())
        .env("ROS_LOCALHOST_ONLY", "1")
        .env_remove("ROS_AUTOMATIC_DISCOVERY_RANGE")
        .stdin(Stdio::null());
    command
}

/// A `takt serve` that is killed when the test ends, however it ends.
pub struct Node(pub std::process::Child);

impl Node {
    pub fn start(args: &[&str]) -> Self {
        Self(on_loopback(args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
