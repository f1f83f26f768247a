//! Plans run by the binary, computed by an interpreter: what it answers and scores through one, and what it says when that fails.

use std::{
    fs,
    io::ErrorKind,
    os::unix::net::UnixDatagram,
    path::{Path, PathBuf},
    process::Stdio,
    sync::LazyLock,
    time::Duration,
};

use serde_json::{Value, json};

use super::machine::{Machine, demo};
use crate::{emulator::driver::Report, harness::*};

/// Tokens of a lane, and most of an answer.
const CONTEXT: usize = 128;
const MAX_TOKENS: &str = "48";
const NUM_LANES: usize = 2;

/// The shipped model with a plan, as one command builds both. Plans are of a release and a GPU: that of every [`Machine`].
static DEMO: LazyLock<Option<(Machine, String)>> = LazyLock::new(|| {
    let machine = Machine::new()?;
    let (source, dir) = (demo().display().to_string(), machine.path("demo"));
    let (lanes, context) = (NUM_LANES.to_string(), CONTEXT.to_string());
    let args = ["build", &source, "-o", &dir, "--weights", "int4", "--tensorrt", "--json"];
    let built = machine.succeed(&[&args[..], &["--plan-lanes", &lanes, "--plan-context", &context]].concat());
    assert_eq!(built["plans"]["plans"].as_array().unwrap().len(), 1);
    Some((machine, dir))
});

/// The engine, and a machine that runs it.
fn running() -> Option<(Machine, &'static str)> {
    Some((Machine::running()?, &DEMO.as_ref()?.1))
}

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
        let answer = serde_json::from_str(&word("answer")).unwrap();
        Self { system: word("system"), user: word("user"), answer }
    }

    /// `takt generate` of it.
    fn asked<'a>(&'a self, engine: &'a str, backend: &'a str) -> Vec<&'a str> {
        let head =
            ["generate", engine, "--backend", backend, "--system", &self.system, "--prompt", &self.user];
        [&head[..], &["--max-context", "100", "--max-tokens", MAX_TOKENS, "--json"]].concat()
    }
}

/// How often a plan was run, as the stand-in recorded it.
fn num_runs(record: &str) -> usize {
    fs::read_to_string(record).unwrap().lines().filter(|call| call.contains("::enqueueV3(")).count()
}

#[test]
fn an_engine_answers_and_scores_through_its_plan_as_on_the_processor() {
    let Some((mut machine, dir)) = running() else { return };
    let record = machine.path("record");
    machine.set("STANDIN_RECORD", &record);
    let line = Line::read(0);
    let expected = succeed_json(line.asked(dir, "cpu"));
    assert_eq!(serde_json::from_str::<Value>(expected["text"].as_str().unwrap()).unwrap(), line.answer);
    let found = machine.succeed(&line.asked(dir, "tensorrt"));
    assert_eq!((&found["text"], &found["token_ids"]), (&expected["text"], &expected["token_ids"]));
    assert_eq!(found["status"], "complete");
    assert!(num_runs(&record) > 0, "a plan it was, and not the processor");

    let args = |backend| ["score", dir, "--text", &line.user, "--json", "--backend", backend];
    let nll = |scored: Value| scored["nll"].as_f64().unwrap();
    let (found, expected) = (nll(machine.succeed(&args("tensorrt"))), nll(succeed_json(args("cpu"))));
    assert!((found - expected).abs() < 5e-2, "{found}, on the processor {expected}");
}

#[test]
fn a_plan_without_newer_operators_answers_as_on_the_processor() {
    let Some((machine, dir)) = running() else { return };
    let copy = copy_of_engine(dir, &machine.path("primitives"));
    let args = ["build", &copy, "--tensorrt", "--plans-only", "--plan-form", "primitives", "--json"];
    let built = machine.succeed(&[&args[..], &["--plan-lanes", "1", "--plan-context", "100"]].concat());
    assert_eq!(built["plans"]["plans"][0]["form"], "primitives");
    assert_eq!(machine.succeed(&["inspect", &copy, "--json"])["plans"][0]["form"], "primitives");
    let line = Line::read(1);
    let expected = succeed_json(line.asked(dir, "cpu"));
    let found = machine.succeed(&line.asked(&copy, "tensorrt"));
    assert_eq!((&found["text"], &found["token_ids"]), (&expected["text"], &expected["token_ids"]));
    assert_eq!(serde_json::from_str::<Value>(found["text"].as_str().unwrap()).unwrap(), line.answer);
}

