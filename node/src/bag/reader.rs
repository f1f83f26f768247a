//! One file into a recording: a chunk at a time, whatever state power loss left the file in.

use std::{
    collections::HashMap,
    io::{self, Read, Seek},
    path::Path,
};

use mcap::records::{Record, op};
use serde::Serialize;

use super::{
    BagError,
    chunk::{ChunkHeader, Inner, MAX_CHUNK_LEN, MAX_HEADER_LEN, unpack, unpack_start, unpack_zstd},
    definition::Kind,
    file,
    recording::Recording,
    records::{Frame, Next, Records},
    row::Times,
};

/// First bytes of a message that rosbag2 compressed by itself (`--compression-mode message`); no message in CDR begins so.
const ZSTD_MAGIC: &[u8] = b"\x28\xb5\x2f\xfd";

/// Channel, sequence number and two times.
const MESSAGE_HEADER_LEN: u64 = 22;

/// How much of a file could be read.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct FileReport {
    /// As it was given.
    pub path: String,
    /// Its length.
    pub bytes: u64,
    /// Whether the recording was ended in order.
    pub is_whole: bool,
    /// Chunks that were unpacked.
    pub num_chunks: u64,
    /// Chunks that have nothing of a Takt node, by their index.
    pub num_chunks_skipped: u64,
    /// Chunks that could not be unpacked; what they hold is missing in all figures.
    pub num_chunks_damaged: u64,
    /// What was found wrong, for people.
    pub notes: Vec<String>,
}

/// What messages of a channel are.
#[derive(Debug)]
enum Channel {
    Takt(Kind, String),
    Other,
}

/// A chunk whose index decides whether it is unpacked.
#[derive(Debug)]
struct Pending {
    frame: Frame,
    header: ChunkHeader,
    /// Channels that the records after it say it has.
    channels: Vec<u16>,
}

/// Reads the file at `path` into `recording`; `progress` is told how far it is and says whether to go on.
///
/// # Errors
/// [`BagError`] if it is no MCAP file, cannot be read, or holds other messages under our names. Damage is no error.
pub fn read(
    path: &Path,
    recording: &mut Recording,
    progress: &mut dyn FnMut(u64) -> bool,
) -> Result<FileReport, BagError> {
    let (source, len) = file::open(path)?;
    read_from(source, len, path, recording, progress)
}

/// As [`read`], from `source` of `len` bytes, which stands after its magic.
///
/// # Errors
/// As of [`read`].
pub fn read_from(
    source: impl Read + Seek,
    len: u64,
    path: &Path,
    recording: &mut Recording,
    progress: &mut dyn FnMut(u64) -> bool,
) -> Result<FileReport, BagError> {
    let report = FileReport { path: path.display().to_string(), bytes: len, ..FileReport::default() };
    let mut reader = Reader {
        records: Records::new(source, len),
        path,
        recording,
        schemas: HashMap::new(),
        channels: HashMap::new(),
        report,
    };
    reader.run(progress)?;
    Ok(reader.report)
}

struct Reader<'a, R> {
    records: Records<R>,
    path: &'a Path,
    recording: &'a mut Recording,
    /// Types of schemas, and whether messages of it can be ours.
    schemas: HashMap<u16, Option<Kind>>,
    channels: HashMap<u16, Channel>,
    report: FileReport,
}

