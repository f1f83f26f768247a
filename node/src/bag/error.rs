//! Why there is no report.

use std::path::PathBuf;

/// What keeps a recording from being reported on; damage that leaves something to read is no error but part of the report.
#[derive(Debug, thiserror::Error)]
pub enum BagError {
    /// A file or folder that cannot be read.
    #[error("{}: cannot be read: {source}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file of another kind.
    #[error("{}: {fact}", path.display())]
    NotMcap {
        /// Which.
        path: PathBuf,
        /// What it is, and what to do.
        fact: String,
    },
    /// Messages with other fields than ours.
    #[error(
        "{}: {message} was recorded with another version of takt_msgs: {difference}: read it with the takt that answered then",
        path.display()
    )]
    OtherVersion {
        /// Which file.
        path: PathBuf,
        /// Which message.
        message: String,
        /// The first field that differs.
        difference: String,
    },
    /// Nothing of a Takt node in the bag.
    #[error(
        "no topic of type takt_msgs/msg/Reply, Prompt or Token: was ~/reply recorded? Types in the bag: {types}"
    )]
    NoTaktTopics {
        /// What there is instead.
        types: String,
    },
    /// `--node` names nobody.
    #[error("no node {name} in the bag; there are: {known}")]
    NoSuchNode {
        /// Asked for.
        name: String,
        /// Those there are.
        known: String,
    },
    /// Stopped by a signal.
    #[error("interrupted")]
    Interrupted,
}
