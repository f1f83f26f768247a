//! The weights of a Hugging Face folder: one safetensors file, or several with an index.
#![expect(unsafe_code, reason = "memory-mapping a file")]

use std::{
    collections::{BTreeMap, HashMap},
    fs::File,
    ops::Range,
    path::{Path, PathBuf},
};

use half::{bf16, f16};
use memmap2::Mmap;
#[cfg(unix)]
use memmap2::UncheckedAdvice;
use safetensors::{Dtype, SafeTensors};

use super::config::Config;
use crate::{BuildError, Result, checkpoint::Tensor};

pub(super) const SINGLE_FILE: &str = "model.safetensors";
pub(super) const INDEX_FILE: &str = "model.safetensors.index.json";
/// A safetensors file starts with the header's length in a little-endian u64.
const LENGTH_BYTES: usize = 8;

/// All tensors of a checkpoint, memory-mapped.
#[derive(Debug)]
pub(super) struct Shards {
    maps: Vec<(PathBuf, Mmap)>,
    tensors: BTreeMap<String, Place>,
}

/// Where one tensor lies and what it is.
#[derive(Debug)]
struct Place {
    shard_idx: usize,
    bytes: Range<usize>,
    dtype: Dtype,
    shape: Vec<usize>,
}

impl Shards {
    /// Maps the checkpoint in `folder` and checks that index and files agree.
    pub(super) fn open(folder: &Path) -> Result<Self> {
        let mut shards = Self { maps: Vec::new(), tensors: BTreeMap::new() };
        if folder.join(SINGLE_FILE).exists() {
            shards.add_file(&folder.join(SINGLE_FILE))?;
        } else if folder.join(INDEX_FILE).exists() {
            shards.add_indexed(folder)?;
        } else {
            return Err(no_safetensors(folder));
        }
        Ok(shards)
    }

    pub(super) fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Whether two tensors hold the same values, bit for bit.
    pub(super) fn equal(&self, a: &str, b: &str) -> bool {
        let (Some(a), Some(b)) = (self.tensors.get(a), self.tensors.get(b)) else { return false };
        a.dtype == b.dtype && a.shape == b.shape && self.bytes(a) == self.bytes(b)
    }

    /// The tensor as F32, which is exact for the three types it may have.
    pub(super) fn load(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let tensor_error = |fact: String| BuildError::Tensor { name: name.into(), fact };
        let Some(place) = self.tensors.get(name) else {
            return Err(tensor_error("is missing from the checkpoint".into()));
        };
        if place.shape != shape {
            let (found, path) = (&place.shape, &self.maps[place.shard_idx].0);
            return Err(tensor_error(format!("has shape {found:?} in {path:?}, config.json says {shape:?}")));
        }
        let bytes = self.bytes(place);
        let values = match place.dtype {
            Dtype::BF16 => {
                bytes.chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect()
            }
            Dtype::F16 => bytes.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
            Dtype::F32 => {
                bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
            }
            dtype => return Err(tensor_error(format!("is {dtype}, expected BF16, F16 or F32"))),
        };
        self.forget_pages(place);
        Ok(Tensor { shape: shape.to_vec(), values })
    }

    fn bytes(&self, place: &Place) -> &[u8] {
        &self.maps[place.shard_idx].1[place.bytes.clone()]
    }

    /// Gives the pages of a tensor back: each is read once, and a build's memory is bounded by its largest tensor.
    fn forget_pages(&self, place: &Place) {
        #[cfg(unix)]
        {
            let (map, bytes) = (&self.maps[place.shard_idx].1, &place.bytes);
            // SAFETY: the mapping is read-only and backed by a file, so a page that is dropped is read again from the file
            // when it is touched next; no reference sees other bytes. Failure changes nothing but the memory in use.
            let _ =
                unsafe { map.unchecked_advise_range(UncheckedAdvice::DontNeed, bytes.start, bytes.len()) };
        }
        #[cfg(not(unix))]
        let _ = place;
    }

