//! Measurements of a GPU, on the emulated device: what is measured, what is opened for it and given back. How long anything takes means
//! nothing there.

use std::{
    ffi::OsString,
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::LazyLock,
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use takt_kernels_cu::{Target, cache::Cache, source};

use crate::{
    emulator::driver::{EmulatedDevice, Report},
    harness::*,
};

/// Cubins as `cargo run -p xtask -- kernels` keeps them, or none. The emulated device loads them as a device does, and runs its own.
fn cubins() -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("../cuda/cubins");
    let cache = Cache::new(&folder);
    if source::all().all(|source| cache.find(source, Target::Orin, None).is_some()) {
        return Some(fs::canonicalize(folder).unwrap());
    }
    assert!(
        std::env::var_os("TAKT_REQUIRE_CUBINS").is_none(),
        "no cubins: run `cargo run -p xtask -- kernels`"
    );
    eprintln!("skipped: no cubins of these sources; `cargo run -p xtask -- kernels` makes them");
    None
}

/// An Orin with 8 multiprocessors and next to no memory, as the binary finds it.
struct Machine {
    environment: Vec<(&'static str, OsString)>,
    folder: tempfile::TempDir,
}

impl Machine {
    fn new() -> Option<Self> {
        Self::with(|device| device)
    }

    /// One with another driver.
    fn with(change: impl FnOnce(EmulatedDevice) -> EmulatedDevice) -> Option<Self> {
        let (cubins, folder) = (cubins()?, tempfile::tempdir().unwrap());
        let device = EmulatedDevice::new("").sm(87).num_sms(8).memory_bytes(176 << 20).all_kernels();
        let environment = change(device).environment()?;
        fs::create_dir(folder.path().join("takt")).unwrap();
        symlink(cubins, folder.path().join("takt/kernels")).unwrap();
        Some(Self { environment, folder })
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_takt"));
        command
            .args(args)
            .stdin(Stdio::null())
            .env_remove("RUST_LOG")
            .env("XDG_CACHE_HOME", self.folder.path());
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.env("TAKT_EMULATED_REPORT", self.folder.path().join("report"));
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    fn report(&self) -> Report {
        Report::read(&fs::read_to_string(self.folder.path().join("report")).unwrap())
    }
}

/// The shipped model, whose heads there are kernels for.
static DEMO: LazyLock<(tempfile::TempDir, String)> = LazyLock::new(|| {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("engine").display().to_string();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/takt-demo").display().to_string();
    succeed(["build", &source, "-o", &dir, "--weights", "nvfp4"]);
    (folder, dir)
});

#[test]
fn every_kind_of_step_is_measured_beside_what_the_devices_memory_gives() {
    let Some(machine) = Machine::new() else { return };
    let args = [
        "bench",
        &DEMO.1,
        "--backend",
        "cuda",
        "--prompt-len",
        "8",
        "--tokens",
        "3",
        "--prefill-lens",
        "20,100000",
        "--verify-sizes",
        "4,8",
        "--json",
    ];
    let output = machine.run(&args);
    assert!(output.status.success(), "{}", stderr(&output));
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&found["backend"], &found["gpu"]["l2_bytes"]), (&json!("cuda"), &json!(4 << 20)));
    let kinds = found["gpu"]["kinds"].as_array().unwrap();
    let names: Vec<_> = kinds.iter().map(|kind| (kind["kind"].as_str().unwrap(), &kind["tokens"])).collect();
    // A prompt longer than the model was made for is left out.
    assert_eq!(
        names,
        [("decode", &json!(1)), ("verify", &json!(4)), ("verify", &json!(8)), ("prefill", &json!(20))]
    );
    let number = |value: &Value| value.as_f64().filter(|number| *number > 0.0).expect("a number above 0");
    let copy = number(&found["gpu"]["copy_gb_s"]);
    assert!(number(&found["gpu"]["buffer_bytes"]) >= 1e6);
    for kind in kinds {
        assert!((number(&kind["copy_share"]) - number(&kind["gb_s"]) / copy).abs() < 1e-6, "{kind}");
        assert_eq!(kind["over_decode"].is_null(), kind["kind"] != "verify", "{kind}");
    }
    // Not the processor's memory.
    assert_eq!(found["read_bandwidth_gb_s"], found["gpu"]["read_gb_s"]);
    assert_eq!(found["bandwidth_share"], kinds[0]["copy_share"]);
    assert_eq!(machine.report().leaks(), Vec::<String>::new());
    let text = machine.run(&args[..args.len() - 1]);
    assert!(String::from_utf8_lossy(&text.stdout).contains("cuMemcpyDtoD"));
}

