//! `diagnostic_msgs/msg/DiagnosticArray`.

use std::time::{Duration, SystemTime};

use crate::ros::{
    cdr::{CdrError, CdrWriter},
    name::TypeName,
};

/// `diagnostic_msgs/msg/DiagnosticArray`.
pub const DIAGNOSTIC_ARRAY: TypeName = TypeName { package: "diagnostic_msgs", name: "DiagnosticArray" };

/// How well something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Level {
    /// As it should be.
    Ok = 0,
    /// Works, but not as it should.
    Warn = 1,
    /// Does not work.
    Error = 2,
}

/// One `diagnostic_msgs/msg/DiagnosticStatus`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiagnosticStatus {
    /// How well it is.
    pub level: Level,
    /// `node: what`, which aggregators group by.
    pub name: String,
    /// In words.
    pub message: String,
    /// Which device.
    pub hardware_id: String,
    /// Figures: key, value.
    pub values: Vec<(&'static str, String)>,
}

/// The array of `statuses`, stamped `at`.
///
/// # Errors
/// [`CdrError::TooLong`] over 32 bits.
pub fn encode_diagnostics(statuses: &[DiagnosticStatus], at: SystemTime) -> Result<Vec<u8>, CdrError> {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let mut writer = CdrWriter::default();
    writer.i32(i32::try_from(since.as_secs()).unwrap_or(i32::MAX));
    writer.u32(since.subsec_nanos());
    writer.string("")?; // no frame
    writer.count(statuses.len())?;
    for status in statuses {
        writer.bytes(&[status.level as u8]);
        for text in [&status.name, &status.message, &status.hardware_id] {
            writer.string(text)?;
        }
        writer.count(status.values.len())?;
        for (key, value) in &status.values {
            writer.string(key)?;
            writer.string(value)?;
        }
    }
    Ok(writer.finish())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ros::cdr::CdrReader;

    #[test]
    fn every_field_is_where_the_interface_says() {
        let status = |level, message: &str| DiagnosticStatus {
            level,
            name: "takt: deadlines".to_owned(),
            message: message.to_owned(),
            hardware_id: "a processor".to_owned(),
            values: vec![("open requests", "3".to_owned()), ("lanes", "4".to_owned())],
        };
        let at = SystemTime::UNIX_EPOCH + Duration::new(7, 9);
        let message = encode_diagnostics(&[status(Level::Ok, "odd"), status(Level::Warn, "")], at).unwrap();
        let mut reader = CdrReader::new(&message).unwrap();
        assert_eq!((reader.i32().unwrap(), reader.u32().unwrap()), (7, 9));
        assert_eq!((reader.string().unwrap(), reader.u32().unwrap()), ("", 2));
        for (level, text) in [(0, "odd"), (1, "")] {
            assert_eq!(reader.bytes(1).unwrap(), [level]);
            let texts: Vec<&str> = (0..3).map(|_| reader.string().unwrap()).collect();
            assert_eq!(texts, ["takt: deadlines", text, "a processor"]);
            assert_eq!(reader.u32().unwrap(), 2);
            let values: Vec<&str> = (0..4).map(|_| reader.string().unwrap()).collect();
            assert_eq!(values, ["open requests", "3", "lanes", "4"]);
        }
        assert!(reader.bytes(1).is_err(), "bytes are left");
    }
}
