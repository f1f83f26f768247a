//! Draft heads on the command line: built in, shown, asked, used, and refused.

use std::fs;

use serde_json::{Value, json};

use super::harness::*;

/// A fixture target with its head as a bf16 engine.
fn build(target: &str, head: &str) -> (tempfile::TempDir, String, Value) {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("engine").display().to_string();
    let (target, head) = (fixture(&format!("hf/{target}")), fixture(&format!("eagle3/{head}")));
    let args = ["build", "-o", &dir, "--weights", "bf16", "--json", "--draft"].map(str::to_owned);
    let report =
        succeed_json(args.into_iter().chain([&head, &target].map(|path| path.display().to_string())));
    (folder, dir, report)
}

#[test]
fn score_gives_the_published_heads_chain_and_tree() {
    for (target, head) in [("tiny-llama", "tiny-llama-midlayer"), ("tiny-qwen3", "tiny-qwen3-layers")] {
        let (_folder, dir, report) = build(target, head);
        // The fixtures' weights are random: what they propose is hardly ever accepted, which is said.
        assert!(report["warnings"].to_string().contains("is it for this model?"), "{}", report["warnings"]);
        let record = &report["draft"]["record"];
        assert!(
            record["num_chains"].as_u64().unwrap() > 0 && !record["trials"].as_array().unwrap().is_empty()
        );
        let golden = fs::read(fixture(&format!("eagle3/{head}/golden.json"))).unwrap();
        let golden: Value = serde_json::from_slice(&golden).unwrap();
        // Of readings that are worth the same the one the files suggest is taken; the numbers are of that one.
        assert_eq!(report["draft"]["read_as_published"], true, "{record}");
        assert_eq!(report["draft"]["captured"], golden["capture_layer_inputs"]);
        for case in golden["cases"].as_array().unwrap() {
            let ids: Vec<String> =
                case["input_ids"].as_array().unwrap().iter().map(Value::to_string).collect();
            let (ids, next) = (ids.join(","), case["next_token"].to_string());
            let tree = "top_k=4,levels=4,nodes=16";
            let found = succeed_json([
                "score",
                &dir,
                "--json",
                "--activations",
                "f32",
                "--token-ids",
                &ids,
                "--draft",
                "--next",
                &next,
                "--tree",
                tree,
            ]);
            let draft = &found["draft"];
            assert_eq!(draft["chain"], case["chain_5"], "{head}");
            for part in ["tokens", "depths"] {
                assert_eq!(draft["tree"][part], case["tree"][part], "{head} {part}");
            }
            assert_eq!(draft["logits_last"].as_array().unwrap().len(), 256);
        }
        assert!(succeed(["inspect", &dir]).contains("draft head (EAGLE-3)"));
        assert_eq!(succeed_json(["inspect", &dir, "--json"])["draft"]["spec"]["draft_vocab_size"], 256);
        assert!(succeed(["score", &dir, "--token-ids", "1,2,3", "--draft"]).contains("drafted after it"));
    }
}

#[test]
fn generate_says_the_same_with_and_without_speculation_and_counts_its_rounds() {
    let (_folder, dir, _) = build("tiny-llama", "tiny-llama-midlayer");
    let ask = |more: &[&str]| {
        let args = ["generate", &dir, "--raw", "--prompt", "the robot", "--max-tokens", "40", "--json"];
        succeed_json(args.iter().chain(more).copied())
    };
    let (auto, off, lookup) = (ask(&[]), ask(&["--no-speculation"]), ask(&["--drafter", "lookup"]));
    for found in [&auto, &lookup] {
        assert_eq!((&found["token_ids"], &found["text"]), (&off["token_ids"], &off["text"]));
    }
    assert_eq!(off["speculation"], Value::Null);
    // Whether a round is worth it is for the machine to say; what rounds there were is told whole.
    for counts in
        [&auto["speculation"], &lookup["speculation"]].into_iter().filter(|counts| !counts.is_null())
    {
        assert!(counts["rounds"].as_u64().unwrap() > 0, "{counts}");
        assert!(counts["accept_len"].as_f64().unwrap() >= 1.0, "{counts}");
        assert!(counts["drafted"].as_u64().unwrap() >= counts["accepted"].as_u64().unwrap());
    }
    fail(["generate", &dir, "--prompt", "x", "--drafter", "medusa"], 2, &["medusa", "lookup"]);
}

#[test]
fn what_is_no_head_or_no_shape_is_refused_and_nothing_is_left() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("engine").display().to_string();
    let target = fixture("hf/tiny-llama").display().to_string();
    let build = |head: &str, more: &[&str], words: &[&str]| {
        let args = ["build", &target, "-o", &out, "--draft", head];
        fail(args.iter().chain(more).copied(), 1, words);
        assert!(!std::path::Path::new(&out).exists());
    };
    build("/nonexistent", &[], &["/nonexistent"]);
    let other = copy_of(&fixture("eagle3/tiny-llama-midlayer"));
    let config = fs::read_to_string(other.path().join("config.json")).unwrap();
    fs::write(other.path().join("config.json"), config.replace("\"vocab_size\": 640", "\"vocab_size\": 641"))
        .unwrap();
    build(&other.path().display().to_string(), &[], &["641"]);
    let pickled = tempfile::tempdir().unwrap();
    fs::copy(fixture("eagle3/tiny-llama-midlayer/config.json"), pickled.path().join("config.json")).unwrap();
    fs::write(pickled.path().join("pytorch_model.bin"), b"\x80\x02").unwrap();
    build(&pickled.path().display().to_string(), &[], &["pickle", "save_file"]);
    let head = fixture("eagle3/tiny-llama-midlayer").display().to_string();
    let prompts = folder.path().join("prompts.jsonl");
    let path = prompts.display().to_string();
    for (contents, word) in [("", "holds no prompts"), ("{\"user\": \"a\"}\n{\"usr\": 1}", "line 2")] {
        fs::write(&prompts, contents).unwrap();
        build(&head, &["--draft-prompts", &path], &[word, "expected"]);
    }
    fail(["score", engine(), "--token-ids", "1,2", "--draft"], 1, &["no draft head", "--draft HEAD"]);
    fail(["score", engine(), "--token-ids", "1,2", "--draft", "--tree", "depth=3"], 2, &["depth=3", "top_k"]);
    assert_eq!(succeed_json(["inspect", engine(), "--json"])["draft"], json!(null));
}
