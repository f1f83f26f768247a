//! `--log-level LEVEL` and `--log-level NAME:=LEVEL`.

use std::fmt;

/// ROS 2's severities.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// 10.
    Debug,
    /// 20.
    Info,
    /// 30.
    Warn,
    /// 40.
    Error,
    /// 50.
    Fatal,
}

impl Severity {
    /// The number in `rcl_interfaces/msg/Log`.
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            Self::Debug => 10,
            Self::Info => 20,
            Self::Warn => 30,
            Self::Error => 40,
            Self::Fatal => 50,
        }
    }

    /// The same for a log filter of ours, which knows no `fatal`.
    #[must_use]
    pub fn filter(self) -> &'static str {
        match self {
            Self::Debug => "debug",
            Self::Info => "info",
            Self::Warn => "warn",
            Self::Error | Self::Fatal => "error",
        }
    }
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Debug => "debug",
            Self::Info => "info",
            Self::Warn => "warn",
            Self::Error => "error",
            Self::Fatal => "fatal",
        })
    }
}

/// From which severity on messages are logged. `None` is `unset`: what would hold if nothing were said.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogLevels {
    /// Of loggers that are not named.
    pub default: Option<Severity>,
    /// Of named loggers, each once.
    pub loggers: Vec<(String, Option<Severity>)>,
}

impl LogLevels {
    /// Adds what follows `--log-level`; the last word on a logger wins.
    ///
    /// # Errors
    /// What was found and what is expected.
    pub fn add(&mut self, rule: &str) -> Result<(), String> {
        match rule.split_once(":=") {
            None => self.default = severity(rule)?,
            Some(("", _)) => return Err("no logger's name found before :=, one expected".to_owned()),
            Some((logger, level)) => {
                let level = severity(level)?;
                match self.loggers.iter_mut().find(|(name, _)| name == logger) {
                    Some((_, old)) => *old = level,
                    None => self.loggers.push((logger.to_owned(), level)),
                }
            }
        }
        Ok(())
    }
}

fn severity(word: &str) -> Result<Option<Severity>, String> {
    Ok(match word.to_ascii_lowercase().as_str() {
        "debug" => Some(Severity::Debug),
        "info" => Some(Severity::Info),
        "warn" => Some(Severity::Warn),
        "error" => Some(Severity::Error),
        "fatal" => Some(Severity::Fatal),
        "unset" => None,
        _ => return Err(format!("{word:?} found, debug, info, warn, error, fatal or unset expected")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_read_in_any_case_and_the_last_one_wins() {
        let mut levels = LogLevels::default();
        for rule in ["INFO", "rcl:=Debug", "warn", "takt.engine:=fatal", "rcl:=ERROR"] {
            levels.add(rule).unwrap();
        }
        assert_eq!(levels.default, Some(Severity::Warn));
        assert_eq!(
            levels.loggers,
            [("rcl".to_owned(), Some(Severity::Error)), ("takt.engine".to_owned(), Some(Severity::Fatal))]
        );
        levels.add("unset").unwrap();
        assert_eq!(levels.default, None);
        assert!(Severity::Warn < Severity::Fatal && Severity::Fatal.number() == 50);
    }

    #[test]
    fn unknown_levels_and_nameless_loggers_are_refused() {
        for rule in ["", "loud", "WARNING", ":=info", "rcl:=", "rcl:=loud", "a:=b:=info"] {
            assert!(LogLevels::default().add(rule).unwrap_err().contains("expected"), "{rule}");
        }
    }
}
