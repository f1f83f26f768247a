//! A reader and what is done with its samples: none is lost because its writer has left.
//!
//! A reliable reader hands over a writer's samples as far as they are complete. When a writer leaves, RustDDS 0.15.1 forgets how
//! far that was, and hands over nothing of it any more: what has arrived, and is acknowledged, but was not taken yet, is lost.
//! On a busy machine it is taken some milliseconds late; a publisher that ends after its message, a server that stops after its
//! reply and a writer that is renewed are gone by then.
//!
//! The samples are still in the cache, which all readers of a topic share, and a best-effort reader is given whatever is there.
//! So where a writer has left, a best-effort reader is made for a moment, mostly gone before it would be announced, and what the
//! reliable one has not handed over is taken from that.

use std::collections::{BTreeSet, HashMap};
use std::iter;
use std::time::{Duration, Instant};

use rustdds::dds::result::{CreateError, ReadError};
use rustdds::mio1::{Interest, Registry, Token, event::Source as _};
use rustdds::no_key::SimpleDataReader;
use rustdds::rpc::SampleIdentity;
use rustdds::{GUID, QosPolicies, SequenceNumber, Subscriber, Topic};

use super::payload::{AsIs, Payload};

pub(super) type Reader = SimpleDataReader<Payload, AsIs>;

/// A message as it came, with where it came from.
#[derive(Debug)]
pub(super) struct Sample {
    pub message: Vec<u8>,
    pub writer: GUID,
    pub sequence_number: SequenceNumber,
    pub related: Option<SampleIdentity>,
}

pub(super) type OnSample = Box<dyn FnMut(Sample) + Send>;

/// How far apart the two may be told, each on a way of its own: that a sample is there, and that its writer has left.
const APART: Duration = Duration::from_secs(1);

/// Makes readers that see all that is in a topic's cache.
pub(super) struct Cache {
    pub subscriber: Subscriber,
    pub topic: Topic,
    /// Best effort.
    pub qos: QosPolicies,
}

impl Cache {
    fn open(&self) -> Result<Reader, CreateError> {
        self.subscriber.create_simple_datareader_no_key(&self.topic, Some(self.qos.clone()))
    }
}

/// A reader with its callback.
pub(super) struct Inbox {
    reader: Reader,
    on_sample: OnSample,
    /// Where to look for what a writer has left behind; `None` if nobody misses it.
    cache: Option<Cache>,
    /// The last sample that `reader` has handed over, by writer that has not left.
    taken: HashMap<GUID, SequenceNumber>,
    /// When something happened on the topic.
    stirred_at: Option<Instant>,
    departed: Vec<Departed>,
}

/// A writer that has just left.
struct Departed {
    writer: GUID,
    until: Instant,
    /// Whether something may be there since the last search.
    is_due: bool,
    is_searched: bool,
    /// Found by a search.
    found: BTreeSet<SequenceNumber>,
}

impl Inbox {
    pub fn new(reader: Reader, cache: Option<Cache>, on_sample: OnSample) -> Self {
        let (taken, departed) = (HashMap::new(), Vec::new());
        Self { reader, on_sample, cache, taken, stirred_at: None, departed }
    }

    pub fn guid(&self) -> GUID {
        self.reader.guid()
    }

    pub fn register(&mut self, registry: &Registry, token: Token) -> std::io::Result<()> {
        self.reader.register(registry, token, Interest::READABLE)
    }

    /// Takes note that `writer`, one of those it hears, has left for good.
    pub fn note_departure(&mut self, writer: GUID, now: Instant) {
        if self.cache.is_none() {
            return;
        }
        let is_due = self.stirred_at.is_some_and(|at| now < at + APART);
        let (until, found) = (now + APART, BTreeSet::new());
        self.departed.push(Departed { writer, until, is_due, is_searched: false, found });
    }

