//! Chunks: records that rosbag2 compresses together.

use std::{borrow::Cow, io::Read};

use ruzstd::decoding::StreamingDecoder;

use super::records::HEAD_LEN;

/// Longest chunk that is unpacked; rosbag2 makes chunks of some megabytes, with one message more than that at most.
pub const MAX_CHUNK_LEN: u64 = 1 << 30;
/// Bytes of the longest header: names of compressions are short.
pub const MAX_HEADER_LEN: u64 = 8 * 3 + 4 + 4 + MAX_NAME_LEN + 8;
const MAX_NAME_LEN: u64 = 64;

/// What stands before a chunk's records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChunkHeader {
    /// Earliest and latest time of logging; zeros in a chunk without messages.
    pub times: (u64, u64),
    /// Bytes of the records when unpacked.
    pub unpacked_len: u64,
    /// Their checksum; 0 for none.
    pub crc: u32,
    /// `zstd`, `lz4` or nothing.
    pub compression: String,
    /// Bytes of the records as they are in the file.
    pub packed_len: u64,
    /// Bytes of this header.
    pub len: u64,
}

impl ChunkHeader {
    /// Reads one. Not with the crate's own parser: that wants the whole chunk, and one that power loss has cut has no end.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let u64_at = |at: usize| Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
        let u32_at = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        let name_len = usize::try_from(u32_at(28)?).ok()?;
        if name_len as u64 > MAX_NAME_LEN {
            return None;
        }
        let name = bytes.get(32..32 + name_len)?;
        Some(Self {
            times: (u64_at(0)?, u64_at(8)?),
            unpacked_len: u64_at(16)?,
            crc: u32_at(24)?,
            compression: String::from_utf8(name.to_vec()).ok()?,
            packed_len: u64_at(32 + name_len)?,
            len: (40 + name_len) as u64,
        })
    }
}

/// A chunk's records, unpacked and checked.
///
/// # Errors
/// What is wrong with them.
pub fn unpack<'a>(header: &ChunkHeader, packed: &'a [u8]) -> Result<Cow<'a, [u8]>, String> {
    let (bytes, error) = unpack_start(header, packed);
    if let Some(error) = error {
        return Err(error);
    }
    if bytes.len() as u64 != header.unpacked_len {
        return Err(format!("{} bytes where {} should be", bytes.len(), header.unpacked_len));
    }
    let found = crc32fast::hash(&bytes);
    if header.crc != 0 && header.crc != found {
        return Err(format!("checksum {found:08x} where {:08x} should be", header.crc));
    }
    Ok(bytes)
}

/// What can be unpacked of a chunk, and what stopped it. Compression goes from front to end: what came before an error is as it was written.
pub fn unpack_start<'a>(header: &ChunkHeader, packed: &'a [u8]) -> (Cow<'a, [u8]>, Option<String>) {
    if header.unpacked_len > MAX_CHUNK_LEN {
        let error = format!("{} bytes, at most {MAX_CHUNK_LEN} are unpacked", header.unpacked_len);
        return (Cow::default(), Some(error));
    }
    // Room for what rosbag2 makes; a header that lies gets no more than that before its bytes are there.
    let room = usize::try_from(header.unpacked_len).unwrap_or(usize::MAX).min(8 << 20);
    let mut out = Vec::with_capacity(room);
    let done = match header.compression.as_str() {
        "" => return (Cow::Borrowed(packed), None),
        "zstd" => unpack_zstd(packed, header.unpacked_len, &mut out),
        "lz4" => read_up_to(lz4_flex::frame::FrameDecoder::new(packed), header.unpacked_len, &mut out),
        other => Err(format!("compression {other:?} is not known, zstd and lz4 are")),
    };
    (Cow::Owned(out), done.err())
}

/// Unpacks zstd frames into at most `max_len` bytes.
pub fn unpack_zstd(mut packed: &[u8], max_len: u64, out: &mut Vec<u8>) -> Result<(), String> {
    // Parallel compressors write several frames one after the other.
    while !packed.is_empty() && (out.len() as u64) < max_len {
        let decoder = StreamingDecoder::new(&mut packed).map_err(|error| error.to_string())?;
        let max_len = max_len - out.len() as u64;
        read_up_to(decoder, max_len, out)?;
    }
    Ok(())
}

fn read_up_to(source: impl Read, max_len: u64, out: &mut Vec<u8>) -> Result<(), String> {
    // What came before an error stays in `out`.
    source.take(max_len).read_to_end(out).map(drop).map_err(|error| error.to_string())
}

/// The records in unpacked bytes, and whether the last one ends where the bytes do.
#[derive(Debug)]
pub struct Inner<'a> {
    rest: &'a [u8],
}

impl<'a> Inner<'a> {
    /// Over a chunk's bytes.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// Whether all bytes were whole records, after the last.
    pub fn is_whole(&self) -> bool {
        self.rest.is_empty()
    }
}

impl<'a> Iterator for Inner<'a> {
    /// What it is, and its body.
    type Item = (u8, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let (head, rest) = self.rest.split_at_checked(usize::try_from(HEAD_LEN).ok()?)?;
        let (&op, len) = head.split_first()?;
        let len = usize::try_from(u64::from_le_bytes(len.try_into().ok()?)).ok()?;
        let (body, rest) = rest.split_at_checked(len)?;
        self.rest = rest;
        Some((op, body))
    }
}

#[cfg(test)]
mod tests {
    use ruzstd::encoding::{CompressionLevel, compress_to_vec};

    use super::*;

    fn header(compression: &str, bytes: &[u8]) -> ChunkHeader {
        ChunkHeader {
            times: (0, 0),
            unpacked_len: bytes.len() as u64,
            crc: crc32fast::hash(bytes),
            compression: compression.to_owned(),
            packed_len: 0,
            len: 0,
        }
    }

    #[test]
    fn several_zstd_frames_are_one_chunk() {
        let text = b"a robot asks, ".repeat(50);
        let (front, back) = text.split_at(300);
        let mut packed = compress_to_vec(front, CompressionLevel::Fastest);
        packed.extend(compress_to_vec(back, CompressionLevel::Fastest));
        assert_eq!(unpack(&header("zstd", &text), &packed).unwrap(), text);
        assert!(
            unpack(&header("zstd", front), &packed).is_ok(),
            "what is beyond the stated length is not read"
        );
    }

    #[test]
    fn a_wrong_byte_a_wrong_length_and_a_strange_compression_are_named() {
        let text = b"records".to_vec();
        let mut wrong = text.clone();
        wrong[0] ^= 1;
        assert!(unpack(&header("", &text), &wrong).unwrap_err().contains("checksum"));
        assert!(unpack(&header("", &text), &text[1..]).unwrap_err().contains("6 bytes where 7"));
        assert!(unpack(&header("brotli", &text), &text).unwrap_err().contains("brotli"));
        let huge = ChunkHeader { unpacked_len: u64::MAX, ..header("zstd", &text) };
        assert!(unpack(&huge, &text).is_err());
    }
}
