//! The binary `takt` as scripts use it: exit status, JSON, messages, and what is left on the disk.
//!
//! Built as a test of `takt-node`, because only there Cargo says where the binary is.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests fail by panicking")]

mod bad_input;
mod bag_report;
mod draft;
#[path = "../../kernels-cu/tests/emulator/mod.rs"]
mod emulator;
mod export;
mod forms;
mod gpu;
mod harness;
mod install;
mod kernels;
mod service;
#[cfg(feature = "tensorrt")]
#[path = "../../tensorrt/tests/standin/mod.rs"]
mod standin;
mod suspension;
mod tensorrt;

use std::{
    ffi::OsStr,
    fs,
    process::Command,
    time::{Duration, Instant},
};

use harness::*;
use serde_json::{Value, json};

#[test]
fn inspect_tells_what_was_built_and_that_its_files_are_intact() {
    let found = succeed_json(["inspect", engine(), "--json", "--lanes", "2", "--max-context", "64"]);
    assert_eq!(found["valid"], true);
    assert!(found["files"].as_array().unwrap().iter().all(|file| file["intact"] == true));
    assert_eq!((&found["memory"]["lanes"], &found["memory"]["max_context"]), (&json!(2), &json!(64)));
    assert!(succeed(["inspect", engine()]).contains("KV cache"));
    // A GPU's lanes have no scales beside 16 bits, and it need not be there to be told of.
    let memory = |backend| {
        let args = ["inspect", engine(), "--json", "--kv", "bf16", "--backend", backend];
        succeed_json(args)["memory"].clone()
    };
    let (cpu, gpu) = (memory("cpu"), memory("cuda"));
    assert_eq!((&cpu["backend"], &gpu["backend"]), (&json!("cpu"), &json!("cuda")));
    assert!(gpu["kv_bytes"].as_u64() < cpu["kv_bytes"].as_u64(), "{gpu}, {cpu}");
    assert!(succeed(["inspect", engine(), "--backend", "cuda"]).contains("memory on a GPU for"));
    fail(["inspect", engine(), "--backend", "tensorrt"], 2, &["expected cpu or cuda"]);
    fail(["inspect", engine(), "--max-context", "99999999"], 1, &["the model was made for"]);
}

#[test]
fn score_gives_the_logits_and_the_likelihood_of_transformers() {
    let golden: Value =
        serde_json::from_slice(&fs::read(fixture("hf/tiny-llama/golden.json")).unwrap()).unwrap();
    let case = &golden["cases"][0];
    let found = succeed_json([
        "score",
        engine(),
        "--json",
        "--activations",
        "f32",
        "--text",
        case["text"].as_str().unwrap(),
    ]);
    assert_eq!(found["token_ids"], case["input_ids"]);
    let numbers = |value: &Value| -> Vec<f64> {
        value.as_array().unwrap().iter().map(|n| n.as_f64().unwrap()).collect()
    };
    let (logits, expected) = (numbers(&found["last_logits"]), numbers(&case["last_logits_f32"]));
    let norm = |values: &[f64]| values.iter().map(|v| v * v).sum::<f64>().sqrt();
    let difference: Vec<f64> = logits.iter().zip(&expected).map(|(a, b)| a - b).collect();
    assert!(norm(&difference) / norm(&expected) < 2e-2);
    assert!((found["nll"].as_f64().unwrap() - case["nll_of_prompt"].as_f64().unwrap()).abs() < 2e-2);
    let ids: Vec<String> = case["input_ids"].as_array().unwrap().iter().map(Value::to_string).collect();
    let by_ids =
        succeed_json(["score", engine(), "--json", "--activations", "f32", "--token-ids", &ids.join(",")]);
    assert_eq!(by_ids, found);
}

#[test]
fn perplexity_is_e_to_the_mean_negative_log_likelihood() {
    let folder = tempfile::tempdir().unwrap();
    let corpus = folder.path().join("corpus.txt");
    fs::write(&corpus, "pick the red cup and go to the lab. ".repeat(20)).unwrap();
    let found = succeed_json([
        OsStr::new("score"),
        engine().as_ref(),
        "--json".as_ref(),
        "--perplexity".as_ref(),
        corpus.as_ref(),
    ]);
    let (nll, perplexity) = (found["nll"].as_f64().unwrap(), found["perplexity"].as_f64().unwrap());
    assert!((nll.exp() / perplexity - 1.0).abs() < 1e-9);
    fs::write(&corpus, b"good \xff bad").unwrap();
    fail(
        [OsStr::new("score"), engine().as_ref(), "--perplexity".as_ref(), corpus.as_ref()],
        1,
        &["not UTF-8 at byte 5"],
    );
}

