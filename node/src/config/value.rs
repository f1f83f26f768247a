//! A value, whether a key accepts it, and where it came from.

use std::{fmt, path::PathBuf};

use super::schema::{Accepts, BuiltIn};

/// A configuration value.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Text or word.
    Text(String),
    /// Whole number.
    Whole(u64),
    /// Number with a fraction.
    Number(f64),
    /// Flag.
    Flag(bool),
    /// List of whole numbers.
    Wholes(Vec<u64>),
    /// List of texts.
    Texts(Vec<String>),
}

/// Where a value came from; later ones win.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Nobody said anything.
    BuiltIn,
    /// A file and its line, from 1.
    File(PathBuf, usize),
    /// An environment variable.
    Environment(&'static str),
    /// A ROS parameter, and how it was said: `-p scheduler.queue_len`, `--params-file robot.yaml:12`.
    Parameter(String),
    /// An argument.
    CommandLine(String),
}

impl From<BuiltIn> for Value {
    fn from(built_in: BuiltIn) -> Self {
        match built_in {
            BuiltIn::Text(text) => Self::Text(text.to_owned()),
            BuiltIn::Whole(number) => Self::Whole(number),
            BuiltIn::Number(number) => Self::Number(number),
            BuiltIn::Flag(flag) => Self::Flag(flag),
            BuiltIn::NoWholes => Self::Wholes(Vec::new()),
            BuiltIn::NoTexts => Self::Texts(Vec::new()),
        }
    }
}

impl Value {
    /// The value as a key of this kind holds it: a whole number is a number.
    #[must_use]
    pub fn for_key(self, accepts: Accepts) -> Self {
        match (self, accepts) {
            // Exact up to 2⁵³, far beyond what any key accepts.
            (Self::Whole(number), Accepts::Number(..)) => Self::Number(number as f64),
            (value, _) => value,
        }
    }

    /// Checks the value against what a key accepts.
    ///
    /// # Errors
    /// What was found and what is expected.
    pub fn check(&self, accepts: Accepts) -> Result<(), String> {
        let fits = match (self, accepts) {
            (Self::Text(_), Accepts::Text)
            | (Self::Flag(_), Accepts::Flag)
            | (Self::Texts(_), Accepts::Texts) => true,
            (Self::Text(text), Accepts::Word(words)) => words.contains(&text.as_str()),
            (Self::Whole(number), Accepts::Whole(least, most)) => (least..=most).contains(number),
            (Self::Number(number), Accepts::Number(least, most)) => (least..=most).contains(number),
            (Self::Wholes(numbers), Accepts::Wholes(most)) => numbers.iter().all(|number| *number <= most),
            _ => false,
        };
        if fits { Ok(()) } else { Err(format!("{self} found, {accepts} expected")) }
    }
}

impl fmt::Display for Value {
    /// As it would stand in a TOML file.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => write!(f, "{text:?}"),
            Self::Whole(number) => write!(f, "{number}"),
            // With a point, so that it is read back as what it is.
            Self::Number(number) => write!(f, "{number:?}"),
            Self::Flag(flag) => write!(f, "{flag}"),
            Self::Wholes(numbers) => write!(f, "{numbers:?}"),
            Self::Texts(texts) => write!(f, "{texts:?}"),
        }
    }
}

impl fmt::Display for Accepts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text => f.write_str("text"),
            Self::Word(words) => write!(f, "one of {}", words.join(", ")),
            Self::Whole(least, most) => write!(f, "a whole number from {least} to {most}"),
            Self::Number(least, most) => write!(f, "a number from {least} to {most}"),
            Self::Flag => f.write_str("true or false"),
            Self::Wholes(most) => write!(f, "a list of whole numbers up to {most}"),
            Self::Texts => f.write_str("a list of texts"),
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BuiltIn => f.write_str("built-in"),
            Self::File(path, line) => write!(f, "{}:{line}", path.display()),
            Self::Environment(name) => write!(f, "environment {name}"),
            Self::Parameter(said) => f.write_str(said),
            Self::CommandLine(flag) => write!(f, "command line {flag}"),
        }
    }
}
