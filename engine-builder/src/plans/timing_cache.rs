//! What TensorRT measured on this device, kept for the next plan: one file a device and a TensorRT. Sealed, so that a damaged one never gets to
//! TensorRT; without one, or with one of no use, a build only takes longer.

use std::{
    fs,
    io::{ErrorKind, Read as _, Write as _},
    path::{Path, PathBuf},
};

use takt_tensorrt::Version;

/// What a file begins with; BLAKE3 of the rest follows.
const MAGIC: &[u8; 24] = b"takt TensorRT timings 1\n";
/// BLAKE3's.
const HASH_BYTES: usize = 32;
/// Far above any real one: they are megabytes.
const MAX_BYTES: u64 = 1 << 30;

/// Where the measurements of one device and one TensorRT are kept.
#[derive(Debug)]
pub(super) struct TimingCache {
    path: Option<PathBuf>,
}

impl TimingCache {
    /// Nothing is kept without a folder.
    pub(super) fn new(folder: Option<&Path>, version: Version, device: &str) -> Self {
        let plain = |c: char| if c.is_ascii_alphanumeric() || c == '_' { c } else { '-' };
        let name = format!("trt-{version}-{}.timings", device.chars().map(plain).collect::<String>());
        Self { path: folder.map(|folder| folder.join(name)) }
    }

    /// What was measured before, empty for nothing; and what the user should know of a file that is there and of no use.
    pub(super) fn read(&self) -> (Vec<u8>, Option<String>) {
        let Some(path) = &self.path else { return (Vec::new(), None) };
        let unusable = |what: String| {
            let note = format!("measurements of earlier builds in {path:?} {what}; all is measured anew");
            (Vec::new(), Some(note))
        };
        match read_sealed(path) {
            Ok(Some(bytes)) => (bytes, None),
            Ok(None) => unusable("are damaged".into()),
            Err(e) if e.kind() == ErrorKind::NotFound => (Vec::new(), None),
            Err(e) => unusable(format!("cannot be read: {e}")),
        }
    }

    /// Keeps `bytes`; what the user should know when that fails.
    pub(super) fn write(&self, bytes: &[u8]) -> Option<String> {
        let path = self.path.as_deref().filter(|_| !bytes.is_empty())?;
        let note = |e: std::io::Error| {
            format!("measurements cannot be kept in {path:?}: {e}; the next build will take as long")
        };
        write_sealed(path, bytes).err().map(note)
    }
}

/// `None` for what is not sealed, or does not hold.
fn read_sealed(path: &Path) -> std::io::Result<Option<Vec<u8>>> {
    let mut file = Vec::new();
    fs::File::open(path)?.take(MAX_BYTES).read_to_end(&mut file)?;
    let sealed = file.strip_prefix(MAGIC).and_then(|rest| rest.split_at_checked(HASH_BYTES));
    let whole = sealed.filter(|(hash, bytes)| blake3::hash(bytes).as_bytes() == hash);
    Ok(whole.map(|(_, bytes)| bytes.to_vec()))
}

fn write_sealed(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(MAGIC)?;
    file.write_all(blake3::hash(bytes).as_bytes())?;
    file.write_all(bytes)?;
    file.persist(path).map_err(|e| e.error).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache(folder: &Path) -> TimingCache {
        TimingCache::new(
            Some(folder),
            Version { major: 10, minor: 16, patch: 2 },
            "NVIDIA Thor sm_110 20 SMs",
        )
    }

    #[test]
    fn what_was_measured_is_read_back_by_the_same_device_and_version_alone() {
        let folder = tempfile::tempdir().unwrap();
        let inner = folder.path().join("takt/tensorrt");
        assert_eq!(cache(&inner).read(), (Vec::new(), None));
        assert_eq!(cache(&inner).write(b"timings"), None);
        assert_eq!(cache(&inner).write(b"more timings"), None);
        assert_eq!(cache(&inner).read(), (b"more timings".to_vec(), None));
        let names: Vec<_> = fs::read_dir(&inner).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["trt-10.16.2-NVIDIA-Thor-sm_110-20-SMs.timings"]);
        let version = Version { major: 10, minor: 16, patch: 1 };
        let other = TimingCache::new(Some(&inner), version, "NVIDIA Thor sm_110 20 SMs");
        assert_eq!(other.read(), (Vec::new(), None));
        let nowhere = TimingCache::new(None, version, "x");
        assert_eq!((nowhere.read(), nowhere.write(b"x")), ((Vec::new(), None), None));
    }

    #[test]
    fn a_damaged_one_is_a_note_and_never_reaches_tensorrt() {
        let folder = tempfile::tempdir().unwrap();
        let cache = cache(folder.path());
        assert_eq!(cache.write(b"timings"), None);
        let path = cache.path.clone().unwrap();
        let whole = fs::read(&path).unwrap();
        let mut damaged: Vec<Vec<u8>> = (0..whole.len()).map(|len| whole[..len].to_vec()).collect();
        damaged.extend((0..whole.len()).map(|at| {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            bytes
        }));
        for bytes in damaged {
            fs::write(&path, &bytes).unwrap();
            let (found, note) = cache.read();
            assert!(found.is_empty() && note.is_some_and(|note| note.contains("are damaged")), "{bytes:?}");
        }
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(cache.read().1.is_some_and(|note| note.contains("cannot be read")));
        assert!(cache.write(b"x").is_some_and(|note| note.contains("cannot be kept")));
    }
}