#[test]
fn generate_prints_the_json_that_scripts_rely_on() {
    let found = succeed_json([
        "generate",
        engine(),
        "--prompt",
        "pick the red cup",
        "--raw",
        "--max-tokens",
        "6",
        "--json",
    ]);
    let keys: Vec<&str> = found.as_object().unwrap().keys().map(String::as_str).collect();
    let expected = [
        "status",
        "text",
        "token_ids",
        "prompt_token_ids",
        "finish_reason",
        "defaulted_fields",
        "timings_ms",
        "decode_tok_s",
        "speculation",
    ];
    assert_eq!(keys, expected);
    let timings: Vec<&str> = found["timings_ms"].as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(timings, ["queue", "prefill", "ttft", "total", "deadline"]);
    assert_eq!((&found["status"], &found["finish_reason"]), (&json!("complete"), &json!("length")));
    assert_eq!(found["token_ids"].as_array().unwrap().len(), 6);
    assert_eq!(found["speculation"], Value::Null);
}

#[test]
fn a_seed_repeats_an_answer_and_a_stop_string_ends_it() {
    let sample = |seed: &str| {
        succeed_json([
            "generate",
            engine(),
            "--prompt",
            "hello",
            "--temperature",
            "1.5",
            "--seed",
            seed,
            "--max-tokens",
            "12",
            "--json",
        ])["token_ids"]
            .clone()
    };
    assert_eq!(sample("7"), sample("7"));
    assert_ne!(sample("7"), sample("8"));
    let args =
        ["generate", engine(), "--prompt", "pick the red cup", "--raw", "--max-tokens", "20", "--json"];
    let whole = succeed_json(args)["text"].as_str().unwrap().to_owned();
    let stop: String = whole.chars().skip(4).take(3).collect();
    let cut = succeed_json(args.into_iter().chain(["--stop", &stop]));
    assert_eq!(cut["finish_reason"], "stop");
    assert_eq!(cut["text"].as_str().unwrap(), &whole[..whole.find(&stop).unwrap()]);
}

#[test]
fn a_deadline_cuts_an_answer_and_one_of_zero_is_rejected() {
    let long = [
        "generate",
        engine(),
        "--prompt",
        "tell me everything",
        "--temperature",
        "2",
        "--json",
        "--deadline",
    ];
    let found = succeed_json(long.into_iter().chain(["30ms", "--max-tokens", "100000"]));
    assert!(["truncated_at_deadline", "complete"].contains(&found["status"].as_str().unwrap()), "{found}");
    let output = takt(long.into_iter().chain(["0ms"]));
    assert_eq!(output.status.code(), Some(1));
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(found["status"], "rejected");
    assert!(found["reason"].as_str().unwrap().contains("deadline"));
}

#[test]
fn a_prompt_longer_than_the_context_is_rejected() {
    let prompt = "pick the red cup ".repeat(4000);
    fail(["generate", engine(), "--prompt", &prompt], 1, &["rejected", "does not fit a lane"]);
    let ids = vec!["1"; 60_000].join(",");
    fail(["score", engine(), "--token-ids", &ids], 1, &["60000 tokens", "the model was made for"]);
    fail(["score", engine(), "--token-ids", "1,99999999"], 1, &["99999999"]);
}

#[test]
fn wrong_usage_has_exit_status_2() {
    for args in [
        vec!["generate", engine()],
        vec!["generate", engine(), "--prompt", "a", "--deadline", "200"],
        vec!["score", engine()],
        vec!["nonsense"],
        vec!["build", "a", "-o", "b", "--weights", "fp3"],
        vec!["inspect", engine(), "--ros-args", "-r", "__node:=a"],
    ] {
        fail(args, 2, &[]);
    }
    fail(["generate", engine(), "--prompt", "a", "--schema", "s.json", "--choice", "b"], 2, &["--choice"]);
    fail(["generate", engine(), "--prompt", "a", "--closing", "minimal"], 2, &["--schema"]);
    fail(
        ["build", "a", "-o", "b", "--for", "sm_87,sm_86"],
        2,
        &["\"sm_86\"", "sm_87 (Orin)", "sm_110a (Thor)"],
    );
    fail(["generate", engine(), "--prompt", "a", "--backend", "cuda"], 1, &["cuda"]);
    let on_gpu =
        ["bench", "--shape", "qwen3-0.6b", "--speculation", "--profile", "fair", "--backend", "cuda"];
    fail(on_gpu, 2, &["--shape", "CPU only"]);
    fail(["serve", "--ros-args", "-p", "a"], 2, &["-p a", "NAME:=VALUE expected"]);
    fail(["serve", "--ros-args", "--nonsense"], 2, &["--nonsense", "--params-file"]);
    fail(["ask", "a", "--ros-args", "-p", "engine.lanes:=1"], 2, &["takt serve"]);
    fail(["serve", "--ros-args", "-p", "engine.lane:=1"], 1, &["did you mean `engine.lanes`?"]);
}

