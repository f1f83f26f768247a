//! The ROS 2 messages the node speaks, field by field as in their `.msg`, `.srv` and `.action` files.

use std::time::{Duration, SystemTime};

use super::cdr::{CdrError, CdrReader, CdrWriter};
use super::name::TypeName;

mod action;
mod answer;
#[cfg(test)]
mod files;
pub(in crate::ros) mod interface;
#[cfg(test)]
mod known_hashes;
mod standard;
mod takt;
pub(in crate::ros) mod type_hash;

pub use action::{FeedbackMessage, GetResultRequest, GetResultResponse, SendGoalRequest, SendGoalResponse};
pub use answer::About;
pub use interface::{Field, Message};
pub use standard::*;
pub use takt::*;
pub use type_hash::TypeHash;

use interface::message;

/// `std_msgs/msg/String`.
pub const STRING: TypeName = Text::TYPE;

message! {
    /// A point in time.
    #[derive(Copy, Eq, PartialOrd, Ord)]
    pub struct Time = "builtin_interfaces" Msg "Time" {
        /// Whole seconds since 1970, or of simulated time.
        pub sec: i32,
        /// 0 to 999 999 999.
        pub nanosec: u32,
    }

    /// `builtin_interfaces/msg/Duration`: seconds may be negative, nanoseconds add to them.
    #[derive(Copy, Eq)]
    pub struct RosDuration = "builtin_interfaces" Msg "Duration" {
        /// Whole seconds, rounded down.
        pub sec: i32,
        /// 0 to 999 999 999.
        pub nanosec: u32,
    }
}

/// `byte`, which differs from `uint8` in name only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Byte(pub u8);

impl Field for Byte {
    const MIN_LEN: usize = 1;

    fn type_name() -> String {
        "byte".to_owned()
    }

    fn write(&self, writer: &mut CdrWriter) -> Result<(), CdrError> {
        writer.u8(self.0);
        Ok(())
    }

    fn read(reader: &mut CdrReader<'_>) -> Result<Self, CdrError> {
        reader.u8().map(Self)
    }
}

/// How well something is, in `diagnostic_msgs/msg/DiagnosticStatus`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Level {
    /// As it should be.
    Ok = 0,
    /// Works, but not as it should.
    Warn = 1,
    /// Does not work.
    Error = 2,
}

/// `text` as a `std_msgs/String`.
///
/// # Errors
/// [`CdrError::TooLong`] over 32 bits.
pub fn encode_string(text: &str) -> Result<Vec<u8>, CdrError> {
    let mut writer = CdrWriter::default();
    writer.string(text)?;
    Ok(writer.finish())
}

/// The text of a `std_msgs/String`.
///
/// # Errors
/// [`CdrError`] for anything that is not one.
pub fn decode_string(message: &[u8]) -> Result<&str, CdrError> {
    CdrReader::new(message)?.string()
}

impl Time {
    /// The beginning; in a message often: not given.
    pub const ZERO: Self = Self { sec: 0, nanosec: 0 };

    /// The time of day, cut at what 32 bits of seconds hold.
    #[must_use]
    pub fn from_system(at: SystemTime) -> Self {
        let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
        Self::from_nanos(i64::try_from(since.as_nanos()).unwrap_or(i64::MAX))
    }

    /// From nanoseconds since the beginning.
    #[must_use]
    pub fn from_nanos(nanos: i64) -> Self {
        let (sec, nanosec) = (nanos.div_euclid(1_000_000_000), nanos.rem_euclid(1_000_000_000));
        Self {
            sec: i32::try_from(sec).unwrap_or(i32::MAX),
            // Below 10⁹, so it fits.
            nanosec: u32::try_from(nanosec).unwrap_or(0),
        }
    }

    /// Nanoseconds since the beginning.
    #[must_use]
    pub fn as_nanos(self) -> i64 {
        i64::from(self.sec) * 1_000_000_000 + i64::from(self.nanosec)
    }
}

impl RosDuration {
    /// The duration, or `None` if it is negative or its nanoseconds are a second or more.
    #[must_use]
    pub fn to_std(self) -> Option<Duration> {
        let sec = u64::try_from(self.sec).ok()?;
        (self.nanosec < 1_000_000_000).then(|| Duration::new(sec, self.nanosec))
    }

    /// `duration`, cut at what 32 bits of seconds hold (68 years).
    #[must_use]
    pub fn from_std(duration: Duration) -> Self {
        match i32::try_from(duration.as_secs()) {
            Ok(sec) => Self { sec, nanosec: duration.subsec_nanos() },
            Err(_) => Self { sec: i32::MAX, nanosec: 999_999_999 },
        }
    }
}

/// Milliseconds with their fraction.
pub(super) fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_that_are_negative_or_overfull_are_not_durations() {
        assert_eq!(RosDuration { sec: -1, nanosec: 999_999_999 }.to_std(), None);
        assert_eq!(RosDuration { sec: 0, nanosec: 1_000_000_000 }.to_std(), None);
        assert_eq!(RosDuration { sec: 0, nanosec: 5 }.to_std(), Some(Duration::from_nanos(5)));
        let back = RosDuration::from_std(Duration::from_millis(1500));
        assert_eq!(back, RosDuration { sec: 1, nanosec: 500_000_000 });
        assert_eq!(RosDuration::from_std(Duration::MAX).sec, i32::MAX);
    }

    #[test]
    fn times_survive_their_nanoseconds() {
        for nanos in [0, 1, 999_999_999, 1_000_000_000, 1_763_760_000_123_456_789, -1] {
            assert_eq!(Time::from_nanos(nanos).as_nanos(), nanos);
        }
    }
}
