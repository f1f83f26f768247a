//! Read-only memory maps that live as long as the last slice taken from them.

#![expect(unsafe_code, reason = "mapping a file is unsafe by nature: see the SAFETY comment")]

use std::{fs::File, path::Path};

use bytes::Bytes;
use memmap2::Mmap;

use crate::{BuildError, Result};

/// The whole file as bytes, mapped, not read.
///
/// # Errors
/// [`BuildError::Io`] when the file cannot be opened or mapped.
pub fn map(path: &Path) -> Result<Bytes> {
    let io = |source| BuildError::Io { action: "read", path: path.to_owned(), source };
    let file = File::open(path).map_err(io)?;
    if file.metadata().map_err(io)?.len() == 0 {
        return Ok(Bytes::new());
    }
    // SAFETY: the map is read-only and private. Another process truncating the file while it is mapped would raise
    // SIGBUS, as with every mapped checkpoint; the builder reads files nobody else is writing.
    let map = unsafe { Mmap::map(&file) }.map_err(io)?;
    Ok(Bytes::from_owner(map))
}
