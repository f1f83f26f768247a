//! Headers of a release in one folder: what `takt-tensorrt` is compiled with, and the stand-in is made of.

use std::{
    collections::hash_map::DefaultHasher,
    fs,
    hash::{Hash as _, Hasher as _},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use anyhow::{Context, ensure};

/// What has to be there in the end.
const NEEDED: [&str; 2] = ["NvInfer.h", "NvOnnxParser.h"];
/// What these include of CUDA's.
const CUDA: &str = "cuda_runtime_api.h";

/// A folder below `sets` with links to all that is in `folders`, of what several have to the first one's; and to CUDA's header in the folder `cuda`,
/// where none of them has it.
///
/// # Errors
/// A folder that cannot be read, or headers that none of them has.
pub fn gathered(folders: &[PathBuf], cuda: &Path, sets: &Path) -> anyhow::Result<PathBuf> {
    let found: Vec<PathBuf> = folders
        .iter()
        .map(|folder| fs::canonicalize(folder).with_context(|| folder.display().to_string()))
        .collect::<anyhow::Result<_>>()?;
    // A name of its own for each choice: by the name of the folder cargo sees that the headers are others.
    let mut hasher = DefaultHasher::new();
    (&found, cuda).hash(&mut hasher);
    let set = sets.join(format!("{:016x}", hasher.finish()));
    if set.exists() {
        fs::remove_dir_all(&set).with_context(|| set.display().to_string())?;
    }
    fs::create_dir_all(&set)?;
    let mut files = Vec::new();
    for folder in &found {
        for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
            files.push(entry?.path());
        }
    }
    files.push(cuda.join(CUDA));
    for file in files {
        let link = set.join(file.file_name().unwrap_or_default());
        if link.symlink_metadata().is_err() {
            symlink(&file, &link).with_context(|| link.display().to_string())?;
        }
    }
    let named: Vec<_> = folders.iter().map(|folder| folder.display().to_string()).collect();
    for header in NEEDED {
        ensure!(
            set.join(header).is_file(),
            "there is no {header} in {}: name a folder that has it as well, after a comma",
            named.join(" or ")
        );
    }
    Ok(set)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_folder_counts_others_give_what_it_lacks_and_what_none_has_is_named() {
        let scratch = tempfile::tempdir().unwrap();
        let folder = |name: &str, files: &[&str]| {
            let path = scratch.path().join(name);
            fs::create_dir_all(&path).unwrap();
            files.iter().for_each(|file| fs::write(path.join(file), name).unwrap());
            path
        };
        let old = folder("old", &["NvInfer.h", "NvInferVersion.h"]);
        let new = folder("new", &["NvInfer.h", "NvOnnxParser.h", "NvInferPluginBase.h"]);
        let cuda = folder("cuda", &["cuda_runtime_api.h"]);
        let sets = scratch.path().join("sets");
        let whole = gathered(&[old.clone(), new.clone()], &cuda, &sets).unwrap();
        let of = |file: &str| fs::read_to_string(whole.join(file)).unwrap();
        let files = ["NvInfer.h", "NvInferVersion.h", "NvOnnxParser.h", "cuda_runtime_api.h"];
        assert_eq!(files.map(of), ["old", "old", "new", "cuda"]);
        // Again the same folder, and another of other headers.
        assert_eq!(gathered(&[old.clone(), new.clone()], &cuda, &sets).unwrap(), whole);
        assert_ne!(gathered(&[new], &cuda, &sets).unwrap(), whole);
        let error = gathered(&[old], &cuda, &sets).unwrap_err().to_string();
        assert!(error.contains("no NvOnnxParser.h in") && error.contains("after a comma"), "{error}");
        let error = gathered(&[scratch.path().join("nowhere")], &cuda, &sets).unwrap_err().to_string();
        assert!(error.contains("nowhere"), "{error}");
    }
}
