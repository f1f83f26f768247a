//! `takt bag-report`: how deadlines were kept, from what a robot recorded.
//!
//! `file` finds the recording's parts, `reader` takes what is left of each through `records` and `chunk`, `definition` sees to it that the
//! messages are ours. Kept is a `row` a request, in a [`Recording`]; `class_report`, `asked` and `report` count, `plot` draws.

mod asked;
mod chunk;
mod class_report;
mod definition;
mod error;
mod file;
#[cfg(test)]
mod fixture_tests;
mod plot;
mod reader;
#[cfg(test)]
mod reader_tests;
mod recording;
mod records;
mod report;
mod row;
mod spread;
mod stream;

pub use asked::{AskedReport, Unanswered};
pub use class_report::{ClassReport, Deadlines, Refusals, Speculation, StatusCounts};
pub use error::BagError;
pub use file::find;
pub use plot::svg;
pub use reader::{FileReport, read};
pub use recording::{NodeRecord, Recording};
pub use report::{Malformed, NodeReport, Report, Selection, StreamReport, Worst};
pub use spread::{Slack, Spread};