#[test]
fn a_plan_with_quantized_activations_answers_and_its_scores_say_what_they_cost() {
    let Some((machine, int4)) = running() else { return };
    let (source, dir) = (demo().display().to_string(), machine.path("fp8"));
    let build = ["build", &source, "-o", &dir, "--weights", "fp8", "--json"];
    succeed_json(build);
    let (lanes, context) = (NUM_LANES.to_string(), CONTEXT.to_string());
    let line = Line::read(0);
    let scored = |backend: &str| {
        let scored = machine.succeed(&["score", &dir, "--text", &line.user, "--json", "--backend", backend]);
        scored["nll"].as_f64().unwrap()
    };
    let on_the_processor = scored("cpu");
    let mut found = Vec::new();
    for activations in ["plain", "quantized"] {
        let args = ["build", &dir, "--tensorrt", "--plans-only", "--plan-activations", activations, "--json"];
        let built =
            machine.succeed(&[&args[..], &["--plan-lanes", &lanes, "--plan-context", &context]].concat());
        assert_eq!(built["plans"]["plans"][0]["activations"], activations);
        assert_eq!(machine.succeed(&["inspect", &dir, "--json"])["plans"][0]["activations"], activations);
        let text = machine.takt(&["inspect", &dir], &[]);
        let text = String::from_utf8(text.stdout).unwrap();
        assert!(text.contains(&format!(", activations {activations}, ")), "{text}");
        found.push(scored("tensorrt"));
    }
    let [plain, quantized] = found[..] else { panic!("{found:?}") };
    assert!((plain - on_the_processor).abs() < 5e-2, "{plain}, on the processor {on_the_processor}");
    // Other products, and not far from those of 16 bits: 9.43 nats a token and 9.54 (2026-11-23).
    assert!(plain != quantized && (quantized - plain).abs() < 0.2, "{plain} and {quantized}");
    let answered = machine.succeed(&line.asked(&dir, "tensorrt"));
    assert_eq!(serde_json::from_str::<Value>(answered["text"].as_str().unwrap()).unwrap(), line.answer);

    // Where nothing would be quantized nothing is built.
    let bf16 = machine.engine();
    let args = ["build", &bf16, "--tensorrt", "--plans-only", "--plan-activations", "quantized"];
    // TensorRT has 4-bit floats from 10.8 on.
    let works = if machine.version < (10, 8, 0) { "--weights fp8" } else { "--weights nvfp4 or fp8" };
    machine.fail(&args, &[], &["layers in bf16", works, "--plan-activations"]);
    // Of INT4 weights the output head alone has such products.
    let args =
        ["build", &copy_of_engine(int4, &machine.path("int4")), "--tensorrt", "--plans-only", "--json"];
    let built = machine.succeed(&[&args[..], &["--plan-activations", "quantized"]].concat());
    assert!(
        built["plans"]["warnings"][0].as_str().unwrap().contains("int4 weights are multiplied with plain"),
        "{built}"
    );
}

/// A checkpoint with the architecture of the fixture and other numbers.
pub(super) fn tuned(machine: &Machine) -> String {
    let checkpoint = machine.path("tuned-checkpoint");
    fs::create_dir(&checkpoint).unwrap();
    for entry in fs::read_dir(fixture("hf/tiny-llama")).unwrap() {
        let from = entry.unwrap().path();
        let mut bytes = fs::read(&from).unwrap();
        if from.extension().is_some_and(|extension| extension == "safetensors") {
            let header = 8 + usize::try_from(u64::from_le_bytes(bytes[..8].try_into().unwrap())).unwrap();
            // Signs of some numbers.
            bytes[header..].iter_mut().skip(3).step_by(8).for_each(|byte| *byte ^= 0x80);
        }
        fs::write(Path::new(&checkpoint).join(from.file_name().unwrap()), bytes).unwrap();
    }
    checkpoint
}

