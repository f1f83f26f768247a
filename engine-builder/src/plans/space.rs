//! Whether there is room for ONNX models and plans: found out before minutes of work.

use takt_engine::{
    dir::{Manifest, WEIGHTS_FILE},
    draft::DRAFT_WEIGHTS_FILE,
};

use super::place::Place;
use crate::{BuildError, Result};

/// Models beside their data, rotary tables, the manifest.
const MARGIN_BYTES: u64 = 32 << 20;

/// Checks that the file system below `place` has room for the weights twice: in the models, and in the plans.
pub(super) fn check(place: &Place, manifest: &Manifest) -> Result<()> {
    let needed = needed_bytes(manifest);
    match free_bytes(place) {
        Some(free) if free < needed => {
            let fact = format!(
                "{} MB are free where plans are built, and about {} MB are needed: the ONNX models and the plans take as much as the weights each",
                free >> 20,
                needed >> 20
            );
            Err(BuildError::Source { path: place.folder().into(), fact })
        }
        _ => Ok(()),
    }
}

fn needed_bytes(manifest: &Manifest) -> u64 {
    let size = |name| manifest.file(name).map_or(0, |entry| entry.size_bytes);
    let weights = size(WEIGHTS_FILE).saturating_add(size(DRAFT_WEIGHTS_FILE));
    weights.saturating_mul(2).saturating_add(MARGIN_BYTES)
}

/// What a process without privileges may write; `None` where nobody says.
#[cfg(unix)]
fn free_bytes(place: &Place) -> Option<u64> {
    let facts = nix::sys::statvfs::statvfs(place.staging()).ok()?;
    // As wide as they are elsewhere.
    #[allow(clippy::useless_conversion, reason = "their types differ between systems")]
    let (blocks, size) = (u64::from(facts.blocks_available()), u64::from(facts.fragment_size()));
    Some(blocks.saturating_mul(size))
}

#[cfg(not(unix))]
fn free_bytes(_: &Place) -> Option<u64> {
    None
}
