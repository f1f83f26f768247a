//! Answers in a demanded form, from the command line and over ROS 2.

use std::{fs, path::Path};

use serde_json::Value;

use super::harness::*;

const SCHEMA: &str = r#"{"properties": {"skill": {"enum": ["stop", "go"], "x-takt-safe": true}, "note": {"type": "string", "default": ""}},
    "required": ["skill", "note"]}"#;

fn write(folder: &Path, name: &str, text: &str) -> String {
    let path = folder.join(name);
    fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

/// `text` is what [`SCHEMA`] asks for.
fn is_valid(text: &Value) {
    let value: Value = serde_json::from_str(text.as_str().unwrap()).unwrap();
    let skill = value["skill"].as_str().unwrap();
    assert!(["stop", "go"].contains(&skill) && value["note"].is_string(), "{value}");
}

#[test]
fn an_answer_has_the_form_asked_for_however_little_time_it_gets() {
    let scratch = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| write(scratch.path(), name, text);
    let schema = file("schema.json", SCHEMA);
    let ask = ["generate", engine(), "--prompt", "pick the red cup", "--raw", "--json"];
    let bound = |more: &[&str]| succeed_json([&ask[..], more].concat());
    let mut num_answered = 0;
    for deadline in ["1us", "2ms", "4ms", "8ms", "16ms", "32ms", "64ms", "128ms"] {
        let output = takt([&ask[..], &["--schema", &schema, "--deadline", deadline]].concat());
        let found: Value = serde_json::from_slice(&output.stdout).unwrap();
        match found["status"].as_str().unwrap() {
            "rejected" => assert_eq!((&found["text"], output.status.code()), (&"".into(), Some(1))),
            "closed_at_deadline" | "complete" => {
                num_answered += 1;
                is_valid(&found["text"]);
            }
            _ => panic!("{found}"),
        }
    }
    assert!(num_answered > 0);
    let short = bound(&["--schema", &schema, "--max-tokens", "6"]);
    assert_eq!(short["status"], "complete");
    is_valid(&short["text"]);
    let choice = bound(&["--choice", "left", "--choice", "right"]);
    assert!(["left", "right"].contains(&choice["text"].as_str().unwrap()), "{choice}");
    assert_eq!(choice["finish_reason"], "stop");
    let number = bound(&["--regex", "[1-9][0-9]{2}"]);
    assert!((100..1000).contains(&number["text"].as_str().unwrap().parse().unwrap()), "{number}");

    let open = file("open.json", r#"{"properties": {"speed": {"type": "number"}}}"#);
    fail([&ask[..], &["--schema", &open]].concat(), 1, &["/speed", "default"]);
    bound(&["--schema", &open, "--closing", "minimal", "--max-tokens", "8"]);
    let broken = file("broken.json", "{");
    fail([&ask[..], &["--schema", &broken]].concat(), 1, &["broken.json", "no JSON"]);
    fail([&ask[..], &["--schema", "missing.json"]].concat(), 1, &["missing.json", "cannot be read"]);
    fail([&ask[..], &["--regex", "a(b"]].concat(), 1, &["grammar"]);
}

#[test]
fn a_served_engine_answers_in_the_form_asked_for_and_sentences_in_the_nodes() {
    let scratch = tempfile::tempdir().unwrap();
    let schema = write(scratch.path(), "schema.json", SCHEMA);
    let config = |schema: &str| write(scratch.path(), "node.toml", &format!("[ros]\nschema = {schema:?}\n"));
    let serve = |config: &str| {
        ["serve", "--engine", engine(), "--config", config, "--ros-args", "-r", "__node:=forms_test"]
            .map(str::to_owned)
    };
    let open = write(scratch.path(), "open.json", r#"{"properties": {"speed": {"type": "number"}}}"#);
    for (path, words) in
        [("missing.json", ["missing.json", "cannot be read"]), (&open, ["`schema` in [ros]", "/speed"])]
    {
        let args = serve(&config(path));
        let output = on_loopback(&args.each_ref().map(String::as_str)).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        for word in words {
            assert!(stderr(&output).contains(word), "{}", stderr(&output));
        }
    }
    let args = serve(&config(&schema));
    let _node = Node::start(&args.each_ref().map(String::as_str));
    let ask = |more: &[&str]| {
        let ask = [
            "ask",
            "pick the red cup",
            "--node",
            "forms_test",
            "--deadline",
            "20s",
            "--wait",
            "30s",
            "--json",
        ];
        on_loopback(&[&ask[..], more].concat()).output().unwrap()
    };
    let answered = |more: &[&str]| -> Value {
        let output = ask(more);
        assert!(output.status.success(), "{}", stderr(&output));
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let reply = answered(&["--schema", &schema, "--max-tokens", "6"]);
    assert_eq!(reply["status"], "complete");
    is_valid(&reply["text"]);
    let listed = |field: &str| reply[field].as_array().unwrap().len();
    assert!(listed("defaulted_fields") + listed("cut_fields") > 0, "six tokens are too few: {reply}");
    let choice = answered(&["--choice", "left", "--choice", "right"]);
    assert!(["left", "right"].contains(&choice["text"].as_str().unwrap()), "{choice}");
    let refused = ask(&["--schema", &open]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(stderr(&refused).contains("/speed"), "{}", stderr(&refused));
}