#[test]
fn a_plan_that_takes_other_weights_runs_with_those_of_a_tuned_model_without_being_built_again() {
    let Some(mut machine) = Machine::running() else { return };
    let record = machine.path("record");
    let (source, base, new) =
        (fixture("hf/tiny-llama").display().to_string(), machine.path("base"), machine.path("new"));
    let build = ["--weights", "bf16", "--tensorrt", "--json"];
    let args = [
        &["build", &source, "-o", &base][..],
        &build,
        &["--plan-refit", "--plan-lanes", "2", "--plan-context", "64"],
    ];
    let built = machine.succeed(&args.concat());
    let plan = &built["plans"]["plans"][0];
    assert_eq!((&plan["refittable"], plan["profiles"].as_array().unwrap().len()), (&json!(true), 1));
    let text = String::from_utf8(machine.takt(&["inspect", &base], &[]).stdout).unwrap();
    assert!(text.contains("takes other weights"), "{text}");

    machine.set("STANDIN_RECORD", &record);
    let checkpoint = tuned(&machine);
    let refitted = [&["build", &checkpoint, "-o", &new][..], &build, &["--plan-refit-from", &base]].concat();
    // What fails leaves no engine.
    let failing = ("STANDIN_FAIL", "IRefitter::refitCudaEngine:1");
    machine.fail(
        &refitted,
        &[failing],
        &["plan of the decoder", "giving the plan weights failed", "without --plan-refit-from"],
    );
    assert!(!Path::new(&new).exists());
    let built = machine.succeed(&refitted);
    let plan = &built["plans"]["plans"][0];
    assert_eq!(
        (&plan["timing_cache"], &plan["lanes"], &plan["lane_capacity"]),
        (&json!("refitted"), &json!(2), &json!(64))
    );
    let calls = fs::read_to_string(&record).unwrap();
    assert!(calls.contains("::refitCudaEngine(") && !calls.contains("buildSerializedNetwork("), "{calls}");
    assert_eq!(machine.succeed(&["inspect", &new, "--json"])["plans"][0]["runs_here"], true);

    let scored = |dir: &str, backend: &str| {
        let args = ["score", dir, "--token-ids", "1,5,9,17,33,3,8", "--json", "--backend", backend];
        machine.succeed(&args)["nll"].as_f64().unwrap()
    };
    let [base_cpu, base_plan, new_cpu, new_plan] =
        [(&base, "cpu"), (&base, "tensorrt"), (&new, "cpu"), (&new, "tensorrt")]
            .map(|(dir, backend)| scored(dir, backend));
    let is_near = |a: f64, b: f64| (a - b).abs() < 5e-2;
    assert!(
        is_near(base_cpu, base_plan) && is_near(new_cpu, new_plan),
        "{base_cpu} {base_plan} {new_cpu} {new_plan}"
    );
    assert!(!is_near(base_plan, new_plan), "{base_plan} {new_plan}: other weights say something else");

    // A model of another kind, and a plan that takes none.
    let (other, dir) = (fixture("hf/tiny-qwen3").display().to_string(), machine.path("other"));
    let args = [&["build", &other, "-o", &dir][..], &build, &["--plan-refit-from", &base]].concat();
    machine.fail(&args, &[], &["another architecture", "without --plan-refit-from"]);
    machine.succeed(&["build", &base, "--tensorrt", "--plans-only", "--json"]);
    let args = ["build", &new, "--tensorrt", "--plans-only", "--plan-refit-from", &base];
    machine.fail(&args, &[], &["takes no other weights", "--plan-refit`"]);
}

/// An engine without its plans.
fn copy_of_engine(dir: &str, to: &str) -> String {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            fs::copy(&path, Path::new(to).join(path.file_name().unwrap())).unwrap();
        }
    }
    to.to_owned()
}

#[test]
fn a_file_is_scored_in_windows_of_what_a_lane_of_the_plan_holds() {
    let Some((machine, dir)) = running() else { return };
    let corpus = machine.path("corpus.txt");
    fs::write(&corpus, "pick the red cup and go to the lab. ".repeat(20)).unwrap();
    let chunk = CONTEXT.to_string();
    let args = ["score", dir, "--perplexity", &corpus, "--json", "--backend"];
    let found = machine.succeed(&[&args[..], &["tensorrt"]].concat());
    let expected = succeed_json([&args[..], &["cpu", "--chunk", &chunk]].concat());
    assert!(found["num_tokens"].as_u64() > Some(CONTEXT as u64), "{found}");
    assert_eq!(found["num_predicted"], expected["num_predicted"]);
    let nll = |scored: &Value| scored["nll"].as_f64().unwrap();
    assert!((nll(&found) - nll(&expected)).abs() < 5e-2, "{found}, on the processor {expected}");
    // Other windows are other numbers of predicted tokens.
    let whole = succeed_json([&args[..], &["cpu"]].concat());
    assert_ne!(found["num_predicted"], whole["num_predicted"]);
}

