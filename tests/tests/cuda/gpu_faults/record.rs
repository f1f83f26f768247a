//! What came of every fault, for people and for `gpu-check`.

use std::fmt::Write as _;

use serde_json::{Value, json};

/// Seconds that opening again may take beyond opening.
pub const GRACE_S: f64 = 1.0;

/// Everything that was found.
#[derive(Debug, Clone, Default)]
pub struct Record {
    /// What it ran on.
    pub device: String,
    /// Times mean nothing, and are held against nothing.
    pub is_emulated: bool,
    /// Openings of an engine that found no memory at a call of their own each, and seconds they took together.
    pub num_openings: u64,
    pub openings_s: f64,
    /// Seconds from nothing to a worker that is ready.
    pub load_s: f64,
    /// Seconds of an answer.
    pub answer_s: f64,
    /// Bytes that may be missing afterwards.
    pub tolerance_bytes: u64,
    pub rows: Vec<Row>,
    /// What is no row's.
    pub others: Vec<String>,
}

/// One fault while requests were open.
#[derive(Debug, Clone)]
pub struct Row {
    pub fault: &'static str,
    /// What the open requests were told.
    pub told: String,
    /// Seconds from their answers to the next one's.
    pub again_s: f64,
    /// What that may take.
    pub allowed_s: f64,
    /// Bytes that were free before and are not any more; negative where there are more.
    pub missing_bytes: i64,
    /// What was not as it has to be, but the time.
    pub failures: Vec<String>,
}

impl Row {
    fn is_late(&self, is_emulated: bool) -> bool {
        !is_emulated && self.again_s > self.allowed_s
    }
}

impl Record {
    /// What was not as it has to be, in sentences.
    pub fn failures(&self) -> Vec<String> {
        let late = |row: &Row| {
            row.is_late(self.is_emulated).then(|| {
                format!("answers again after {:.2} s, expected within {:.2} s", row.again_s, row.allowed_s)
            })
        };
        let of_rows = self.rows.iter().flat_map(|row| {
            let all = row.failures.iter().cloned().chain(late(row));
            all.map(|failure| format!("{}: {failure}", row.fault)).collect::<Vec<_>>()
        });
        self.others.iter().cloned().chain(of_rows).collect()
    }

    pub fn as_text(&self) -> String {
        let mut text = format!(
            "{}\n{} openings that found no memory, {:.1} s; loading takes {:.2} s, an answer {:.3} s\n\n{:<34}{:>10}{:>10}{:>14}  told\n",
            self.device,
            self.num_openings,
            self.openings_s,
            self.load_s,
            self.answer_s,
            "fault",
            "again s",
            "allowed",
            "missing KiB"
        );
        for row in &self.rows {
            let allowed = if self.is_emulated { "-".to_owned() } else { format!("{:.2}", row.allowed_s) };
            let missing_kib = row.missing_bytes / 1024;
            let _ = writeln!(
                text,
                "{:<34}{:>10.2}{allowed:>10}{missing_kib:>14}  {}",
                row.fault, row.again_s, row.told
            );
        }
        self.failures().iter().for_each(|failure| text += &format!("FAILED  {failure}\n"));
        text
    }

    pub fn as_json(&self) -> Value {
        let row = |row: &Row| {
            json!({
                "fault": row.fault, "told": row.told, "again_s": row.again_s, "missing_bytes": row.missing_bytes,
                "allowed_s": (!self.is_emulated).then_some(row.allowed_s),
            })
        };
        json!({
            "device": self.device, "is_emulated": self.is_emulated, "num_openings": self.num_openings,
            "openings_s": self.openings_s, "load_s": self.load_s, "answer_s": self.answer_s,
            "tolerance_bytes": self.tolerance_bytes, "rows": self.rows.iter().map(row).collect::<Vec<_>>(),
            "failures": self.failures(),
        })
    }
}

/// On a GPU a late row is a failure; where time means nothing it is none, and what else went wrong is one everywhere.
#[test]
fn lateness_counts_on_a_gpu_alone() {
    let row = Row {
        fault: "a trap",
        told: String::new(),
        again_s: 3.5,
        allowed_s: 3.0,
        missing_bytes: 0,
        failures: Vec::new(),
    };
    let mut record = Record { rows: vec![row], ..Record::default() };
    assert_eq!(record.failures(), ["a trap: answers again after 3.50 s, expected within 3.00 s"]);
    record.is_emulated = true;
    assert_eq!(record.failures(), Vec::<String>::new());
    record.rows[0].failures.push("other tokens".into());
    assert_eq!(record.failures(), ["a trap: other tokens"]);
}
