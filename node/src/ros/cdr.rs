//! Plain CDR (XCDR version 1, OMG DDS-XTypes 1.3 section 7.4.1), as ROS 2 puts it on the wire.
//!
//! A message is a 4-byte encapsulation header (representation identifier, options) and a body in which every primitive is
//! aligned to its own size, counted from the body's start. We write little endian and read both.

/// What is wrong with a message's bytes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CdrError {
    /// The message ends early.
    #[error("truncated: {needed} bytes are needed at offset {at}, {left} are left")]
    Truncated {
        /// Offset in the body.
        at: usize,
        /// Bytes the next value needs.
        needed: usize,
        /// Bytes there are.
        left: usize,
    },
    /// A representation we do not read.
    #[error("encoded as {0:#06x}, plain CDR (0x0000 or 0x0001) is expected")]
    Encapsulation(u16),
    /// A string without its final zero byte.
    #[error("string at offset {at} does not end with a zero byte")]
    Unterminated {
        /// Offset in the body.
        at: usize,
    },
    /// A string that is not UTF-8.
    #[error("string at offset {at} is not valid UTF-8 (byte {byte_idx})")]
    NotUtf8 {
        /// Offset in the body.
        at: usize,
        /// First bad byte, counted from the string's start.
        byte_idx: usize,
    },
    /// Bytes after the last field.
    #[error("{0} bytes after the last field")]
    Trailing(usize),
    /// More elements than a bounded sequence holds.
    #[error("{count} elements in a sequence of at most {limit}")]
    TooMany {
        /// Elements there are.
        count: usize,
        /// Elements there may be.
        limit: usize,
    },
    /// A value too long for its 32-bit length.
    #[error("{0} bytes do not fit a 32-bit length")]
    TooLong(usize),
}

const HEADER_LEN: usize = 4;
const CDR_LE: [u8; HEADER_LEN] = [0, 1, 0, 0];

/// Reads primitives one after the other; never past the end.
#[derive(Debug)]
pub struct CdrReader<'a> {
    body: &'a [u8],
    at: usize,
    little_endian: bool,
}

impl<'a> CdrReader<'a> {
    /// Starts after the encapsulation header of `message`.
    ///
    /// # Errors
    /// [`CdrError::Truncated`] without a whole header, [`CdrError::Encapsulation`] for anything but plain CDR.
    pub fn new(message: &'a [u8]) -> Result<Self, CdrError> {
        let Some((header, body)) = message.split_first_chunk::<HEADER_LEN>() else {
            return Err(CdrError::Truncated { at: 0, needed: HEADER_LEN, left: message.len() });
        };
        match [header[0], header[1]] {
            [0, 0] => Ok(Self { body, at: 0, little_endian: false }),
            [0, 1] => Ok(Self { body, at: 0, little_endian: true }),
            other => Err(CdrError::Encapsulation(u16::from_be_bytes(other))),
        }
    }

