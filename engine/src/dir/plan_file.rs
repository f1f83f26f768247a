//! A TensorRT plan's file: found for a machine, read and checked where it is used, and not before.

use std::{path::Path, thread};

use memmap2::Mmap;

use super::{
    FileEntry, Manifest, PlanEntry, PlanRole, PlanVersion, WEIGHTS_FILE, contents::Contents, corrupt, verify,
    weights,
};
use crate::Result;

/// Bytes of a file that a thread hashes at a time.
const SHARE_BYTES: usize = 4 << 20;

/// A plan's file, mapped, with the size and the BLAKE3 that the manifest tells.
#[derive(Debug)]
pub struct PlanFile {
    map: Mmap,
}

impl PlanFile {
    /// Maps the plan `entry` of the engine directory `dir` and checks size and BLAKE3; all of it is read, by several threads.
    ///
    /// The file must not be changed while the result lives. A build puts a new file in its place and leaves this one to whoever has it open.
    ///
    /// # Errors
    /// [`EngineError::Corrupt`](crate::EngineError::Corrupt) for a file that is not there or another; [`EngineError::Io`](crate::EngineError::Io).
    pub fn open(dir: &Path, entry: &PlanEntry) -> Result<Self> {
        let path = dir.join(&entry.file);
        let listed = entry.as_file();
        verify::check_size(dir, &listed)?;
        let map = weights::map_file(&path)?;
        if map.len() as u64 != entry.size_bytes {
            return Err(corrupt(&path, "was changed while it was opened"));
        }
        let contents = Contents::new(map.len(), Vec::new());
        hash_by_threads(&contents, &map);
        verify::compare_hash(&path, &listed, contents.finish(&map, |_| ()).0)?;
        Ok(Self { map })
    }

    /// The serialized plan.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.map
    }
}

/// Plans are gigabytes, and whoever opens one waits.
fn hash_by_threads(contents: &Contents, file: &[u8]) {
    let num_threads = thread::available_parallelism().map_or(1, usize::from);
    let num_shares = file.len().div_ceil(SHARE_BYTES);
    thread::scope(|scope| {
        for first in 0..num_threads.min(num_shares) {
            scope.spawn(move || {
                for share in (first..num_shares).step_by(num_threads) {
                    let start = share * SHARE_BYTES;
                    contents.look_at(file, start..file.len().min(start + SHARE_BYTES));
                }
            });
        }
    });
}

/// Whether one plan's file is what the manifest says.
#[derive(Debug)]
pub struct PlanCheck {
    /// The manifest's entry.
    pub entry: PlanEntry,
    /// `Ok` when it is there, and its size and hash hold.
    pub outcome: Result<()>,
    /// It was made from other weights than the engine has, and is not used.
    pub is_stale: bool,
}

impl Manifest {
    /// The plan that runs `role` on GPU `sm` (`sm_110a`) with TensorRT `version`.
    #[must_use]
    pub fn plan(&self, version: PlanVersion, sm: &str, role: PlanRole) -> Option<&PlanEntry> {
        self.plans.iter().find(|plan| plan.is_for(version, sm, role))
    }

    /// BLAKE3 of the weights that a plan of `role` has to be made from; `None` where the engine lists none.
    #[must_use]
    pub fn plan_weights(&self, role: PlanRole) -> Option<&str> {
        let file = match role {
            PlanRole::Decoder => WEIGHTS_FILE,
        };
        self.file(file).map(|entry| entry.blake3.as_str())
    }

    /// Checks every plan below `dir`, without stopping at the first that fails. Reads all of them.
    #[must_use]
    pub fn check_plans(&self, dir: &Path) -> Vec<PlanCheck> {
        let check = |entry: &PlanEntry| PlanCheck {
            outcome: PlanFile::open(dir, entry).map(|_| ()),
            is_stale: self.plan_weights(entry.role) != Some(&entry.weights_blake3),
            entry: entry.clone(),
        };
        self.plans.iter().map(check).collect()
    }
}

impl PlanEntry {
    /// Whether it runs `role` on GPU `sm` with TensorRT `version`.
    #[must_use]
    pub fn is_for(&self, version: PlanVersion, sm: &str, role: PlanRole) -> bool {
        (self.tensorrt, self.sm.as_str(), self.role) == (version, sm, role)
    }

    /// Its file, as files of the engine are listed.
    pub(super) fn as_file(&self) -> FileEntry {
        FileEntry { name: self.file.clone(), size_bytes: self.size_bytes, blake3: self.blake3.clone() }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::{super::plans::tests::entry, *};

    fn written(bytes: &[u8]) -> (tempfile::TempDir, PlanEntry) {
        let folder = tempfile::tempdir().unwrap();
        let mut plan = entry(PlanRole::Decoder);
        (plan.size_bytes, plan.blake3) = (bytes.len() as u64, blake3::hash(bytes).to_hex().to_string());
        let path = folder.path().join(&plan.file);
        fs::create_dir(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
        (folder, plan)
    }

    #[test]
    fn a_plan_is_read_whole_however_many_threads_hash_it() {
        for len in [1, SHARE_BYTES - 1, 3 * SHARE_BYTES + 4097] {
            let bytes: Vec<u8> = (0..len).map(|i| (i * 31 + i / 977) as u8).collect();
            let (folder, plan) = written(&bytes);
            assert!(PlanFile::open(folder.path(), &plan).unwrap().bytes() == bytes, "{len} bytes");
        }
    }

    #[test]
    fn a_plan_that_is_missing_or_another_is_refused() {
        let (folder, plan) = written(&[7; 9000]);
        let path = folder.path().join(&plan.file);
        let error = || PlanFile::open(folder.path(), &plan).unwrap_err().to_string();
        let mut bytes = vec![7; 9000];
        bytes[4500] ^= 1;
        fs::write(&path, &bytes).unwrap();
        assert!(error().contains("BLAKE3 is"), "{}", error());
        fs::write(&path, &bytes[1..]).unwrap();
        assert!(error().contains("8999 bytes, expected 9000"), "{}", error());
        fs::remove_file(&path).unwrap();
        assert!(error().contains("is listed in engine.json but missing"), "{}", error());
        fs::create_dir(&path).unwrap();
        assert!(error().contains("not a regular file"), "{}", error());
    }
}
