//! Every launch of a test, held against the cubins of all targets: that the arguments are as many and as wide as the kernel's
//! parameters, and that its threads and shared memory fit the target. The emulator compiles for none of them.
//!
//! The cubins are those that `cargo run -p xtask -- kernels` keeps, made from the sources as they are. Without them launches go
//! unchecked, unless `TAKT_REQUIRE_CUBINS=1`.

use std::{env, path::Path, sync::OnceLock};

use takt_kernels_cu::{
    Target,
    cache::Cache,
    kernel_set::{KernelSet, Places},
    launch::Launch,
    source,
};

/// Checks `launch` for every target. Kernels that are no source's, as the emulator's own tests have, are not checked.
pub fn check(launch: &Launch) -> Result<(), String> {
    static KERNELS: OnceLock<Vec<KernelSet>> = OnceLock::new();
    for kernels in KERNELS.get_or_init(found) {
        if kernels.kernel(launch.kernel()).is_some() {
            let named = |error| format!("{} on {}: {error}", launch.kernel(), kernels.target());
            kernels.check(launch).map_err(named)?;
        }
    }
    Ok(())
}

fn found() -> Vec<KernelSet> {
    let folders = [Cache::new(Path::new(env!("CARGO_TARGET_TMPDIR")).join("../cuda/cubins"))];
    let places = Places { folders: &folders, compiler: None, driver: None };
    let sources: Vec<_> = source::all().copied().collect();
    let opened = Target::ALL.map(|target| KernelSet::open_of(&sources, target, places, |_| {}));
    let (found, missing): (Vec<_>, Vec<_>) = opened.into_iter().partition(Result::is_ok);
    if let Some(Err(error)) = missing.into_iter().next() {
        assert!(env::var_os("TAKT_REQUIRE_CUBINS").is_none(), "{error}; run `cargo run -p xtask -- kernels`");
        eprintln!("launches are held against the cubins of {} targets only: {error}", found.len());
    }
    found.into_iter().flatten().map(|(kernels, _)| kernels).collect()
}
