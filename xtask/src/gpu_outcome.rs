//! What came of the measurements, beside the goals: for people, and for `docs/performance-gpu.md`.

use std::fmt::Write as _;

use serde_json::{Value, json};

/// Of a copy's bytes a second, for shapes that have a goal.
const DECODE_GOALS: [(&str, f64); 2] = [("8b", 0.80), ("1b", 0.70)];
/// Of a decode step, for NVFP4 and INT4.
const VERIFY_GOALS: [(u64, f64); 2] = [(16, 1.15), (60, 1.5)];

/// Everything that was measured.
pub struct Outcome {
    device: String,
    /// What the tests with TensorRT found, in words; none where they were left out.
    with_tensorrt: Vec<String>,
    rows: Vec<Row>,
    perception: Option<Result<Value, String>>,
    faults: Option<Result<Value, String>>,
}

struct Row {
    shape: String,
    format: String,
    found: Result<Value, String>,
}

/// A goal, and whether it was reached.
struct Goal {
    what: String,
    wanted: f64,
    found: f64,
    /// Otherwise at most.
    at_least: bool,
}

impl Goal {
    fn is_met(&self) -> bool {
        if self.at_least { self.found >= self.wanted } else { self.found <= self.wanted }
    }
}

impl Outcome {
    pub fn new(device: &str, with_tensorrt: Vec<String>) -> Self {
        Self { device: device.to_owned(), with_tensorrt, rows: Vec::new(), perception: None, faults: None }
    }

    /// What `takt bench --json` printed, or why it did not.
    pub fn add(&mut self, shape: &str, format: &str, found: Result<Value, String>) {
        self.rows.push(Row { shape: shape.to_owned(), format: format.to_owned(), found });
    }

    /// What `takt bench --perception --json` printed, or why it did not.
    pub fn add_perception(&mut self, found: Result<Value, String>) {
        self.perception = Some(found);
    }

    /// What the check of faults wrote, or why it did not.
    pub fn add_faults(&mut self, found: Result<Value, String>) {
        self.faults = Some(found);
    }

    /// Whether nothing was measured or tried.
    pub fn is_empty(&self) -> bool {
        let is_measured = !self.rows.is_empty() || self.perception.is_some() || self.faults.is_some();
        !is_measured && self.with_tensorrt.is_empty()
    }

    /// Measurements that failed for another reason than memory, and what was found wrong after faults.
    pub fn num_failed(&self) -> usize {
        let errors = self.rows.iter().filter_map(|row| row.found.as_ref().err());
        let errors = errors.chain(self.perception.iter().filter_map(|found| found.as_ref().err()));
        let wrong = match &self.faults {
            Some(Ok(found)) => found["failures"].as_array().map_or(1, Vec::len),
            Some(Err(_)) => 1,
            None => 0,
        };
        errors.filter(|error| !is_too_large(error)).count() + wrong
    }

    fn goals(&self) -> Vec<Goal> {
        let of_rows = self.rows.iter().flat_map(Row::goals);
        let perception = self.perception.iter().filter_map(|found| found.as_ref().ok());
        of_rows.chain(perception.flat_map(perception_goals)).collect()
    }

    pub fn as_text(&self) -> String {
        let mut text = format!("{}\n\n", self.device);
        if !self.rows.is_empty() {
            text += &rows_head();
        }
        self.rows.iter().for_each(|row| text += &row.as_text());
        match &self.perception {
            Some(Ok(found)) => text += &perception_text(found),
            Some(Err(error)) => text += &format!("\nperception: {error}\n"),
            None => {}
        }
        match &self.faults {
            Some(Ok(found)) => text += &faults_text(found),
            Some(Err(error)) => text += &format!("\nfaults: {error}\n"),
            None => {}
        }
        if !self.with_tensorrt.is_empty() {
            text += "\nTensorRT\n";
        }
        self.with_tensorrt.iter().for_each(|fact| text += &format!("  {fact}\n"));
        let goals = self.goals();
        if !goals.is_empty() {
            text += "\ngoals\n";
        }
        for goal in goals {
            let (sign, met) =
                (if goal.at_least { "≥" } else { "≤" }, if goal.is_met() { "met" } else { "MISSED" });
            let _ =
                writeln!(text, "  {:<66} {sign} {:<6} {:>8.3}  {met}", goal.what, goal.wanted, goal.found);
        }
        let perception = self.perception.iter().filter_map(|found| found.as_ref().ok());
        for (row, why) in perception.flat_map(not_judged) {
            let _ = writeln!(text, "  {}: not judged: {why}", perception_name(row));
        }
        text
    }