    /// The next `len` bytes as they are.
    ///
    /// # Errors
    /// [`CdrError::Truncated`].
    pub fn bytes(&mut self, len: usize) -> Result<&'a [u8], CdrError> {
        let left = self.body.get(self.at..).unwrap_or_default();
        let bytes =
            left.get(..len).ok_or(CdrError::Truncated { at: self.at, needed: len, left: left.len() })?;
        self.at += len;
        Ok(bytes)
    }

    /// Bytes not read yet.
    #[must_use]
    pub fn num_left(&self) -> usize {
        self.body.len().saturating_sub(self.at)
    }

    fn primitive<const N: usize>(&mut self) -> Result<[u8; N], CdrError> {
        self.at = self.at.next_multiple_of(N);
        let mut value = [0; N];
        value.copy_from_slice(self.bytes(N)?);
        if !self.little_endian {
            value.reverse();
        }
        Ok(value)
    }

    /// `uint32`.
    ///
    /// # Errors
    /// [`CdrError::Truncated`].
    pub fn u32(&mut self) -> Result<u32, CdrError> {
        self.primitive().map(u32::from_le_bytes)
    }

    /// `int32`.
    ///
    /// # Errors
    /// [`CdrError::Truncated`].
    pub fn i32(&mut self) -> Result<i32, CdrError> {
        self.primitive().map(i32::from_le_bytes)
    }

    /// `uint8`, `byte`, `char`.
    ///
    /// # Errors
    /// [`CdrError::Truncated`].
    pub fn u8(&mut self) -> Result<u8, CdrError> {
        self.primitive().map(u8::from_le_bytes)
    }

    /// `int8`.
    ///
    /// # Errors
    /// [`CdrError::Truncated`].
    pub fn i8(&mut self) -> Result<i8, CdrError> {
        self.primitive().map(i8::from_le_bytes)
    }

    /// `uint64`.
    ///
    /// # Errors
    /// [`CdrError::Truncated`].
    pub fn u64(&mut self) -> Result<u64, CdrError> {
        self.primitive().map(u64::from_le_bytes)
    }

    /// `int64`.
    ///
    /// # Errors
    /// [`CdrError::Truncated`].
    pub fn i64(&mut self) -> Result<i64, CdrError> {
        self.primitive().map(i64::from_le_bytes)
    }

    /// `float32`.
    ///
    /// # Errors
    /// [`CdrError::Truncated`].
    pub fn f32(&mut self) -> Result<f32, CdrError> {
        self.primitive().map(f32::from_le_bytes)
    }

    /// `bool`; any byte but zero is true.
    ///
    /// # Errors
    /// [`CdrError::Truncated`].
    pub fn bool(&mut self) -> Result<bool, CdrError> {
        self.primitive::<1>().map(|[byte]| byte != 0)
    }

    /// `float64`.
    ///
    /// # Errors
    /// [`CdrError::Truncated`].
    pub fn f64(&mut self) -> Result<f64, CdrError> {
        self.primitive().map(f64::from_le_bytes)
    }

    /// A length or element count, checked against what is left so that nobody allocates for a lie.
    ///
    /// # Errors
    /// [`CdrError::Truncated`] if `count × min_element_len` bytes are not there.
    pub fn count(&mut self, min_element_len: usize) -> Result<usize, CdrError> {
        let count = usize::try_from(self.u32()?).unwrap_or(usize::MAX);
        let needed = count.saturating_mul(min_element_len);
        let left = self.num_left();
        if needed > left {
            return Err(CdrError::Truncated { at: self.at, needed, left });
        }
        Ok(count)
    }

    /// `string`: length with its zero byte, bytes, zero byte. A length of 0 is read as an empty string (some writers send it).
    ///
    /// # Errors
    /// [`CdrError::Truncated`], [`CdrError::Unterminated`], [`CdrError::NotUtf8`].
    pub fn string(&mut self) -> Result<&'a str, CdrError> {
        let len = self.count(1)?;
        let at = self.at;
        let bytes = self.bytes(len)?;
        let text = match bytes.split_last() {
            None => return Ok(""),
            Some((0, text)) => text,
            Some(_) => return Err(CdrError::Unterminated { at }),
        };
        std::str::from_utf8(text).map_err(|error| CdrError::NotUtf8 { at, byte_idx: error.valid_up_to() })
    }
}

/// Writes primitives one after the other, little endian.
#[derive(Debug)]
pub struct CdrWriter {
    /// Header and body.
    message: Vec<u8>,
}

impl Default for CdrWriter {
    fn default() -> Self {
        Self { message: CDR_LE.to_vec() }
    }
}

impl CdrWriter {
    /// Bytes as they are, without alignment.
    pub fn bytes(&mut self, bytes: &[u8]) {
        self.message.extend_from_slice(bytes);
    }

    fn primitive<const N: usize>(&mut self, value: [u8; N]) {
        let body_len = self.message.len() - HEADER_LEN;
        self.message.resize(HEADER_LEN + body_len.next_multiple_of(N), 0);
        self.message.extend_from_slice(&value);
    }

    /// `uint32`.
    pub fn u32(&mut self, value: u32) {
        self.primitive(value.to_le_bytes());
    }

    /// `int32`.
    pub fn i32(&mut self, value: i32) {
        self.primitive(value.to_le_bytes());
    }

    /// `uint8`, `byte`, `char`.
    pub fn u8(&mut self, value: u8) {
        self.primitive([value]);
    }

    /// `int8`.
    pub fn i8(&mut self, value: i8) {
        self.primitive(value.to_le_bytes());
    }

    /// `uint64`.
    pub fn u64(&mut self, value: u64) {
        self.primitive(value.to_le_bytes());
    }

    /// `int64`.
    pub fn i64(&mut self, value: i64) {
        self.primitive(value.to_le_bytes());
    }

