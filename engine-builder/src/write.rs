//! `weights.safetensors`, written tensor by tensor: the header follows from the layout, so nothing has to be kept.

use std::{
    collections::HashMap,
    fs::File,
    io::{Read as _, Seek as _, SeekFrom, Write as _},
    path::{Path, PathBuf},
};

use takt_engine::{
    EngineError,
    dir::{FileEntry, StoredTensor, safetensors_header},
};

use crate::{Result, staging::io_error};

/// A weights file under construction.
#[derive(Debug)]
pub(crate) struct WeightsFile {
    path: PathBuf,
    file: File,
    data_start: u64,
    /// Tensors not written yet, by name.
    missing: HashMap<String, StoredTensor>,
    /// Bytes of tensors written so far.
    written: u64,
}

impl WeightsFile {
    /// Writes the header and reserves the file's whole length.
    pub(crate) fn create(path: &Path, tensors: Vec<StoredTensor>) -> Result<Self> {
        let header = safetensors_header(&tensors);
        let data_start = header.len() as u64;
        let data_len = tensors.last().map_or(0, |last| last.offset + last.byte_len) as u64;
        let mut file = File::create_new(path).map_err(|e| io_error("create", path, e))?;
        file.write_all(&header)
            .and_then(|()| file.set_len(data_start + data_len))
            .map_err(|e| io_error("write", path, e))?;
        let missing = tensors.into_iter().map(|tensor| (tensor.name.clone(), tensor)).collect();
        Ok(Self { path: path.into(), file, data_start, missing, written: 0 })
    }

    /// Writes one tensor's bytes to its place.
    pub(crate) fn write(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        let tensor = self.missing.remove(name).filter(|tensor| tensor.byte_len == bytes.len());
        let Some(tensor) = tensor else {
            let fact = format!("{} bytes do not fit the engine's layout", bytes.len());
            return Err(EngineError::Tensor { name: name.into(), fact }.into());
        };
        self.file
            .seek(SeekFrom::Start(self.data_start + tensor.offset as u64))
            .and_then(|_| self.file.write_all(bytes))
            .map_err(|e| io_error("write", &self.path, e))?;
        self.written += bytes.len() as u64;
        Ok(())
    }

    pub(crate) fn bytes_written(&self) -> u64 {
        self.written
    }

    /// Flushes the file to the disk; every tensor must have been written.
    pub(crate) fn finish(self) -> Result<()> {
        if let Some(name) = self.missing.keys().min() {
            return Err(EngineError::Tensor { name: name.clone(), fact: "was not written".into() }.into());
        }
        self.file.sync_all().map_err(|e| io_error("write", &self.path, e))
    }
}

/// Size and BLAKE3 of `folder/name`, for the manifest.
pub(crate) fn file_entry(folder: &Path, name: &str) -> Result<FileEntry> {
    let path = folder.join(name);
    let mut file = File::open(&path).map_err(|e| io_error("read", &path, e))?;
    let (mut hash, mut size_bytes) = (blake3::Hasher::new(), 0);
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer).map_err(|e| io_error("read", &path, e))? {
            0 => break,
            len => {
                hash.update(&buffer[..len]);
                size_bytes += len as u64;
            }
        }
    }
    Ok(FileEntry { name: name.into(), size_bytes, blake3: hash.finalize().to_hex().to_string() })
}