#[test]
fn perception_is_measured_in_every_mode_and_place_and_nothing_is_left() {
    let Some(machine) = Machine::new() else { return };
    let plot = machine.folder.path().join("perception.svg").display().to_string();
    let output = machine.run(&[
        "bench",
        "--perception",
        &DEMO.1,
        "--hz",
        "50",
        "--seconds",
        "0.05",
        "--frame",
        "1ms",
        "--perception-rounds",
        "1",
        "--idle-gap",
        "100us",
        "--plot",
        &plot,
        "--json",
    ]);
    assert!(output.status.success(), "{}", stderr(&output));
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    let rows = found["rows"].as_array().unwrap();
    let names: Vec<_> =
        rows.iter().map(|row| (row["place"].as_str().unwrap(), row["mode"].as_str().unwrap())).collect();
    let modes = ["alone", "none", "priority", "green_context"];
    let wanted: Vec<_> = ["in-process", "second-process"]
        .iter()
        .flat_map(|place| modes.iter().map(move |mode| (*place, *mode)))
        .collect();
    assert_eq!(names, wanted);
    for row in rows {
        assert!(row["frames"].as_u64().unwrap() >= 1, "{row}");
        let ms = &row["frame_ms"];
        assert!(ms["p50"].as_f64().unwrap() > 0.0 && ms["max"].as_f64() >= ms["p99"].as_f64(), "{row}");
        assert_eq!(row["kept"].is_null(), row["mode"] == "alone", "{row}");
        // What was got, from what the backend says of its kernels.
        let got = match row["mode"].as_str().unwrap() {
            "alone" => Value::Null,
            "green_context" => json!({"used": 4, "all": 8}),
            _ => json!({"used": 8, "all": 8}),
        };
        assert_eq!((&row["share"], &row["multiprocessors"]), (&row["mode"], &got), "{row}");
        assert!(row["not_judged"].is_null(), "{row}");
    }
    assert_eq!(found["kept_against"], "none");
    // What was really opened: all multiprocessors, and the half that can be split off 8.
    let kernels: Vec<_> =
        found["model_alone"].as_array().unwrap().iter().map(|row| row["kernels"].as_str().unwrap()).collect();
    assert_eq!(kernels, ["8 of 8", "8 of 8", "4 of 8"].map(|part| format!("sm_87, {part} multiprocessors")));
    let report = machine.report();
    // The model is opened three times, twice in a plain context; perception stays in the primary one.
    let calls =
        ["cuGreenCtxCreate", "cuCtxCreate_v4", "cuDevicePrimaryCtxRetain"].map(|name| report.calls(name));
    assert_eq!(calls, [1, 2, 1]);
    assert_eq!(report.leaks(), Vec::<String>::new());
    assert!(fs::read_to_string(&plot).unwrap().contains("green_context"));
}

#[test]
fn a_green_context_that_the_driver_has_not_is_said_and_not_judged() {
    let Some(machine) = Machine::with(|device| device.without("cuGreenCtxCreate")) else { return };
    let args = ["bench", "--perception", &DEMO.1, "--hz", "50", "--seconds", "0.05", "--frame", "1ms"];
    let args =
        [&args[..], &["--perception-rounds", "1", "--modes", "green_context", "--places", "in-process"]]
            .concat();
    let output = machine.run(&[&args[..], &["--json"]].concat());
    assert!(output.status.success(), "{}", stderr(&output));
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(found["kept_against"], "green_context");
    let row = &found["rows"][1];
    assert_eq!((&row["mode"], &row["share"]), (&json!("green_context"), &json!("priority")), "{row}");
    assert_eq!(row["multiprocessors"], json!({"used": 8, "all": 8}));
    assert!(row["meets_goal"].is_null(), "{row}");
    let text = machine.run(&args);
    let text = String::from_utf8_lossy(&text.stdout);
    assert!(
        text.contains("green_context*") && text.contains("* not held against the goals: no green"),
        "{text}"
    );
}