    pub fn as_json(&self) -> Value {
        let result = |found: &Result<Value, String>| match found {
            Ok(value) => value.clone(),
            Err(error) => json!({"error": error, "is_too_large": is_too_large(error)}),
        };
        let rows: Vec<Value> = self
            .rows
            .iter()
            .map(|row| json!({"shape": row.shape, "weights": row.format, "bench": result(&row.found)}))
            .collect();
        let goals: Vec<Value> = self
            .goals()
            .iter()
            .map(|goal| {
                json!({"goal": goal.what, "wanted": goal.wanted, "found": goal.found, "at_least": goal.at_least, "met": goal.is_met()})
            })
            .collect();
        json!({
            "device": self.device, "version": env!("CARGO_PKG_VERSION"), "rows": rows,
            "perception": self.perception.as_ref().map(result), "faults": self.faults.as_ref().map(result), "goals": goals,
            "tensorrt": self.with_tensorrt,
        })
    }
}

fn rows_head() -> String {
    format!(
        "{:<16}{:<10}{:>10}{:>9}{:>9}{:>11}{:>11}{:>8}{:>8}{:>8}{:>8}\n",
        "shape",
        "weights",
        "decode/s",
        "GB/s",
        "of copy",
        "prefill256",
        "prefill2k",
        "ver 8",
        "ver 16",
        "ver 32",
        "ver 60"
    )
}

/// Not a fault of the program: the device is too small for the shape.
fn is_too_large(error: &str) -> bool {
    error.contains("of device memory") || error.contains("no device memory")
}

impl Row {
    /// The figure `name` of a kind of step.
    fn figure(&self, kind: &str, tokens: u64, name: &str) -> Option<f64> {
        let kinds = self.found.as_ref().ok()?["gpu"]["kinds"].as_array()?;
        let is_it = |one: &&Value| one["kind"] == kind && one["tokens"] == tokens;
        kinds.iter().find(is_it)?[name].as_f64()
    }

    fn goals(&self) -> Vec<Goal> {
        let name = format!("{} {}", self.shape, self.format);
        let mut goals = Vec::new();
        let of_shape = DECODE_GOALS.iter().find(|(size, _)| self.shape.ends_with(&format!("-{size}")));
        if let (Some((_, wanted)), Some(found)) = (of_shape, self.figure("decode", 1, "copy_share")) {
            let what = format!("{name}: decode, bytes over a copy's");
            goals.push(Goal { what, wanted: *wanted, found, at_least: true });
        }
        for (tokens, wanted) in VERIFY_GOALS {
            let counts = ["nvfp4", "int4"].contains(&self.format.as_str());
            if let Some(found) = self.figure("verify", tokens, "over_decode").filter(|_| counts) {
                let what = format!("{name}: {tokens} tokens verified, over a decode step");
                goals.push(Goal { what, wanted, found, at_least: false });
            }
        }
        goals
    }

    fn as_text(&self) -> String {
        let head = format!("{:<15} {:<9} ", self.shape, self.format);
        if let Err(error) = &self.found {
            let what = if is_too_large(error) { "does not fit" } else { "failed" };
            return format!("{head}  {what}: {error}\n");
        }
        let or_dash = |value: Option<f64>, digits: usize| {
            value.map_or_else(|| "-".to_owned(), |value| format!("{value:.digits$}"))
        };
        let decode = |name| self.figure("decode", 1, name);
        let prefill = |tokens| or_dash(self.figure("prefill", tokens, "tok_s"), 0);
        let verify = |tokens| or_dash(self.figure("verify", tokens, "over_decode"), 2);
        format!(
            "{head}{:>10}{:>9}{:>9}{:>11}{:>11}{:>8}{:>8}{:>8}{:>8}\n",
            or_dash(decode("tok_s"), 1),
            or_dash(decode("gb_s"), 0),
            decode("copy_share").map_or_else(|| "-".into(), |share| format!("{:.0} %", share * 100.0)),
            prefill(256),
            prefill(2048),
            verify(8),
            verify(16),
            verify(32),
            verify(60),
        )
    }
}

