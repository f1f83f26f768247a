//! Machines with a TensorRT, for the binary: an emulated GPU, a stand-in for the library, and what computes plans.

use std::{
    env,
    ffi::OsString,
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::LazyLock,
};

use serde_json::Value;
use takt_kernels_cu::Target;

use super::cubins;
use crate::{emulator::driver::EmulatedDevice, harness::*, standin::Built};

/// The files of kernels that run beside a plan.
const SOURCES: [&str; 4] = ["accept.cu", "kv_append.cu", "kv_compact.cu", "logits.cu"];

/// A Thor with the TensorRT that this takt was compiled for.
pub struct Machine {
    environment: Vec<(&'static str, OsString)>,
    pub folder: tempfile::TempDir,
    /// Of TensorRT's headers.
    pub version: (u32, u32, u32),
}

impl Machine {
    /// One that builds plans and does not run them: the device has no kernels, and nothing computes.
    pub fn new() -> Option<Self> {
        Self::with(|device| device)
    }

    /// The same with another driver or device.
    pub fn with(change: impl FnOnce(EmulatedDevice) -> EmulatedDevice) -> Option<Self> {
        let standin = Built::get()?;
        let mut environment =
            standin.beside(change(EmulatedDevice::new("").sm(110).num_sms(20)).environment()?);
        let (major, minor, patch) = standin.version;
        let folder = tempfile::tempdir().unwrap();
        environment.push(("STANDIN_SM", "110".into()));
        environment.push(("STANDIN_VERSION", format!("{major}.{minor}.{patch}").into()));
        environment.push(("STANDIN_FAULTS", folder.path().join("faults").into()));
        environment.push(("XDG_CACHE_HOME", folder.path().join("cache").into()));
        Some(Self { environment, folder, version: standin.version })
    }

    /// One that runs them as well.
    pub fn running() -> Option<Self> {
        let mut machine = Self::with(|device| device.kernels(&SOURCES))?;
        machine.set("STANDIN_EXECUTOR", EXECUTOR.as_os_str());
        let cache = machine.folder.path().join("cache/takt");
        fs::create_dir_all(&cache).unwrap();
        symlink(cubins::folder(Target::Thor), cache.join("kernels")).unwrap();
        Some(machine)
    }

    pub fn set(&mut self, name: &'static str, value: impl Into<OsString>) {
        self.environment.push((name, value.into()));
    }

    /// What a command finds of it.
    pub fn lend(&self, command: &mut Command) {
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
    }

    pub fn takt(&self, args: &[&str], with: &[(&str, &str)]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_takt"));
        command.args(args).stdin(Stdio::null()).env_remove("RUST_LOG");
        self.lend(&mut command);
        command.envs(with.iter().copied()).output().unwrap()
    }

    /// What the library was done so far that the real one leaves undefined.
    pub fn faults(&self) -> String {
        fs::read_to_string(self.folder.path().join("faults")).unwrap_or_default()
    }

    pub fn succeed(&self, args: &[&str]) -> Value {
        let output = self.takt(args, &[]);
        assert!(output.status.success(), "{args:?}: {}", stderr(&output));
        assert_eq!(self.faults(), "", "{args:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    }

    pub fn fail(&self, args: &[&str], with: &[(&str, &str)], words: &[&str]) {
        let output = self.takt(args, with);
        let message = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{args:?} {with:?}: {message}");
        assert!(words.iter().all(|word| message.contains(word)), "{with:?}: {words:?} not in {message}");
        assert!(!message.contains("panicked"), "{message}");
    }

    /// An engine with a draft head.
    pub fn engine(&self) -> String {
        let dir = self.path("engine");
        let (source, head) = (fixture("hf/tiny-llama"), fixture("eagle3/tiny-llama-midlayer"));
        let [source, head] = [source, head].map(|path| path.display().to_string());
        succeed(["build", &source, "-o", &dir, "--weights", "bf16", "--draft", &head]);
        dir
    }

    pub fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }
}

/// The shipped model.
pub fn demo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/takt-demo")
}

/// The interpreter of plans as a library. Another package's, so cargo is asked for it: what was built some time ago may be of other sources.
static EXECUTOR: LazyLock<PathBuf> = LazyLock::new(|| {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args([
        "build",
        "--package",
        "takt-tests",
        "--features",
        "tensorrt",
        "--example",
        "standin_executor",
    ]);
    let output = cargo.args(["--message-format", "json"]).stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let messages = String::from_utf8(output.stdout).unwrap();
    let messages = messages.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let made = messages
        .filter(|message| {
            message["reason"] == "compiler-artifact" && message["target"]["name"] == "standin_executor"
        })
        .find_map(|message| Some(PathBuf::from(message["filenames"][0].as_str()?)));
    made.expect("cargo names the library")
});