/// The second process of `first`, once there is one.
fn second_process(first: &Child) -> Option<u32> {
    let children = fs::read_dir("/proc").unwrap().filter_map(|entry| {
        let id: u32 = entry.ok()?.file_name().to_str()?.parse().ok()?;
        let status = fs::read_to_string(format!("/proc/{id}/status")).ok()?;
        let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim().to_owned();
        let command = fs::read(format!("/proc/{id}/cmdline")).ok()?;
        let is_it = parent == first.id().to_string()
            && String::from_utf8_lossy(&command).contains("perception-frames");
        is_it.then_some(id)
    });
    children.into_iter().next()
}

/// A second process that does not outlive a test that fails.
struct Ended(u32);

impl Drop for Ended {
    fn drop(&mut self) {
        let command = fs::read(format!("/proc/{}/cmdline", self.0)).unwrap_or_default();
        if String::from_utf8_lossy(&command).contains("perception-frames") {
            let _ = Command::new("kill").args(["-9", &self.0.to_string()]).status();
        }
    }
}

fn until<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = found() {
            return found;
        }
        assert!(started.elapsed() < Duration::from_secs(60), "{what}: not within a minute");
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn the_second_process_ends_when_the_first_dies() {
    let Some(machine) = Machine::new() else { return };
    let args = [
        "bench",
        "--perception",
        &DEMO.1,
        "--hz",
        "20",
        "--seconds",
        "3600",
        "--frame",
        "1ms",
        "--places",
        "second-process",
    ];
    let mut command = machine.command(&args);
    let mut first = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let second = until("a second process", || {
        assert!(first.try_wait().unwrap().is_none(), "the first ended");
        second_process(&first)
    });
    let _ended = Ended(second);
    // In the midst of its frames: an hour of them is asked for.
    thread::sleep(Duration::from_millis(500));
    first.kill().unwrap();
    first.wait().unwrap();
    until("the end of the second process", || {
        let status = fs::read_to_string(format!("/proc/{second}/status")).unwrap_or_default();
        // Where nobody reaps orphans, it stays as a zombie.
        (status.is_empty() || status.contains("State:\tZ")).then_some(())
    });
}

#[test]
fn without_a_gpu_that_is_said() {
    for args in [
        &["bench", "--perception"][..],
        &["bench", "--shape", "qwen3-0.6b", "--backend", "cuda"],
        &["perception-frames", "3"],
    ] {
        let output = takt_without_gpu(args);
        let message = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{message}");
        let known = ["no NVIDIA driver", "finds no device", "supports CUDA"];
        assert!(known.iter().any(|part| message.contains(part)), "{message}");
    }
    fail(["bench", "--perception", "--backend", "cpu"], 2, &["shares a GPU"]);
    fail(["bench", "--perception", "--modes", "mig"], 2, &["none, priority or green_context"]);
    fail(["bench", "--perception", "--seconds", "0"], 2, &["more than 0"]);
    fail(["bench", "--perception", "--seconds", "1e19"], 2, &["at most 86400"]);
    fail(["bench", "--perception", "--seconds", "86400"], 2, &["frames, expected at most"]);
    fail(["bench", "--shape", "qwen3-0.6b", "--verify-sizes", "8"], 2, &["belong to --backend cuda"]);
    fail(["bench", "--hz", "30", "--shape", "qwen3-0.6b"], 2, &["--perception"]);
}

fn takt_without_gpu(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_takt"));
    // Where there is one, it is hidden.
    command.args(args).env("CUDA_VISIBLE_DEVICES", "").env_remove("RUST_LOG").stdin(Stdio::null());
    command.output().unwrap()
}