fn perception_rows(found: &Value) -> impl Iterator<Item = &Value> {
    found["rows"].as_array().into_iter().flatten()
}

fn perception_name(row: &Value) -> String {
    format!("perception {} {} Hz, green context", row["place"].as_str().unwrap_or_default(), row["hz"])
}

/// Rows that asked for a green context and got something else, and why they say nothing of the goals.
fn not_judged(found: &Value) -> impl Iterator<Item = (&Value, &str)> {
    let rows = perception_rows(found).filter(|row| row["mode"] == "green_context");
    rows.filter_map(|row| Some((row, row["not_judged"].as_str()?)))
}

fn perception_goals(found: &Value) -> Vec<Goal> {
    // What was asked for is not always what was got.
    let is_it = |row: &&Value| row["mode"] == "green_context" && row["share"] == "green_context";
    perception_rows(found)
        .filter(is_it)
        .flat_map(|row| {
            let name = perception_name(row);
            let goal = |what: &str, wanted, found: &Value, at_least| {
                Some(Goal { what: format!("{name}: {what}"), wanted, found: found.as_f64()?, at_least })
            };
            let p99 = goal("p99 over alone", 1.05, &row["p99_over_alone"], false);
            p99.into_iter().chain(goal("tokens kept", 0.8, &row["kept"], true))
        })
        .collect()
}

fn perception_text(found: &Value) -> String {
    let mut text = format!(
        "\n{:<16}{:>5}  {:<14}{:>9}{:>9}{:>9}{:>9}{:>10}{:>8}\n",
        "perception", "Hz", "sharing", "p50 ms", "p99 ms", "p99.9", "max", "of alone", "kept"
    );
    for row in perception_rows(found) {
        let text_of = |name: &str| row[name].as_str().unwrap_or("-").to_owned();
        let number = |value: &Value| value.as_f64().map_or_else(|| "-".into(), |value| format!("{value:.3}"));
        let ms = &row["frame_ms"];
        let _ = writeln!(
            text,
            "{:<16}{:>5}  {:<14}{:>9}{:>9}{:>9}{:>9}{:>10}{:>8}",
            text_of("place"),
            row["hz"].to_string(),
            text_of("mode") + if row["not_judged"].is_string() { "*" } else { "" },
            number(&ms["p50"]),
            number(&ms["p99"]),
            number(&ms["p99_9"]),
            number(&ms["max"]),
            number(&row["p99_over_alone"]),
            number(&row["kept"]),
        );
    }
    text
}

