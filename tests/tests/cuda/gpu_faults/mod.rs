//! A GPU that is made to fail: memory that runs out, launches that are refused, kernels that trap, write where nothing lies, and hang. Every open
//! request is answered with the reason, the engine is open again soon, answers are what they were, and so is the free memory.
//!
//! `cargo run -p xtask -- gpu-check` runs this on a machine's own GPU, where it also holds the time that reopening takes against what opening took.
//! Here the same program runs on the emulated device, whose time means nothing. Nothing of it is in the program that ships: a library in front of
//! the driver's (`front.c`) hands every call on and does what goes wrong.

mod check;
mod front;
mod record;

use std::{
    env,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use takt_kernels_cu::driver::device;

use self::{check::Extent, front::Front};
use crate::{
    emulator::{
        device::is_required,
        driver::{CHILD, Device, EmulatedDevice, finished},
    },
    models::{emulated, on_device},
};

/// How long all of it may take: every allocation of an opening fails once, and a driver may wait for each kernel that hangs.
const LIMIT: Duration = Duration::from_secs(900);
/// Names the file for the record.
const RECORD: &str = "TAKT_GPU_FAULTS_JSON";

#[test]
fn a_gpu_that_is_made_to_fail_is_left_as_it_was_found() {
    let test = "gpu_faults::a_gpu_that_is_made_to_fail_is_left_as_it_was_found";
    behind_the_front(test, on_device(test), |front, device| {
        let record = check::run(front, device, Extent::Everything);
        println!("{}", record.as_text());
        if let Some(path) = env::var_os(RECORD) {
            fs::write(path, record.as_json().to_string()).unwrap();
        }
        assert_eq!(record.failures(), Vec::<String>::new());
    });
}

/// The front has no function that the driver behind it lacks: what is not to be had is gone without, as without the front.
#[test]
fn a_gpu_with_an_older_driver_is_made_to_fail_too() {
    if is_required() {
        return eprintln!("skipped: a test of the emulated device");
    }
    let test = "gpu_faults::a_gpu_with_an_older_driver_is_made_to_fail_too";
    behind_the_front(test, emulated(test).cuda(12, 4), |front, device| {
        let record = check::run(front, device, Extent::OneFault);
        println!("{}", record.as_text());
        assert_eq!(record.failures(), Vec::<String>::new());
        assert_eq!(device.report().calls("cuGreenCtxCreate"), 0, "nothing is begun that cannot be ended");
    });
}

/// Runs `body` in a child process whose driver is `device`'s, or the machine's own where that is required, with the front before it.
fn behind_the_front(test: &'static str, device: EmulatedDevice, body: impl FnOnce(&Front, &Device)) {
    if env::var_os(CHILD).is_some_and(|name| name == test) {
        return device.run(|device| body(&Front::open(), device));
    }
    // Nothing beside it where the machine's own is required; there is neither without a C++ compiler.
    let environment = if is_required() { Some(Vec::new()) } else { device.environment() };
    let Some(mut environment) = environment else { return };
    let folder = tempfile::tempdir().unwrap();
    let searched = environment.iter().find(|(name, _)| *name == SEARCHED).map(|(_, path)| path.clone());
    let real = match &searched {
        // The emulated driver's folder is the first.
        Some(path) => env::split_paths(path).next().unwrap().join(front::LIBRARY),
        None => own_library(),
    };
    front::make(&real, folder.path()).unwrap_or_else(|error| panic!("a C compiler is needed: {error}"));
    environment.push((SEARCHED, first(folder.path(), searched.or_else(|| env::var_os(SEARCHED)))));
    let mut command = Command::new(env::current_exe().unwrap());
    command.args([test, "--exact", "--nocapture", "--test-threads=1"]).env(CHILD, test).envs(environment);
    let (is_well, output) = finished(command, LIMIT);
    println!("{output}");
    assert!(is_well && output.contains("1 passed"), "behind {}:\n{output}", real.display());
}

const SEARCHED: &str = "LD_LIBRARY_PATH";

/// The library of the machine's own driver.
fn own_library() -> PathBuf {
    device::probe().unwrap_or_else(|error| panic!("TAKT_REQUIRE_DEVICE=1: {error}"));
    front::real_library().expect("a driver was probed, so its library is open")
}

/// `folder` before those of `path`.
fn first(folder: &Path, path: Option<OsString>) -> OsString {
    let rest = path.unwrap_or_default();
    env::join_paths([folder.to_owned()].into_iter().chain(env::split_paths(&rest))).unwrap()
}
