//! How long sections took lately, so that the worker sleeps as long.

use std::{collections::HashMap, time::Duration};

use takt_kernels_cu::driver::stream::Found;

use super::batch::{Section, SectionShape, Work};
use crate::backend::device::captures::learnt;

/// By what a section's time depends on.
#[derive(Debug, Default)]
pub(super) struct UsualTimes {
    times: HashMap<SectionShape, Duration>,
}

impl UsualTimes {
    /// Has a place for `section`, so that to learn its time allocates nothing.
    pub(super) fn expect(&mut self, section: &Section) {
        self.times.entry(key(section)).or_default();
    }

    fn of(&self, section: &Section) -> Duration {
        self.times.get(&key(section)).copied().unwrap_or_default()
    }

    /// What all of `sections` usually take together.
    pub(super) fn of_all(&self, sections: &[Section]) -> Duration {
        sections.iter().map(|section| self.of(section)).sum()
    }

    /// Notes that `sections` took `took`, with others behind them that take `others`: the last of them learns it.
    pub(super) fn learn(&mut self, sections: &[Section], others: Duration, found: Found, took: Duration) {
        let Some((last, before)) = sections.split_last() else { return };
        let learnt = learnt(self.of(last), self.of_all(before) + others, found, took);
        self.times.insert(key(last), learnt);
    }
}

/// What a section's usual time is known by: runs of tokens of about the same length take about as long, in whatever lane.
fn key(section: &Section) -> SectionShape {
    match section.work {
        Work::Slice { .. } => {
            let sequence = section.shape.sequence.next_power_of_two();
            SectionShape { first_lane: 0, sequence, num_logits: 1, kv: 0, ..section.shape }
        }
        _ => section.shape,
    }
}
