//! Whether there is room for ONNX models and plans: found out before minutes of work.

use std::path::Path;

use takt_engine::dir::{Manifest, WEIGHTS_FILE};

use super::place::Place;
use crate::{BuildError, Result};

/// Models beside their data, rotary tables, the manifest.
const MARGIN_BYTES: u64 = 32 << 20;

/// Checks that the file system below `place` has room for the weights twice: in the model, and in the plan.
pub(super) fn check(place: &Place, manifest: &Manifest) -> Result<()> {
    let weights = manifest.file(WEIGHTS_FILE).map_or(0, |entry| entry.size_bytes);
    has_room(place.staging(), place.folder(), needed_bytes(weights, 2))
}

/// The same before an engine with weights of so many bytes is built in the folder `staging`, which will hold them as well.
///
/// # Errors
/// [`BuildError::Source`] with what is free and what is needed.
pub(crate) fn check_room_with_engine(staging: &Path, weight_bytes: u64) -> Result<()> {
    has_room(staging, staging, needed_bytes(weight_bytes, 3))
}

fn has_room(staging: &Path, told: &Path, needed: u64) -> Result<()> {
    let refusal = free_bytes(staging).and_then(|free| refusal(free, needed));
    refusal.map_or(Ok(()), |fact| Err(BuildError::Source { path: told.into(), fact }))
}

fn refusal(free: u64, needed: u64) -> Option<String> {
    (free < needed).then(|| {
        format!(
            "{} MB are free where plans are built, and about {} MB are needed: the ONNX model and the plan take as much as the engine's weights \
             each, beside the engine; make room, or build where there is some",
            free / 1_000_000,
            needed.div_ceil(1_000_000)
        )
    })
}

fn needed_bytes(weights: u64, times: u64) -> u64 {
    weights.saturating_mul(times).saturating_add(MARGIN_BYTES)
}

/// What a process without privileges may write; `None` where nobody says.
#[cfg(unix)]
fn free_bytes(folder: &Path) -> Option<u64> {
    let facts = nix::sys::statvfs::statvfs(folder).ok()?;
    // As wide as they are elsewhere.
    #[allow(clippy::useless_conversion, reason = "their types differ between systems")]
    let (blocks, size) = (u64::from(facts.blocks_available()), u64::from(facts.fragment_size()));
    Some(blocks.saturating_mul(size))
}

#[cfg(not(unix))]
fn free_bytes(_: &Path) -> Option<u64> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_little_room_is_refused_with_both_numbers() {
        let message = refusal(3_999_999_999, 4_000_000_000).unwrap();
        assert!(message.contains("3999 MB are free") && message.contains("4000 MB are needed"), "{message}");
        assert_eq!(refusal(4_000_000_000, 4_000_000_000), None);
    }

    #[test]
    fn models_and_plans_take_the_weights_twice_and_more_is_not_asked_of_a_disk_than_it_has() {
        let folder = tempfile::tempdir().unwrap();
        let engine = folder.path().join("engine");
        let source = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/hf/tiny-llama");
        let options = crate::BuildOptions::new(takt_engine::quant::WeightKind::Bf16);
        crate::build(&source, &engine, &options, &mut |_| ()).unwrap();
        let mut manifest = Manifest::read(&engine).unwrap();
        assert_eq!(needed_bytes(1 << 40, 2), (2 << 40) + MARGIN_BYTES);
        let weights = manifest.files.iter_mut().find(|file| file.name == WEIGHTS_FILE).unwrap();
        weights.size_bytes = u64::MAX;
        let place = Place::open(&engine).unwrap();
        let message = check(&place, &manifest).unwrap_err().to_string();
        assert!(message.contains("MB are free") && message.contains("plans\""), "{message}");
        let message = check_room_with_engine(folder.path(), u64::MAX / 3).unwrap_err().to_string();
        assert!(message.contains("MB are free"), "{message}");
        check_room_with_engine(folder.path(), 0).unwrap();
    }
}