impl<R: Read + Seek> Reader<'_, R> {
    fn run(&mut self, progress: &mut dyn FnMut(u64) -> bool) -> Result<(), BagError> {
        let mut pending = None;
        loop {
            let at = self.records.position();
            if !progress(at) {
                return Err(BagError::Interrupted);
            }
            match self.records.step().map_err(|error| self.failed(error))? {
                Next::Whole(frame) if frame.op == op::MESSAGE_INDEX => {
                    self.note_index(frame, &mut pending)?
                }
                Next::Whole(frame) => {
                    self.settle(pending.take(), true)?;
                    match frame.op {
                        // What follows repeats and indexes what was before.
                        op::DATA_END | op::FOOTER => {
                            self.report.is_whole = true;
                            return Ok(());
                        }
                        op::CHUNK => pending = self.chunk(frame)?,
                        op::SCHEMA | op::CHANNEL | op::MESSAGE => self.top_level(frame)?,
                        _ => {}
                    }
                }
                Next::Cut(frame) => {
                    self.settle(pending.take(), false)?;
                    let num_more = if frame.op == op::CHUNK { self.cut_chunk(frame)? } else { 0 };
                    let more = if num_more > 0 {
                        format!(", {num_more} messages of its last, unfinished chunk are read")
                    } else {
                        String::new()
                    };
                    self.note(format!(
                        "cut off in the middle of a record at byte {at} (power loss?): read up to there{more}"
                    ));
                    return Ok(());
                }
                Next::End => {
                    self.settle(pending.take(), false)?;
                    self.note("not ended in order (power loss?): all that is there is read".to_owned());
                    return Ok(());
                }
                Next::Damaged => {
                    self.settle(pending.take(), false)?;
                    let left = self.report.bytes.saturating_sub(at);
                    self.note(format!("damaged at byte {at}: the last {left} bytes are not read"));
                    return Ok(());
                }
            }
        }
    }

    fn note_index(&mut self, frame: Frame, pending: &mut Option<Pending>) -> Result<(), BagError> {
        if let (Some(pending), [low, high, ..]) = (pending, &self.body(frame, 2)?[..]) {
            pending.channels.push(u16::from_le_bytes([*low, *high]));
        }
        Ok(())
    }

    /// Reads a chunk's header; whether it is unpacked its index decides, which comes after it.
    fn chunk(&mut self, frame: Frame) -> Result<Option<Pending>, BagError> {
        let head = self.body(frame, MAX_HEADER_LEN)?;
        let header = ChunkHeader::parse(&head).filter(|header| header.packed_len <= frame.len - header.len);
        match header {
            Some(header) => Ok(Some(Pending { frame, header, channels: Vec::new() })),
            None => {
                self.damaged(frame, "its header makes no sense");
                Ok(None)
            }
        }
    }

    /// Unpacks a chunk if it may hold something of ours; without its whole index it always may.
    fn settle(&mut self, pending: Option<Pending>, has_whole_index: bool) -> Result<(), BagError> {
        let Some(Pending { frame, header, channels }) = pending else { return Ok(()) };
        let is_other = |id: &u16| matches!(self.channels.get(id), Some(Channel::Other));
        if has_whole_index && !channels.is_empty() && channels.iter().all(is_other) {
            self.report.num_chunks_skipped += 1;
            // Zeros: a chunk without messages.
            if let (start, end @ 1..) = header.times {
                self.recording.note_time(start);
                self.recording.note_time(end);
            }
            return Ok(());
        }
        if header.packed_len > MAX_CHUNK_LEN {
            self.damaged(frame, &format!("{} bytes, at most {MAX_CHUNK_LEN} are read", header.packed_len));
            return Ok(());
        }
        let body = self.body(frame, header.len + header.packed_len)?;
        let packed = usize::try_from(header.len).ok().and_then(|len| body.get(len..)).unwrap_or_default();
        match unpack(&header, packed) {
            Err(fact) => self.damaged(frame, &fact),
            Ok(bytes) => {
                self.report.num_chunks += 1;
                let mut inner = Inner::new(&bytes);
                for (op, body) in &mut inner {
                    self.record(op, body)?;
                }
                if !inner.is_whole() {
                    self.damaged(frame, "its last record ends after it");
                }
            }
        }
        Ok(())
    }

    /// Reads what there is of a chunk without an end; returns how many messages.
    fn cut_chunk(&mut self, frame: Frame) -> Result<u64, BagError> {
        let head = self.body(frame, MAX_HEADER_LEN)?;
        let Some(header) = ChunkHeader::parse(&head) else { return Ok(0) };
        let body = self.body(frame, header.len.saturating_add(header.packed_len).min(MAX_CHUNK_LEN))?;
        let packed = usize::try_from(header.len).ok().and_then(|len| body.get(len..)).unwrap_or_default();
        let (bytes, _) = unpack_start(&header, packed);
        let mut num_messages = 0;
        for (op, body) in Inner::new(&bytes) {
            num_messages += u64::from(op == op::MESSAGE);
            self.record(op, body)?;
        }
        Ok(num_messages)
    }

    /// Takes in a record that is in no chunk; of other topics' messages only the head is read.
    fn top_level(&mut self, frame: Frame) -> Result<(), BagError> {
        let mut len = MAX_CHUNK_LEN;
        if let (op::MESSAGE, [low, high, ..]) = (frame.op, &self.body(frame, 2)?[..])
            && let Some(Channel::Other) = self.channels.get(&u16::from_le_bytes([*low, *high]))
        {
            len = MESSAGE_HEADER_LEN;
        }
        let body = self.body(frame, len)?;
        self.record(frame.op, &body)
    }

    /// Takes in a record from a chunk or beside them. One that makes no sense is noted and left.
    fn record(&mut self, op: u8, body: &[u8]) -> Result<(), BagError> {
        match op {
            op::SCHEMA | op::CHANNEL => match mcap::parse_record(op, body) {
                Ok(Record::Schema { header, data }) => self.schema(header, &data)?,
                Ok(Record::Channel(channel)) => self.channel(channel),
                Ok(_) => {}
                Err(error) => self.note(format!("a damaged definition: {error}")),
            },
            op::MESSAGE => self.message(body),
            _ => {}
        }
        Ok(())
    }

    fn schema(&mut self, header: mcap::records::SchemaHeader, data: &[u8]) -> Result<(), BagError> {
        let kind = Kind::of(&header.name);
        if self.schemas.insert(header.id, kind).is_some() {
            return Ok(());
        }
        let text = std::str::from_utf8(data).unwrap_or_default();
        if let Some(kind) = kind {
            if header.encoding != "ros2msg" || text.trim().is_empty() {
                self.note(format!(
                    "no definition of {} to compare with ours, fields are taken to agree",
                    header.name
                ));
            } else if let Some(difference) = kind.difference(text) {
                let (path, message) = (self.path.to_owned(), header.name);
                return Err(BagError::OtherVersion { path, message, difference });
            }
        }
        self.recording.types.insert(header.name);
        Ok(())
    }

    fn channel(&mut self, channel: mcap::records::Channel) {
        if self.channels.contains_key(&channel.id) {
            return;
        }
        let kind = self.schemas.get(&channel.schema_id).copied().flatten();
        let found = match kind {
            Some(kind) if channel.message_encoding == "cdr" => {
                self.recording.note_topic(kind, &channel.topic);
                Channel::Takt(kind, channel.topic)
            }
            Some(_) => {
                self.note(format!(
                    "{} is encoded as {:?}, cdr is read: left out",
                    channel.topic, channel.message_encoding
                ));
                Channel::Other
            }
            None => Channel::Other,
        };
        self.channels.insert(channel.id, found);
    }

    fn message(&mut self, body: &[u8]) {
        let Ok(Record::Message { header, data }) = mcap::parse_record(op::MESSAGE, body) else {
            return self.note("a message without a header".to_owned());
        };
        self.recording.note_time(header.log_time);
        let Some(Channel::Takt(kind, topic)) = self.channels.get(&header.channel_id) else { return };
        let times = Times { log_ns: header.log_time, publish_ns: header.publish_time };
        if !data.starts_with(ZSTD_MAGIC) {
            return self.recording.add(*kind, topic, times, &data);
        }
        let mut unpacked = Vec::new();
        match unpack_zstd(&data, MAX_CHUNK_LEN, &mut unpacked) {
            Ok(()) => self.recording.add(*kind, topic, times, &unpacked),
            Err(fact) => self.recording.add_malformed(topic, fact),
        }
    }

    fn damaged(&mut self, frame: Frame, fact: &str) {
        self.report.num_chunks_damaged += 1;
        self.note(format!("damaged chunk at byte {}: {fact}", frame.start));
    }

    /// A file can have one kind of damage very often: the first words count.
    fn note(&mut self, text: String) {
        const MAX_NOTES: usize = 20;
        if self.report.notes.len() < MAX_NOTES && !self.report.notes.contains(&text) {
            self.report.notes.push(text);
        }
    }

    fn body(&mut self, frame: Frame, len: u64) -> Result<Vec<u8>, BagError> {
        self.records.body(frame, len).map_err(|error| self.failed(error))
    }

    fn failed(&self, source: io::Error) -> BagError {
        BagError::Io { path: self.path.to_owned(), source }
    }
}