    /// Hands over every sample that is there.
    pub fn take_all(&mut self, now: Instant) {
        self.reader.drain_read_notifications();
        self.stirred_at = Some(now);
        if self.departed.is_empty() {
            while let Some(sample) = take_one(&self.reader) {
                self.hand_over(sample);
            }
            return;
        }
        self.departed.iter_mut().for_each(|departed| departed.is_due = true);
        let all: Vec<Sample> = iter::from_fn(|| take_one(&self.reader)).collect();
        let has_left =
            |sample: &Sample| self.departed.iter().any(|departed| departed.writer == sample.writer);
        // Theirs come first: a writer's successor may be among the others.
        let (theirs, others): (Vec<Sample>, Vec<Sample>) = all.into_iter().partition(has_left);
        theirs.into_iter().for_each(|sample| self.hand_over(sample));
        self.search(now);
        others.into_iter().for_each(|sample| self.hand_over(sample));
    }

    /// Looks for what writers have left behind, if it is time; when it is next.
    pub fn flush(&mut self, now: Instant) -> Option<Instant> {
        if self.departed.is_empty() {
            return None;
        }
        self.search(now);
        for departed in self.departed.extract_if(.., |departed| departed.until <= now) {
            self.taken.remove(&departed.writer);
        }
        self.departed.iter().map(|departed| departed.until).min()
    }

    fn hand_over(&mut self, sample: Sample) {
        let Sample { writer, sequence_number, .. } = sample;
        if self.departed.iter().any(|it| it.writer == writer && it.found.contains(&sequence_number)) {
            return;
        }
        if self.cache.is_some() {
            self.taken.insert(writer, sequence_number);
        }
        (self.on_sample)(sample);
    }

    /// At once after a departure, and once more later if the topic was stirred since.
    fn search(&mut self, now: Instant) {
        let is_due =
            |departed: &Departed| departed.is_due && (!departed.is_searched || departed.until <= now);
        if !self.departed.iter().any(is_due) {
            return;
        }
        for departed in self.departed.iter_mut().filter(|departed| is_due(departed)) {
            (departed.is_due, departed.is_searched) = (false, true);
        }
        for sample in self.left_behind() {
            tracing::debug!(writer = ?sample.writer, sequence = ?sample.sequence_number, "a sample outlived its writer");
            (self.on_sample)(sample);
        }
    }

    /// Samples of departed writers that nobody has taken, in the order they were written in.
    fn left_behind(&mut self) -> Vec<Sample> {
        let Some(cache) = &self.cache else { return Vec::new() };
        let everything = match cache.open() {
            Ok(reader) => reader,
            Err(error) => {
                tracing::warn!(%error, "the last messages of a ROS 2 node that has left may be lost");
                return Vec::new();
            }
        };
        let mut found: Vec<Sample> = iter::from_fn(|| take_one(&everything))
            .filter(|sample| {
                let Some(departed) = self.departed.iter_mut().find(|it| it.writer == sample.writer) else {
                    return false;
                };
                let is_new = self.taken.get(&sample.writer).is_none_or(|last| sample.sequence_number > *last);
                is_new && departed.found.insert(sample.sequence_number)
            })
            .collect();
        found.sort_by_key(|sample| (sample.writer, sample.sequence_number));
        found
    }
}

/// The next sample that can be read.
fn take_one(reader: &Reader) -> Option<Sample> {
    loop {
        match reader.try_take_one() {
            Ok(change) => {
                return change.map(|change| Sample {
                    related: change.related_sample_identity(),
                    writer: change.writer_guid,
                    sequence_number: change.sequence_number,
                    message: change.into_value().0,
                });
            }
            // RustDDS has stepped past the sample: the next one may be good.
            Err(ReadError::Deserialization { reason }) => {
                tracing::warn!("a ROS 2 message was dropped: {reason}")
            }
            Err(error) => {
                tracing::warn!("reading a ROS 2 topic: {error}");
                return None;
            }
        }
    }
}
