//! The external data of one model: a file of tensors, each at a multiple of a page, written once from front to back.

use std::{
    fs::File,
    io::{BufWriter, Write as _},
    path::{Path, PathBuf},
};

use crate::{Result, staging::io_error};

/// Tensors begin at multiples of this, so that a reader may map each by itself.
pub const ALIGNMENT: u64 = 4096;
/// Copied at a time: what is on its way is bounded, however large a tensor is.
const CHUNK_BYTES: usize = 1 << 20;

/// Where a tensor lies in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
}

/// A data file under construction.
#[derive(Debug)]
pub struct DataFile {
    path: PathBuf,
    file: BufWriter<File>,
    len: u64,
}

impl DataFile {
    /// Creates the file, which must not be there.
    ///
    /// # Errors
    /// [`crate::BuildError::Io`].
    pub fn create(path: &Path) -> Result<Self> {
        let file = File::create_new(path).map_err(|e| io_error("create", path, e))?;
        Ok(Self { path: path.into(), file: BufWriter::with_capacity(CHUNK_BYTES, file), len: 0 })
    }

    /// Appends the bytes that `fill` writes, at the next aligned place.
    ///
    /// # Errors
    /// [`crate::BuildError::Io`].
    pub fn append(&mut self, chunks: impl Iterator<Item = impl AsRef<[u8]>>) -> Result<Extent> {
        let offset = self.len.next_multiple_of(ALIGNMENT);
        self.pad(offset - self.len)?;
        for chunk in chunks {
            self.write(chunk.as_ref())?;
        }
        Ok(Extent { offset, len: self.len - offset })
    }

    /// [`Self::append`] of bytes as they lie, in pieces.
    ///
    /// # Errors
    /// As [`Self::append`].
    pub fn append_bytes(&mut self, bytes: &[u8]) -> Result<Extent> {
        self.append(bytes.chunks(CHUNK_BYTES))
    }

    /// Bytes so far.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Flushes it to the disk, filled up to a whole page; returns its length.
    ///
    /// # Errors
    /// [`crate::BuildError::Io`].
    pub fn finish(mut self) -> Result<u64> {
        self.pad(self.len.next_multiple_of(ALIGNMENT) - self.len)?;
        self.file
            .flush()
            .and_then(|()| self.file.get_ref().sync_all())
            .map_err(|e| io_error("write", &self.path, e))?;
        Ok(self.len)
    }

    /// Fewer than [`ALIGNMENT`] zeros.
    fn pad(&mut self, len: u64) -> Result<()> {
        let zeros = [0; ALIGNMENT as usize];
        let len = usize::try_from(len).unwrap_or(0).min(zeros.len());
        self.write(&zeros[..len])
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(|e| io_error("write", &self.path, e))?;
        self.len += bytes.len() as u64;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_lie_at_whole_pages_with_zeros_between() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("data");
        let mut file = DataFile::create(&path).unwrap();
        let large = vec![7u8; 3 * CHUNK_BYTES + 5];
        let extents = [
            file.append_bytes(&[1, 2, 3]).unwrap(),
            file.append_bytes(&large).unwrap(),
            file.append([vec![9u8; 2], vec![8; 2]].iter()).unwrap(),
        ];
        assert_eq!(extents[0], Extent { offset: 0, len: 3 });
        assert_eq!(extents[1], Extent { offset: 4096, len: large.len() as u64 });
        assert_eq!((extents[2].offset % ALIGNMENT, extents[2].len), (0, 4));
        let len = file.finish().unwrap();
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!(bytes.len() as u64, len);
        assert_eq!(len % ALIGNMENT, 0);
        assert_eq!(&bytes[4096..4096 + large.len()], large);
        assert_eq!(&bytes[extents[2].offset as usize..][..6], [9, 9, 8, 8, 0, 0]);
        let written: u64 = extents.iter().map(|extent| extent.len).sum();
        assert_eq!(bytes.iter().filter(|&&byte| byte != 0).count() as u64, written);
    }

    #[test]
    fn a_file_that_is_there_is_not_written_over() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("data");
        std::fs::write(&path, "mine").unwrap();
        assert!(DataFile::create(&path).is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"mine");
    }
}