#[cfg(unix)]
#[test]
fn arguments_and_files_that_are_not_utf8_are_refused() {
    use std::os::unix::ffi::OsStrExt as _;
    let broken = OsStr::from_bytes(b"pick \xff cup");
    fail([OsStr::new("generate"), engine().as_ref(), "--prompt".as_ref(), broken], 2, &["UTF-8"]);
    let folder = tempfile::tempdir().unwrap();
    let chat = folder.path().join("chat.json");
    fs::write(&chat, b"[{\"role\": \"user\", \"content\": \"\xff\"}]").unwrap();
    fail([OsStr::new("generate"), engine().as_ref(), "--chat".as_ref(), chat.as_ref()], 1, &["chat.json"]);
    fs::write(&chat, b"[]").unwrap();
    fail([OsStr::new("generate"), engine().as_ref(), "--chat".as_ref(), chat.as_ref()], 1, &["no messages"]);
}

#[test]
fn bench_measures_what_its_contract_names() {
    let found =
        succeed_json(["bench", engine(), "--json", "--prompt-len", "16", "--tokens", "8", "--threads", "1"]);
    for key in [
        "load_s",
        "engine_bytes",
        "kv_bytes",
        "peak_rss_bytes",
        "peak_ratio",
        "prefill_tok_s",
        "decode_tok_s",
        "ttft_ms",
        "weight_bytes_per_token",
        "read_bandwidth_gb_s",
        "bandwidth_share",
        "threads",
    ] {
        assert!(found[key].as_f64().is_some_and(|number| number > 0.0), "{key}: {}", found[key]);
    }
    for key in ["p50", "p99", "max"] {
        assert!(found["itl_ms"][key].as_f64().is_some_and(|number| number > 0.0));
    }
    assert!(found["backend"] == "cpu" && found["device"].is_string());
    fail(["bench", "--shape", "gpt-9"], 1, &["qwen3-0.6b"]);
}

#[test]
fn bench_ros_counts_every_question_and_measures_every_door() {
    let folder = tempfile::tempdir().unwrap();
    let plot = folder.path().join("ros.svg").display().to_string();
    let found =
        succeed_json(["bench", "--ros", engine(), "--fast", "--json", "--threads", "1", "--plot", &plot]);
    let rows = |name: &str| found[name].as_array().unwrap().clone();
    let count = |row: &Value, name: &str| row[name].as_u64().unwrap_or_else(|| panic!("{name} in {row}"));
    let mut num_sent = count(&found["load"], "sent");
    let (mut trips, mut decisions) = (Vec::new(), Vec::new());
    for row in rows("round_trips") {
        assert_eq!(
            count(&row, "sent"),
            count(&row, "complete") + count(&row, "otherwise") + count(&row, "lost")
        );
        num_sent += count(&row, "sent");
        trips.push(format!("{} {}", row["door"].as_str().unwrap(), row["node"].as_str().unwrap()));
        for times in ["round_trip_ms", "in_node_ms", "overhead_ms"] {
            let [p50, p99, max] = ["p50", "p99", "max"].map(|name| row[times][name].as_f64().unwrap());
            assert!(0.0 < p50 && p50 <= p99 && p99 <= max, "{row}");
        }
    }
    assert_eq!(
        trips,
        ["topic idle", "service idle", "action idle", "topic busy", "service busy", "action busy"]
    );
    for row in rows("decisions") {
        assert_eq!(
            count(&row, "sent"),
            count(&row, "decided") + count(&row, "otherwise") + count(&row, "lost")
        );
        assert_eq!(count(&row, "otherwise"), 0, "{row}");
        let decision = row["decision"].as_str().unwrap();
        num_sent += if decision == "refused" { count(&row, "sent") } else { 0 };
        decisions.push(format!(
            "{} {decision} {}",
            row["door"].as_str().unwrap(),
            row["node"].as_str().unwrap()
        ));
    }
    for node in ["idle", "busy"] {
        for decision in ["topic refused", "service refused", "action refused", "action accepted"] {
            assert!(decisions.contains(&format!("{decision} {node}")), "{decisions:?}");
        }
    }
    for row in rows("control_loop") {
        assert_eq!(count(&row, "ticks") + count(&row, "missed"), 30, "{row}");
        assert_eq!(count(&row, "asked"), count(&row, "answered") + count(&row, "lost"));
        num_sent += count(&row, "asked");
    }
    let messages = &found["messages"];
    assert_eq!((count(messages, "sent"), count(messages, "lost")), (num_sent, 0));
    assert_eq!(count(messages, "answered"), num_sent);
    assert!(found["node"]["worker"]["policy"].as_str().unwrap().starts_with("SCHED_"));
    assert!(found["machine"]["cores"].as_u64().unwrap() > 0 && found["load"]["lanes"].as_u64().unwrap() > 0);
    assert!(fs::read_to_string(&plot).unwrap().starts_with("<svg"));
    fail(["bench", "--fast", engine()], 2, &["--ros"]);
    fail(["bench", "--ros", engine(), "--deadlines"], 2, &["--deadlines"]);
    fail(["bench", "--ros", engine(), "--config", "no.toml"], 1, &["no.toml"]);
}