    /// `float32`.
    pub fn f32(&mut self, value: f32) {
        self.primitive(value.to_le_bytes());
    }

    /// `bool`.
    pub fn bool(&mut self, value: bool) {
        self.primitive([u8::from(value)]);
    }

    /// `float64`.
    pub fn f64(&mut self, value: f64) {
        self.primitive(value.to_le_bytes());
    }

    /// A sequence's element count.
    ///
    /// # Errors
    /// [`CdrError::TooLong`] over 32 bits.
    pub fn count(&mut self, count: usize) -> Result<(), CdrError> {
        self.u32(u32::try_from(count).map_err(|_| CdrError::TooLong(count))?);
        Ok(())
    }

    /// `string`.
    ///
    /// # Errors
    /// [`CdrError::TooLong`] over 32 bits.
    pub fn string(&mut self, text: &str) -> Result<(), CdrError> {
        self.count(text.len() + 1)?;
        self.bytes(text.as_bytes());
        self.bytes(&[0]);
        Ok(())
    }

    /// The whole message with its encapsulation header.
    #[must_use]
    pub fn finish(self) -> Vec<u8> {
        self.message
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_aligned_to_their_size_from_the_body_start() {
        let mut writer = CdrWriter::default();
        writer.string("ab").unwrap();
        writer.f64(1.5);
        writer.i32(-2);
        // Worked out by hand from the specification: 03 00 00 00 'a' 'b' 00, one byte of padding, then the double at 8.
        let expected =
            [0, 1, 0, 0, 3, 0, 0, 0, b'a', b'b', 0, 0, 0, 0, 0, 0, 0, 0, 0xf8, 0x3f, 0xfe, 0xff, 0xff, 0xff];
        let message = writer.finish();
        assert_eq!(message, expected);
        let mut reader = CdrReader::new(&message).unwrap();
        assert_eq!(reader.string().unwrap(), "ab");
        assert_eq!(reader.f64().unwrap().to_bits(), 1.5f64.to_bits());
        assert_eq!(reader.i32().unwrap(), -2);
        assert_eq!(reader.u32(), Err(CdrError::Truncated { at: 20, needed: 4, left: 0 }));
    }

    #[test]
    fn big_endian_messages_are_read_too() {
        let message = [0, 0, 0, 0, 0, 0, 0, 3, b'h', b'i', 0];
        assert_eq!(CdrReader::new(&message).unwrap().string().unwrap(), "hi");
    }

    #[test]
    fn every_truncation_is_an_error_and_never_a_panic() {
        let mut writer = CdrWriter::default();
        writer.string("pick up the red cube").unwrap();
        writer.u32(7);
        writer.f64(0.25);
        let message = writer.finish();
        for len in 0..message.len() {
            let read = CdrReader::new(&message[..len]).and_then(|mut reader| {
                reader.string()?;
                reader.u32()?;
                reader.f64()
            });
            assert!(matches!(read, Err(CdrError::Truncated { .. })), "{len} bytes: {read:?}");
        }
    }

    #[test]
    fn a_length_that_lies_is_refused_before_anything_is_allocated() {
        let message = [0, 1, 0, 0, 0xff, 0xff, 0xff, 0xff, b'x', 0];
        let error = CdrReader::new(&message).unwrap().string().unwrap_err();
        assert_eq!(error, CdrError::Truncated { at: 4, needed: 0xffff_ffff, left: 2 });
    }

    #[test]
    fn bad_strings_and_other_encodings_are_named() {
        let unterminated = [0, 1, 0, 0, 2, 0, 0, 0, b'x', b'y'];
        assert_eq!(CdrReader::new(&unterminated).unwrap().string(), Err(CdrError::Unterminated { at: 4 }));
        let not_utf8 = [0, 1, 0, 0, 4, 0, 0, 0, b'x', 0xff, b'y', 0];
        assert_eq!(
            CdrReader::new(&not_utf8).unwrap().string(),
            Err(CdrError::NotUtf8 { at: 4, byte_idx: 1 })
        );
        assert_eq!(CdrReader::new(&[0, 7, 0, 0]).unwrap_err(), CdrError::Encapsulation(7));
        let empty_without_terminator = [0, 1, 0, 0, 0, 0, 0, 0];
        assert_eq!(CdrReader::new(&empty_without_terminator).unwrap().string(), Ok(""));
    }
}
