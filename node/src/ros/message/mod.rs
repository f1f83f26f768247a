//! The few ROS 2 messages the node speaks, field by field as in their `.msg` and `.srv` files.

use std::time::Duration;

use super::cdr::{CdrError, CdrReader, CdrWriter};
use super::name::TypeName;

mod ask;
mod diagnostics;

pub use ask::{ASK, AskReply, AskRequest};
pub use diagnostics::{DIAGNOSTIC_ARRAY, DiagnosticStatus, Level, encode_diagnostics};

/// `std_msgs/msg/String`.
pub const STRING: TypeName = TypeName { package: "std_msgs", name: "String" };

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

/// `builtin_interfaces/msg/Duration`: seconds may be negative, nanoseconds add to them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RosDuration {
    /// Whole seconds, rounded down.
    pub sec: i32,
    /// 0 to 999 999 999.
    pub nanosec: u32,
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
}
