//! Copies of fixture checkpoints that a test may damage, and what builds and engines hold.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use safetensors::{Dtype, SafeTensors, serialize_to_file, tensor::TensorView};
use serde_json::{Value, json};
use takt_engine::quant::WeightKind;
use takt_engine_builder::{BuildOptions, BuildReport, Result, build};
use tempfile::TempDir;

/// Type, shape and bytes of each tensor of a safetensors file.
pub type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

/// `tests/fixtures`.
#[must_use]
pub fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures")
}

/// Every Hugging Face checkpoint among the fixtures.
#[must_use]
pub fn checkpoints() -> Vec<PathBuf> {
    let folders =
        ["hf", "families"].into_iter().flat_map(|group| fs::read_dir(fixtures().join(group)).unwrap());
    let mut found: Vec<PathBuf> =
        folders.map(|entry| entry.unwrap().path()).filter(|path| path.join("config.json").exists()).collect();
    found.sort();
    assert!(found.len() >= 13, "{found:?}");
    found
}

/// [`build`] without progress.
///
/// # Errors
/// As [`build`].
pub fn build_with(source: &Path, out: &Path, options: &BuildOptions<'_>) -> Result<BuildReport> {
    build(source, out, options, &mut |_| {})
}

/// [`build`] in bf16 with all defaults.
///
/// # Errors
/// As [`build`].
pub fn build_bf16(source: &Path, out: &Path) -> Result<BuildReport> {
    build_with(source, out, &BuildOptions::new(WeightKind::Bf16))
}

/// A copy of a fixture in a temporary folder of its own.
#[derive(Debug)]
pub struct CheckpointCopy {
    dir: TempDir,
}

impl CheckpointCopy {
    /// Copies `fixtures/NAME`.
    #[must_use]
    pub fn of(name: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("model")).unwrap();
        for entry in fs::read_dir(fixtures().join(name)).unwrap() {
            let path = entry.unwrap().path();
            fs::copy(&path, dir.path().join("model").join(path.file_name().unwrap())).unwrap();
        }
        Self { dir }
    }

    /// The folder around the copy.
    #[must_use]
    pub fn root(&self) -> &Path {
        self.dir.path()
    }

    /// The copied checkpoint.
    #[must_use]
    pub fn folder(&self) -> PathBuf {
        self.root().join("model")
    }

    /// Where its engine goes.
    #[must_use]
    pub fn out(&self) -> PathBuf {
        self.root().join("engine")
    }

    /// A file of the checkpoint.
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder().join(name)
    }

    /// Builds a bf16 engine at [`Self::out`].
    ///
    /// # Errors
    /// As [`build`].
    pub fn build(&self) -> Result<BuildReport> {
        build_bf16(&self.folder(), &self.out())
    }

    /// Changes a JSON file.
    pub fn edit_json(&self, name: &str, edit: impl FnOnce(&mut Value)) -> &Self {
        let mut value: Value = serde_json::from_slice(&fs::read(self.file(name)).unwrap()).unwrap();
        edit(&mut value);
        fs::write(self.file(name), value.to_string()).unwrap();
        self
    }

    /// Sets a key of `config.json`.
    pub fn set(&self, key: &str, value: Value) -> &Self {
        self.edit_json("config.json", |config| config[key] = value)
    }

    /// Rewrites `model.safetensors` with changed tensors.
    pub fn edit_tensors(&self, edit: impl FnOnce(&mut Tensors)) -> &Self {
        let mut tensors = read_tensors(&self.file("model.safetensors"));
        edit(&mut tensors);
        write_tensors(&self.file("model.safetensors"), &tensors);
        self
    }

    /// Splits `model.safetensors` into `num_shards` files with an index, tensors dealt round.
    pub fn shard(&self, num_shards: usize) -> &Self {
        let tensors = read_tensors(&self.file("model.safetensors"));
        fs::remove_file(self.file("model.safetensors")).unwrap();
        let (mut shards, mut weight_map) = (vec![Tensors::new(); num_shards], serde_json::Map::new());
        for (idx, (name, tensor)) in tensors.into_iter().enumerate() {
            let shard_idx = idx % num_shards;
            weight_map.insert(name.clone(), json!(format!("model-{shard_idx}.safetensors")));
            shards[shard_idx].insert(name, tensor);
        }
        for (shard_idx, shard) in shards.iter().enumerate() {
            write_tensors(&self.file(&format!("model-{shard_idx}.safetensors")), shard);
        }
        let index = json!({"metadata": {"total_size": 0}, "weight_map": weight_map});
        fs::write(self.file("model.safetensors.index.json"), index.to_string()).unwrap();
        self
    }

    /// Names of what lies beside the copy.
    #[must_use]
    pub fn neighbours(&self) -> Vec<String> {
        let entries = fs::read_dir(self.root()).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// Asserts that the build fails with a message that names `facts`, and leaves nothing behind.
    pub fn assert_refused(&self, facts: &[&str]) {
        let message = self.build().expect_err("the build went through").to_string();
        for fact in facts {
            assert!(message.contains(fact), "{message:?} does not say {fact:?}");
        }
        assert_eq!(self.neighbours(), ["model"], "something was left behind");
    }
}

/// Reads a whole safetensors file.
#[must_use]
pub fn read_tensors(path: &Path) -> Tensors {
    let bytes = fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    file.tensors()
        .into_iter()
        .map(|(name, view)| (name, (view.dtype(), view.shape().to_vec(), view.data().to_vec())))
        .collect()
}

/// Writes a safetensors file.
pub fn write_tensors(path: &Path, tensors: &Tensors) {
    let views = tensors
        .iter()
        .map(|(name, (dtype, shape, data))| (name, TensorView::new(*dtype, shape.clone(), data).unwrap()));
    serialize_to_file(views, None, path).unwrap();
}

/// All bytes of an engine by file name.
#[must_use]
pub fn engine_bytes(engine: &Path) -> BTreeMap<String, Vec<u8>> {
    let read =
        |entry: fs::DirEntry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap());
    fs::read_dir(engine).unwrap().map(|entry| read(entry.unwrap())).collect()
}
