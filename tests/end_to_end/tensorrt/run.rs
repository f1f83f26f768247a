//! Plans run by the binary, computed by an interpreter: what it answers and scores through one, and what it says when that fails.

use std::fs;

use serde_json::Value;

use super::machine::{Machine, demo};
use crate::harness::*;

/// Tokens of a lane, and most of an answer.
const CONTEXT: &str = "256";
const MAX_TOKENS: &str = "48";

/// A held-out line of the demo model: what is before it, the sentence, the right answer.
struct Line {
    system: String,
    user: String,
    answer: Value,
}

impl Line {
    fn read(idx: usize) -> Self {
        let text = fs::read_to_string(demo().join("eval/heldout.jsonl")).unwrap();
        let line: Value = serde_json::from_str(text.lines().nth(idx).unwrap()).unwrap();
        let word = |name: &str| line[name].as_str().unwrap().to_owned();
        Self {
            system: word("system"),
            user: word("user"),
            answer: serde_json::from_str(&word("answer")).unwrap(),
        }
    }

    /// `takt generate` of it.
    fn asked<'a>(&'a self, engine: &'a str, backend: &'a str) -> Vec<&'a str> {
        let head =
            ["generate", engine, "--backend", backend, "--system", &self.system, "--prompt", &self.user];
        [&head[..], &["--max-context", CONTEXT, "--max-tokens", MAX_TOKENS, "--json"]].concat()
    }
}

/// The shipped model with a plan, as one command builds both.
fn build_demo(machine: &Machine) -> String {
    let (source, dir) = (demo().display().to_string(), machine.path("demo"));
    let args = ["build", &source, "-o", &dir, "--weights", "int4", "--tensorrt", "--json"];
    let built = machine.succeed(&[&args[..], &["--plan-lanes", "2", "--plan-context", CONTEXT]].concat());
    assert_eq!(built["plans"]["plans"].as_array().unwrap().len(), 1);
    dir
}

#[test]
fn an_engine_answers_and_scores_through_its_plan_as_on_the_processor() {
    let Some(mut machine) = Machine::running() else { return };
    let dir = build_demo(&machine);
    let line = Line::read(0);
    let expected = succeed_json(line.asked(&dir, "cpu"));
    assert_eq!(serde_json::from_str::<Value>(expected["text"].as_str().unwrap()).unwrap(), line.answer);
    let record = machine.path("record");
    machine.set("STANDIN_RECORD", &record);
    let found = machine.succeed(&line.asked(&dir, "tensorrt"));
    assert_eq!((&found["text"], &found["token_ids"]), (&expected["text"], &expected["token_ids"]));
    assert_eq!(found["status"], "complete");
    // A plan it was, and not the processor.
    assert!(fs::read_to_string(&record).unwrap().contains("enqueueV3("));

    let args = |backend| ["score", &dir, "--text", &line.user, "--json", "--backend", backend];
    let nll = |scored: Value| scored["nll"].as_f64().unwrap();
    let (found, expected) = (nll(machine.succeed(&args("tensorrt"))), nll(succeed_json(args("cpu"))));
    assert!((found - expected).abs() < 5e-2, "{found}, on the processor {expected}");
}
