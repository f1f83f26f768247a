//! Which files a recording is made of, and whether they are what they should be.

use std::{
    fs::{self, File},
    io::{Read as _, Seek as _},
    path::{Path, PathBuf},
};

use super::BagError;

/// First bytes of files that people take for MCAP files, and what to do with them.
const OTHER_KINDS: [(&[u8], &str); 4] = [
    (
        b"SQLite format 3\0",
        "is a recording in SQLite (rosbag2's .db3), MCAP is expected. Convert it: `ros2 bag convert -i BAG -o out.yaml` with \
         `output_bags: [{uri: converted, storage_id: mcap, all_topics: true}]` in out.yaml; record with `ros2 bag record -s mcap`",
    ),
    (b"\x28\xb5\x2f\xfd", "is compressed as a whole: unpack it with `zstd -d` first"),
    (b"#ROSBAG V", "is a ROS 1 bag: convert it to MCAP with `mcap convert`"),
    (b"\x04\x22\x4d\x18", "is compressed as a whole: unpack it with `lz4 -d` first"),
];

/// The MCAP files that `paths` mean: files as they are, folders (of a rosbag2) by what is in them, in the order they were written.
///
/// # Errors
/// [`BagError`] for a folder that cannot be read, or has none.
pub fn find(paths: &[PathBuf]) -> Result<Vec<PathBuf>, BagError> {
    let mut files = Vec::new();
    for path in paths {
        if !path.is_dir() {
            files.push(path.clone());
            continue;
        }
        let entries = fs::read_dir(path).map_err(|source| BagError::Io { path: path.clone(), source })?;
        let entries: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        let of_kind = |extension: &str| {
            let is = |file: &&PathBuf| file.extension().is_some_and(|found| found == extension);
            entries.iter().filter(is).cloned().collect::<Vec<PathBuf>>()
        };
        let mut found = of_kind("mcap");
        if found.is_empty() {
            // Whoever gives the folder of another kind of recording is told what that is.
            found = of_kind("db3").into_iter().chain(of_kind("zstd")).take(1).collect();
        }
        if found.is_empty() {
            let fact =
                "has no .mcap file: expected the folder of a recording made with `ros2 bag record -s mcap`";
            return Err(BagError::NotMcap { path: path.clone(), fact: fact.to_owned() });
        }
        found.sort_by_key(|file| (number(file), file.clone()));
        files.extend(found);
    }
    Ok(files)
}

/// The number at the end of a name: rosbag2 counts the parts of a recording, and 10 comes after 9.
fn number(file: &Path) -> u64 {
    let stem = file.file_stem().unwrap_or_default().to_string_lossy();
    let digits = stem.len() - stem.trim_end_matches(|c: char| c.is_ascii_digit()).len();
    stem[stem.len() - digits..].parse().unwrap_or(0)
}

/// Opens an MCAP file, after its magic, and says how long it is.
///
/// # Errors
/// [`BagError`] if it is none.
pub fn open(path: &Path) -> Result<(File, u64), BagError> {
    let failed = |source| BagError::Io { path: path.to_owned(), source };
    let mut file = File::open(path).map_err(failed)?;
    let len = file.metadata().map_err(failed)?.len();
    let mut start = Vec::new();
    file.by_ref().take(16).read_to_end(&mut start).map_err(failed)?;
    if start.starts_with(mcap::MAGIC) {
        file.seek(std::io::SeekFrom::Start(mcap::MAGIC.len() as u64)).map_err(failed)?;
        return Ok((file, len));
    }
    let known = OTHER_KINDS.iter().find(|(magic, _)| start.starts_with(magic));
    let fact = match known {
        Some((_, fact)) => (*fact).to_owned(),
        None if start.is_empty() => "is empty: nothing was recorded".to_owned(),
        None if start.iter().all(|byte| *byte == 0) => {
            "begins with zeros: the recording was lost before it reached the disk".to_owned()
        }
        None => "is not an MCAP file: it does not begin with the bytes \\x89MCAP0\\r\\n".to_owned(),
    };
    Err(BagError::NotMcap { path: path.to_owned(), fact })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fact(content: &[u8]) -> String {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.mcap");
        fs::write(&path, content).unwrap();
        open(&path).unwrap_err().to_string()
    }

    #[test]
    fn other_kinds_of_files_are_named_with_what_to_do() {
        assert!(fact(b"SQLite format 3\0and more").contains("ros2 bag convert"));
        assert!(fact(b"\x28\xb5\x2f\xfd...").contains("zstd -d"));
        assert!(fact(b"#ROSBAG V2.0\n").contains("ROS 1"));
        assert!(fact(b"").contains("empty"));
        assert!(fact(&[0; 4096]).contains("zeros"));
        assert!(fact(b"hello").contains("not an MCAP file"));
    }

    #[test]
    fn a_folder_is_read_in_the_order_of_its_numbers() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["run_10.mcap", "run_9.mcap", "run_0.mcap", "metadata.yaml"] {
            fs::write(folder.path().join(name), mcap::MAGIC).unwrap();
        }
        let found = find(&[folder.path().to_owned()]).unwrap();
        let names: Vec<_> = found.iter().map(|path| path.file_name().unwrap().to_str().unwrap()).collect();
        assert_eq!(names, ["run_0.mcap", "run_9.mcap", "run_10.mcap"]);
        let empty = tempfile::tempdir().unwrap();
        assert!(find(&[empty.path().to_owned()]).unwrap_err().to_string().contains("no .mcap file"));
        fs::write(empty.path().join("run_0.db3"), b"SQLite format 3\0").unwrap();
        let found = find(&[empty.path().to_owned()]).unwrap();
        assert!(open(&found[0]).unwrap_err().to_string().contains("-s mcap"));
    }
}
