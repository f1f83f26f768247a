//! The records of an MCAP file one after the other: a byte that says what it is, a length, a body (<https://mcap.dev/spec>).
//!
//! Only heads are read here; who wants a body asks for it. A camera's gigabytes are stepped over.

use std::io::{self, BufReader, Read, Seek};

/// Byte and length before every body.
pub const HEAD_LEN: u64 = 9;
/// Above it opcodes are the applications' own, below it up to here the format's.
const LAST_KNOWN_OP: u8 = mcap::records::op::DATA_END;
const FIRST_PRIVATE_OP: u8 = 0x80;

/// A record's place in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame {
    /// What it is.
    pub op: u8,
    /// Where its body starts.
    pub start: u64,
    /// Bytes of its body that the file has.
    pub len: u64,
}

/// What comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// A record.
    Whole(Frame),
    /// A record whose end is missing, and with it everything else.
    Cut(Frame),
    /// The file ends between two records.
    End,
    /// No record starts here.
    Damaged,
}

/// Steps through the records.
#[derive(Debug)]
pub struct Records<R> {
    source: BufReader<R>,
    /// Where the next read reads.
    at: u64,
    /// Where the next record starts.
    next: u64,
    len: u64,
}

impl<R: Read + Seek> Records<R> {
    /// Over `source` of `len` bytes, which stands after its magic.
    pub fn new(source: R, len: u64) -> Self {
        let at = mcap::MAGIC.len() as u64;
        Self { source: BufReader::with_capacity(1 << 16, source), at, next: at, len }
    }

    /// Where the next record starts.
    pub fn position(&self) -> u64 {
        self.next
    }

    /// The next record's place.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn step(&mut self) -> io::Result<Next> {
        let left = self.len.saturating_sub(self.next);
        if left == 0 {
            return Ok(Next::End);
        }
        if left < HEAD_LEN {
            return Ok(Next::Cut(Frame { op: 0, start: self.len, len: 0 }));
        }
        let head = self.read(self.next, HEAD_LEN)?;
        let Some((&op, body_len)) = head.split_first() else { return Ok(Next::Damaged) };
        if op == 0 || (LAST_KNOWN_OP + 1..FIRST_PRIVATE_OP).contains(&op) {
            return Ok(Next::Damaged);
        }
        let len = u64::from_le_bytes(body_len.try_into().unwrap_or([0xff; 8]));
        let start = self.next + HEAD_LEN;
        let available = left - HEAD_LEN;
        self.next = start + len.min(available);
        let frame = Frame { op, start, len: len.min(available) };
        Ok(if len > available { Next::Cut(frame) } else { Next::Whole(frame) })
    }

    /// The first `len` bytes of a body, or all if there are fewer.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn body(&mut self, frame: Frame, len: u64) -> io::Result<Vec<u8>> {
        self.read(frame.start, frame.len.min(len))
    }

    fn read(&mut self, start: u64, len: u64) -> io::Result<Vec<u8>> {
        // Both are within the file's length, which is an `i64` to the operating system.
        let by = start.cast_signed() - self.at.cast_signed();
        self.source.seek_relative(by)?;
        let mut bytes = vec![0; usize::try_from(len).map_err(io::Error::other)?];
        self.source.read_exact(&mut bytes)?;
        self.at = start + len;
        Ok(bytes)
    }
}