#[test]
fn an_unknown_configuration_key_is_refused_with_a_suggestion_and_print_config_shows_origins() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("robot.toml");
    fs::write(&file, "[engine]\nlanes = 2\n").unwrap();
    let path = file.display().to_string();
    let printed = succeed(["serve", "--config", &path, "--threads", "3", "--print-config"]);
    assert!(printed.contains("robot.toml:2") && printed.contains("command line --threads"), "{printed}");
    fs::write(&file, "[scheduler]\nqueue_len = 2\nreply_margin_u = 5\n").unwrap();
    fail(
        ["serve", "--config", &path, "--print-config"],
        1,
        &["robot.toml:3", "did you mean `reply_margin_us`?"],
    );
    fail(["serve", "--config", "no.toml", "--print-config"], 1, &["no.toml"]);
}

#[test]
fn what_ros2_launch_passes_to_serve_is_seen_in_its_configuration() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("launch_params_1");
    let text = "/arm/left:\n  ros__parameters:\n    engine.lanes: 2\n    realtime.cores: !!python/tuple\n    - 0\n    use_sim_time: true\n";
    std::fs::write(&file, text).unwrap();
    let file = file.to_str().unwrap();
    let launch =
        ["serve", "--print-config", "--ros-args", "--log-level", "info", "--ros-args", "-r", "__node:=left"];
    let rest =
        ["-r", "__ns:=/arm", "--params-file", file, "-r", "~/ask:=/question", "-p", "scheduler.queue_len:=8"];
    let printed = succeed(launch.iter().chain(&rest));
    for line in [
        "node_name = \"left\"".to_owned(),
        "namespace = \"/arm\"".to_owned(),
        "use_sim_time = true".to_owned(),
        format!("# --params-file {file}:3; requests that advance together"),
        "cores = [0]".to_owned(),
        "# -p scheduler.queue_len; requests that may wait".to_owned(),
    ] {
        assert!(printed.contains(&line), "{line:?} not in {printed}");
    }
    fail(["serve", "--ros-args", "--params-file", "no.yaml"], 2, &["no.yaml: cannot be read"]);
}

#[test]
fn doctor_names_what_it_looked_at() {
    let found = succeed_json(["doctor", "--json"]);
    let topics: Vec<&str> =
        found["findings"].as_array().unwrap().iter().map(|f| f["topic"].as_str().unwrap()).collect();
    for topic in ["cpu", "simd", "memory", "gpu", "ros 2", "loopback"] {
        assert!(topics.contains(&topic), "{topic} not in {topics:?}");
    }
}

#[test]
fn a_served_engine_answers_over_ros_2_and_a_second_node_of_the_name_may_not_start() {
    let serve = ["serve", "--engine", engine(), "--ros-args", "-r", "__node:=cli_test"];
    let mut node = Node::start(&serve);
    let ask = [
        "ask",
        "pick the red cup",
        "--node",
        "cli_test",
        "--max-tokens",
        "5",
        "--deadline",
        "20s",
        "--wait",
        "30s",
        "--json",
    ];
    let asked = on_loopback(&ask).output().unwrap();
    assert!(asked.status.success(), "{}", stderr(&asked));
    let reply: Value = serde_json::from_slice(&asked.stdout).unwrap();
    assert_eq!((&reply["status"], &reply["num_tokens"]), (&json!("complete"), &json!(5)));
    let second = on_loopback(&serve).output().unwrap();
    assert_eq!(second.status.code(), Some(1));
    assert!(stderr(&second).contains("already running"), "{}", stderr(&second));
    // SIGTERM ends it in order.
    assert!(Command::new("kill").args(["-TERM", &node.0.id().to_string()]).status().unwrap().success());
    let patience = Instant::now() + Duration::from_secs(20);
    let status = loop {
        match node.0.try_wait().unwrap() {
            Some(status) => break status,
            None => assert!(Instant::now() < patience, "the node does not end"),
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    assert!(status.success(), "{status}");
}
