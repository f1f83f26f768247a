//! Takt's scheduler and what it is compared with.

use std::{fmt, str::FromStr, time::Duration};

use crate::scheduler::{
    cut::is_out_of_time,
    job::{Job, Phase},
    planner::{Section, plan},
    safety::Situation,
};

/// Who is let in and who runs next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// Admission on measured costs, earliest deadline first, optional work in the slack.
    Takt,
    /// Takt's order and planner, but everybody is let in.
    AdmitAll,
    /// First come, first served.
    Fifo,
    /// Everybody who has a lane in turn.
    RoundRobin,
}

impl Policy {
    /// All of them, Takt's first.
    pub const ALL: [Self; 4] = [Self::Takt, Self::AdmitAll, Self::Fifo, Self::RoundRobin];

    /// Whether a request may be refused for want of time.
    #[must_use]
    pub fn has_admission(self) -> bool {
        self == Self::Takt
    }

    /// Whether earlier deadlines go first and may take lanes.
    #[must_use]
    pub fn orders_by_deadline(self) -> bool {
        matches!(self, Self::Takt | Self::AdmitAll)
    }

    /// Plans the next section; `num_sections` counts them. `jobs` are sorted by rank.
    pub fn plan(self, jobs: &[Job], situation: &Situation<'_>, num_sections: u64, section: &mut Section) {
        match self {
            Self::Takt | Self::AdmitAll => plan(jobs, situation, section),
            Self::Fifo => self.plan_plainly(jobs, situation, 0, section),
            Self::RoundRobin => self.plan_plainly(jobs, situation, num_sections, section),
        }
    }

    /// All decoding lanes and a slice of one prompt: that of the first to come, or the next in turn. Cuts as Takt does: an answer that is
    /// late is worth nothing to anybody.
    fn plan_plainly(self, jobs: &[Job], situation: &Situation<'_>, turn: u64, section: &mut Section) {
        let Situation { now, limits, bounds, .. } = *situation;
        section.cut.clear();
        section.decodes.clear();
        section.prefill = None;
        let mut reading: Vec<(u64, &Job)> = Vec::new();
        for job in jobs {
            let Some(lane) = job.lane else { continue };
            if is_out_of_time(job, now, limits, bounds) {
                section.cut.push(lane);
            } else if job.phase == Phase::Decode {
                section.decodes.push(lane);
            } else {
                reading.push((job.rank.ticket, job));
            }
        }
        reading.sort_unstable_by_key(|(ticket, _)| *ticket);
        let next = usize::try_from(turn).unwrap_or(0) % reading.len().max(1);
        if let Some((_, job)) = reading.get(next)
            && let (Some(lane), Phase::Prefill { remaining, until_stop }) = (job.lane, job.phase)
        {
            let most = limits.slice_len(section.decodes.len(), job.context_len, bounds);
            section.prefill = Some((lane, remaining.min(until_stop).min(most)));
        }
        section.bound = Duration::ZERO;
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Takt => "takt",
            Self::AdmitAll => "admit-all",
            Self::Fifo => "fifo",
            Self::RoundRobin => "round-robin",
        })
    }
}

impl FromStr for Policy {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|policy| policy.to_string() == name);
        found.ok_or_else(|| format!("{name:?}, expected takt, admit-all, fifo or round-robin"))
    }
}