#[test]
fn when_tensorrt_or_the_gpu_fails_there_is_an_error_that_says_so_and_no_answer() {
    let Some((mut machine, dir)) = running() else { return };
    let line = Line::read(0);
    let args = line.asked(dir, "tensorrt");
    for (with, words) in [
        (
            ("STANDIN_FAIL", "IRuntime::deserializeCudaEngine:1"),
            &["loading the plan failed", "Error Code", "--tensorrt --plans-only` builds the plan again"][..],
        ),
        (
            ("STANDIN_FAIL", "IRuntime::deserializeCudaEngine:1:oom"),
            &["loading the plan: out of memory", "--plan-context"],
        ),
        (("STANDIN_FAIL", "ICudaEngine::createExecutionContext:1"), &["creating an execution failed"]),
        (("STANDIN_FAIL", "IExecutionContext::setInputShape:1"), &["setting a shape failed", "input "]),
        (("STANDIN_FAIL", "IExecutionContext::enqueueV3:1"), &["running the plan failed", "told to fail"]),
        (("TAKT_EMULATED_FAIL_LAUNCH", "1"), &["the device failed", "LAUNCH_FAILED"]),
        (("TAKT_EMULATED_FAIL_ALLOCATION", "1"), &["no device memory"]),
        (("TAKT_EMULATED_MEMORY_BYTES", "9000000"), &["9000000", "use fewer or shorter lanes"]),
    ] {
        machine.fail(&args, &[with], words);
    }
    assert_eq!(machine.faults(), "");
    // In the midst of an answer, whose last tokens are a kernel each: what is measured before it is counted, not timed.
    let path = machine.path("report");
    machine.set("TAKT_EMULATED_REPORT", &path);
    machine.succeed(&args);
    let num_launches = Report::read(&fs::read_to_string(&path).unwrap()).value("launches");
    let output = machine.takt(&args, &[("TAKT_EMULATED_FAIL_LAUNCH", &(num_launches - 4).to_string())]);
    let reply: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((output.status.code(), &reply["status"]), (Some(1), &json!("failed")), "{reply}");
    assert!(reply["text"].as_str().unwrap().starts_with("{\"skill\":"), "{reply}");
    assert!(reply["reason"].as_str().unwrap().contains("the device failed"), "{reply}");
    assert!(stderr(&output).contains("the device failed"), "{}", stderr(&output));
}

#[test]
fn a_run_that_cannot_be_computed_is_a_fault_that_the_stand_in_writes_down() {
    let Some((machine, dir)) = running() else { return };
    let line = Line::read(0);
    let with = [("STANDIN_EXECUTOR_FAIL", "2")];
    machine.fail(&line.asked(dir, "tensorrt"), &with, &["running the plan failed", "this run was to fail"]);
    assert_eq!(machine.faults(), "the executor failed with 1: this run was to fail\n");
}

#[test]
fn a_node_serves_through_a_plan_with_the_lanes_that_the_plan_has() {
    let Some((machine, dir)) = running() else { return };
    let (config, log) = (machine.path("robot.toml"), PathBuf::from(machine.path("log")));
    // More and longer lanes than the plan's, and a part of the GPU that it was not timed on.
    fs::write(&config, "[engine]\nbackend = \"tensorrt\"\nlanes = 4\nmax_context = 200\n").unwrap();
    let manager = UnixDatagram::bind(machine.path("notify")).unwrap();
    manager.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
    let named = ["--ros-args", "-r", "__node:=plan_test"];
    let mut command = on_loopback(&[&["serve", "--engine", dir, "--config", &config][..], &named].concat());
    machine.lend(&mut command);
    command.env("NOTIFY_SOCKET", machine.path("notify")).env_remove("WATCHDOG_USEC").env_remove("RUST_LOG");
    let stderr_of = fs::File::create(&log).unwrap();
    let _node = Node(command.stdout(Stdio::null()).stderr(stderr_of).spawn().unwrap());
    let read = |path: &Path| fs::read_to_string(path).unwrap();
    // The node's next word to its service manager.
    let hear = || {
        let mut buffer = [0; 512];
        loop {
            match manager.recv(&mut buffer) {
                Ok(len) => return String::from_utf8_lossy(&buffer[..len]).into_owned(),
                // A wait with a limit ends with any signal.
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => panic!("{error}: {}", read(&log)),
            }
        }
    };
    assert!(hear().starts_with("STATUS=opening "));
    let ready = hear();
    assert!(ready.starts_with("READY=1\n"), "{ready}\n{}", read(&log));

    let line = Line::read(0);
    let question = ["ask", &line.user, "--system", &line.system, "--json", "--wait", "30s"];
    let output =
        on_loopback(&[&question[..], &["--max-tokens", MAX_TOKENS], &named].concat()).output().unwrap();
    assert!(output.status.success(), "{}{}", stderr(&output), read(&log));
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(serde_json::from_str::<Value>(answer["text"].as_str().unwrap()).unwrap(), line.answer);
    let log = read(&log);
    for words in [
        format!("lanes 4: the TensorRT plan has {NUM_LANES}"),
        format!("max_context 200: lanes of the TensorRT plan hold {CONTEXT} tokens"),
        "--plan-sm-share".into(),
    ] {
        assert!(log.contains(&words), "{words:?} not in {log}");
    }
    assert_eq!(machine.faults(), "");
}