    /// Adds every shard of the index, and checks that each tensor is in exactly the file where the index says it is.
    fn add_indexed(&mut self, folder: &Path) -> Result<()> {
        let index = Config::read(&folder.join(INDEX_FILE))?;
        let weight_map = index.object("weight_map")?.ok_or_else(|| index.error("has no weight_map"))?;
        let mut file_of: HashMap<&str, &str> = HashMap::new();
        for name in weight_map.keys() {
            file_of.insert(name, weight_map.string(name)?.unwrap_or_default());
        }
        let mut files: Vec<&str> = file_of.values().copied().collect();
        files.sort_unstable();
        files.dedup();
        for file in files {
            if file.is_empty() || file.contains(['/', '\\']) || file.starts_with('.') {
                return Err(index.error(format!("names the shard {file:?}, expected a file beside it")));
            }
            if !folder.join(file).exists() {
                return Err(
                    index.error(format!("names the shard {file:?}, which is missing from the folder"))
                );
            }
            self.add_file(&folder.join(file))?;
        }
        for (name, place) in &self.tensors {
            let path = &self.maps[place.shard_idx].0;
            match file_of.remove(name.as_str()) {
                Some(file) if path.ends_with(file) => {}
                Some(file) => {
                    return Err(
                        index.error(format!("says tensor {name:?} is in {file:?}, it is in {path:?}"))
                    );
                }
                None => return Err(index.error(format!("does not list tensor {name:?} of {path:?}"))),
            }
        }
        match file_of.iter().min() {
            Some((name, file)) => Err(index.error(format!("says tensor {name:?} is in {file:?}, it is not"))),
            None => Ok(()),
        }
    }

    fn add_file(&mut self, path: &Path) -> Result<()> {
        let map = map_file(path)?;
        let broken = |fact: String| BuildError::Source { path: path.into(), fact };
        let (header_len, metadata) = SafeTensors::read_metadata(&map)
            .map_err(|e| broken(format!("is not a whole safetensors file ({e}); download it again")))?;
        let (shard_idx, data_start) = (self.maps.len(), LENGTH_BYTES + header_len);
        for (name, info) in metadata.tensors() {
            let bytes = data_start + info.data_offsets.0..data_start + info.data_offsets.1;
            let place = Place { shard_idx, bytes, dtype: info.dtype, shape: info.shape.clone() };
            if let Some(earlier) = self.tensors.insert(name.clone(), place) {
                let other = &self.maps[earlier.shard_idx].0;
                return Err(broken(format!("holds tensor {name:?}, which {other:?} holds too")));
            }
        }
        self.maps.push((path.into(), map));
        Ok(())
    }
}

fn map_file(path: &Path) -> Result<Mmap> {
    let read_error = |source| BuildError::Io { action: "read", path: path.into(), source };
    let file = File::open(path).map_err(read_error)?;
    // SAFETY: the mapping is read-only and private to us; only plain bytes are read from it, for which every bit pattern is
    // valid. A checkpoint that is truncated while it is being built faults the process, as with any mapped file.
    unsafe { Mmap::map(&file) }.map_err(read_error)
}

fn no_safetensors(folder: &Path) -> BuildError {
    let holds = |wanted: &dyn Fn(&str) -> bool| {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().into_string().ok()).any(|name| wanted(&name))
    };
    let fact = if holds(&|name| name.starts_with("pytorch_model") && name.contains(".bin")) {
        "has only PyTorch pickle weights, which are not read because they can run code; convert them with \
         `python -c \"from transformers import AutoModelForCausalLM as M; M.from_pretrained('.').save_pretrained('converted')\"`"
    } else if holds(&|name| name.ends_with(".safetensors")) {
        "has safetensors files, but neither model.safetensors nor model.safetensors.index.json"
    } else {
        "has no weights: expected model.safetensors, or shards with model.safetensors.index.json"
    };
    BuildError::Source { path: folder.into(), fact: fact.into() }
}