/// What a GPU was made to do, and how soon the next answer came.
fn faults_text(found: &Value) -> String {
    let seconds = |value: &Value| value.as_f64().map_or_else(|| "-".into(), |value| format!("{value:.2}"));
    let mut text = format!(
        "\n{} openings that found no memory; a worker is ready after {} s\n{:<34}{:>10}{:>10}{:>14}\n",
        found["num_openings"],
        seconds(&found["load_s"]),
        "fault",
        "again s",
        "allowed",
        "missing KiB"
    );
    for row in found["rows"].as_array().into_iter().flatten() {
        let missing_kib = row["missing_bytes"].as_i64().unwrap_or_default() / 1024;
        let _ = writeln!(
            text,
            "{:<34}{:>10}{:>10}{missing_kib:>14}",
            row["fault"].as_str().unwrap_or("-"),
            seconds(&row["again_s"]),
            seconds(&row["allowed_s"]),
        );
    }
    let failures = found["failures"].as_array().into_iter().flatten();
    failures.for_each(|failure| text += &format!("FAILED  {}\n", failure.as_str().unwrap_or("-")));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bench(copy_share: f64, verify_16: f64) -> Value {
        json!({"gpu": {"kinds": [
            {"kind": "decode", "tokens": 1, "tok_s": 50.0, "gb_s": 200.0, "copy_share": copy_share, "over_decode": null},
            {"kind": "verify", "tokens": 16, "tok_s": 700.0, "gb_s": 190.0, "copy_share": 0.7, "over_decode": verify_16},
            {"kind": "prefill", "tokens": 2048, "tok_s": 9000.0, "gb_s": 100.0, "copy_share": 0.3, "over_decode": null},
        ]}})
    }

    #[test]
    fn a_missed_goal_is_shown_and_no_failure() {
        let mut outcome = Outcome::new("a GPU", vec!["refit, bf16: Refitted".into()]);
        outcome.add("qwen3-8b", "nvfp4", Ok(bench(0.79, 1.15)));
        outcome.add("qwen3-8b", "bf16", Ok(bench(0.81, 2.0)));
        outcome.add("qwen3-4b", "bf16", Ok(bench(0.1, 3.0)));
        outcome.add_perception(Ok(json!({"rows": [
            {"mode": "alone", "place": "in-process", "hz": 30, "frame_ms": {"p50": 3.0, "p99": 3.0, "p99_9": 3.0, "max": 3.0}},
            {"mode": "green_context", "share": "priority", "not_judged": "all of 8 multiprocessors", "place": "in-process", "hz": 60,
             "frame_ms": {"p50": 3.0, "p99": 3.3, "p99_9": 3.4, "max": 4.0}, "p99_over_alone": 9.0, "kept": 0.9},
            {"mode": "green_context", "share": "green_context", "not_judged": null, "place": "in-process", "hz": 30, "frame_ms": {"p50": 3.0, "p99": 3.3, "p99_9": 3.4, "max": 4.0},
             "p99_over_alone": 1.1, "kept": 0.9},
        ]})));
        let met: Vec<bool> = outcome.goals().iter().map(Goal::is_met).collect();
        // 8B decode and 16 tokens in NVFP4, 8B decode in BF16, p99, tokens kept.
        assert_eq!(met, [false, true, true, false, true]);
        assert_eq!(outcome.num_failed(), 0);
        let text = outcome.as_text();
        for part in [
            "79 %",
            "1.15",
            "9000",
            "MISSED",
            "met",
            "in-process 30 Hz, green context: p99 over alone",
            "in-process 60 Hz, green context: not judged: all of 8",
            "green_context*",
            "\nTensorRT\n  refit, bf16: Refitted\n",
        ] {
            assert!(text.contains(part), "{part} not in {text}");
        }
        let value = outcome.as_json();
        assert_eq!(value["tensorrt"], json!(["refit, bf16: Refitted"]));
        assert_eq!((&value["goals"][0]["met"], value["rows"].as_array().unwrap().len()), (&json!(false), 3));
    }

    #[test]
    fn what_does_not_fit_is_no_failure_and_what_breaks_is_one() {
        let mut outcome = Outcome::new("a GPU", Vec::new());
        outcome.add("qwen3-8b", "bf16", Err("the engine takes 17 bytes of device memory".into()));
        outcome.add("qwen3-8b", "int4", Err("the device failed in cuLaunchKernel".into()));
        assert_eq!(outcome.num_failed(), 1);
        let text = outcome.as_text();
        assert!(
            text.contains("does not fit: the engine") && text.contains("failed: the device failed"),
            "{text}"
        );
        assert_eq!(outcome.as_json()["rows"][0]["bench"]["is_too_large"], true);
    }

    #[test]
    fn what_is_wrong_after_a_fault_is_a_failure_and_so_is_a_check_without_a_record() {
        let faults = |failures: &[&str]| {
            json!({
                "num_openings": 31, "load_s": 1.25, "failures": failures,
                "rows": [{"fault": "a trap", "again_s": 3.5, "allowed_s": 2.25, "missing_bytes": 2048}],
            })
        };
        let outcome_of = |found| {
            let mut outcome = Outcome::new("a GPU", Vec::new());
            assert!(outcome.is_empty());
            outcome.add_faults(found);
            assert!(!outcome.is_empty());
            outcome
        };
        assert_eq!(outcome_of(Ok(faults(&[]))).num_failed(), 0);
        let outcome = outcome_of(Ok(faults(&["a trap: too late"])));
        assert_eq!(outcome.num_failed(), 1);
        let text = outcome.as_text();
        for part in ["31 openings", "1.25 s", "3.50", "2.25", "FAILED  a trap: too late"] {
            assert!(text.contains(part), "{part} not in {text}");
        }
        assert!(!text.contains("decode/s"), "nothing was measured: {text}");
        assert_eq!(outcome.as_json()["faults"]["rows"][0]["again_s"], 3.5);
        let outcome = outcome_of(Err("the driver took the process with it".into()));
        assert_eq!((outcome.num_failed(), outcome.as_text().contains("took the process")), (1, true));
    }
}
