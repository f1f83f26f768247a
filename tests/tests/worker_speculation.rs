//! Speculation through the worker, with the demo model and its own head: whatever happens to a request, its answer is the one plain decoding
//! gives, token for token.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, LazyLock, atomic::Ordering},
    time::Duration,
};

use serde_json::{Value, json};
use takt_engine::{
    engine::{Engine, EngineOptions},
    grammar::{ClosingPolicy, GrammarSpec},
    quant::WeightKind,
    sampler::SamplingParams,
    text::Text,
};
use takt_engine_builder::{BuildOptions, build, draft::DraftOptions};
use takt_node::{
    bench::forms::Judge,
    clock::Clock as _,
    request::{Form, Prompt, Reply, Status},
    scheduler::class::Class,
    worker::{Drafting, Opened, Turn, Worker, WorkerOptions},
};
use takt_tests::{
    checkpoint::fixtures,
    heldout,
    lister::Lister,
    worker_bench::{Bench, Demand, finish},
};

const MS: Duration = Duration::from_millis(1);

fn models() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/takt-demo")
}

/// The demo model with its head, measured at the build; and a fixture with a head that knows nothing.
static ENGINES: LazyLock<tempfile::TempDir> = LazyLock::new(|| {
    let folder = tempfile::tempdir().unwrap();
    let tiny = fixtures().join("hf/tiny-llama");
    for (name, source, head) in [
        ("demo", models(), models().join("eagle3")),
        ("random", tiny, fixtures().join("eagle3/tiny-llama-midlayer")),
    ] {
        let draft = Some(DraftOptions { folder: &head, prompts: None, measures: true });
        let options = BuildOptions { draft, ..BuildOptions::new(WeightKind::Nvfp4) };
        build(&source, &folder.path().join(name), &options, &mut |_| {}).unwrap();
    }
    folder
});

fn bench(engine: &str, num_lanes: usize, drafting: Drafting) -> Bench {
    bench_with_rows(engine, num_lanes, drafting, None)
}

fn bench_with_rows(engine: &str, num_lanes: usize, drafting: Drafting, lister: Option<Lister>) -> Bench {
    let options = EngineOptions {
        threads: Some(1),
        num_lanes,
        lane_capacity: Some(256),
        max_step_tokens: 96,
        speculation: drafting == Drafting::Head,
        ..EngineOptions::default()
    };
    let worker = WorkerOptions { drafting, ..WorkerOptions::default() };
    Bench::with_rows(&ENGINES.path().join(engine), &options, &worker, lister)
}

/// Held-out sentences, as the demo asks them.
fn demands(stride: usize) -> Vec<Demand> {
    let lines = heldout::read(&models().join("eval/heldout.jsonl"), stride).unwrap();
    lines
        .into_iter()
        .map(|line| {
            let system = line.system.map(|text| ("system".to_owned(), text));
            let messages = system.into_iter().chain([("user".to_owned(), line.user)]).collect();
            Demand { prompt: Prompt::Chat(messages), max_tokens: 48, ..Demand::raw("") }
        })
        .collect()
}

/// Answers all `demands`, as many at once as wait.
fn answers(bench: &mut Bench, demands: &[Demand]) -> Vec<Reply> {
    let mut replies = Vec::new();
    for group in demands.chunks(6) {
        let receivers: Vec<_> = group.iter().map(|demand| bench.ask(demand.clone()).1).collect();
        bench.run_until_idle();
        for receiver in receivers {
            let (reply, streamed) = finish(&receiver);
            assert_eq!(reply.text, streamed);
            replies.push(reply);
        }
    }
    replies
}

/// What must not differ.
fn said(replies: &[Reply]) -> Vec<(Status, &str, &[u32], &str)> {
    let parts = |reply: &'_ Reply| (reply.status, reply.finish_reason);
    replies
        .iter()
        .map(|reply| (parts(reply).0, reply.text.as_str(), reply.token_ids.as_slice(), parts(reply).1))
        .collect()
}

fn accept_len(replies: &[Reply]) -> f64 {
    let counts = replies.iter().filter_map(|reply| reply.speculation);
    let (rounds, accepted) = counts.fold((0, 0), |sum, one| (sum.0 + one.rounds, sum.1 + one.accepted));
    1.0 + accepted as f64 / f64::from(u32::try_from(rounds.max(1)).unwrap())
}

#[test]
fn answers_of_several_lanes_are_the_plain_ones_greedy_and_sampled_with_a_head_and_with_lookup() {
    let mut all = demands(60);
    let sampled = |seed| SamplingParams { temperature: 0.9, top_k: Some(40), top_p: 0.95, min_p: 0.0, seed };
    for (demand, seed) in all.iter_mut().zip(0..) {
        demand.sampling = (seed % 2 == 1).then(|| sampled(seed));
    }
    let plain = answers(&mut bench("demo", 3, Drafting::Off), &all);
    assert!(plain.iter().all(|reply| reply.speculation.is_none()));
    for drafting in [Drafting::Head, Drafting::Lookup] {
        let found = answers(&mut bench("demo", 3, drafting), &all);
        assert_eq!(said(&found), said(&plain), "{drafting:?}");
        let with_rounds = found.iter().filter(|reply| reply.speculation.is_some()).count();
        // Short answers repeat little: what is looked up is seldom worth a round.
        let (least, least_len) = if drafting == Drafting::Head { (all.len() / 2, 3.0) } else { (1, 1.0) };
        let accept_len = accept_len(&found);
        assert!(with_rounds >= least && accept_len > least_len, "{drafting:?}: {with_rounds}, {accept_len}");
    }
}

#[test]
fn stop_strings_short_answers_and_full_lanes_end_a_round_where_they_end_plain_decoding() {
    let mut all = Vec::new();
    for (idx, demand) in demands(120).into_iter().enumerate() {
        let stop = vec![["\",\"", "blue", "e", "}"][idx % 4].to_owned()];
        all.push(Demand { stop, ..demand.clone() });
        all.push(Demand { max_tokens: 1 + idx % 7, ..demand });
    }
    // Lanes that fill up while the answer grows.
    let text = "Battery: 80%. At: workshop. ".repeat(20);
    for cut in [900, 1000, 1100] {
        all.push(Demand { max_tokens: 200, ..Demand::raw(text.get(..cut.min(text.len())).unwrap()) });
    }
    let plain = answers(&mut bench("demo", 2, Drafting::Off), &all);
    let mut speculating = bench("demo", 2, Drafting::Head);
    let found = answers(&mut speculating, &all);
    assert_eq!(said(&found), said(&plain));
    assert!(plain.iter().any(|reply| reply.finish_reason == "length"));
    // Answers of three tokens, many of them: a head is not blamed for what came after their end.
    let short: Vec<Demand> =
        demands(20).into_iter().map(|demand| Demand { max_tokens: 3, ..demand }).collect();
    answers(&mut speculating, &short);
    assert_eq!(speculating.core.desk().no_speculation(), None);
}

fn schema() -> Value {
    json!({
        "type": "object",
        "properties": {
            "skill": {"enum": ["stop", "goto", "pick", "bring", "wait"], "x-takt-safe": true},
            "object": {"type": "string", "maxLength": 16, "default": ""},
        },
        "required": ["skill", "object"],
        "additionalProperties": false,
    })
}

#[test]
fn forms_are_kept_along_every_branch_and_change_no_answer() {
    let form = Some(Form { spec: GrammarSpec::JsonSchema(schema()), closing: ClosingPolicy::Declared });
    let all: Vec<Demand> =
        demands(100).into_iter().map(|demand| Demand { form: form.clone(), ..demand }).collect();
    let plain = answers(&mut bench("demo", 3, Drafting::Off), &all);
    let mut speculating = bench("demo", 3, Drafting::Head);
    let found = answers(&mut speculating, &all);
    assert_eq!(said(&found), said(&plain));
    assert!(found.iter().any(|reply| reply.speculation.is_some()));
    let judge = Judge::new(&schema()).unwrap();
    for reply in &found {
        judge.check(reply.text.as_bytes()).unwrap();
    }
    // Cut at any deadline the answer is valid as well.
    for ms in (4..60).step_by(4) {
        let demand = Demand { allowed: Some(ms * MS), ..all[0].clone() };
        let receiver = speculating.ask(demand).1;
        speculating.run_until_idle();
        let (reply, _) = finish(&receiver);
        if reply.status != Status::Rejected {
            judge.check(reply.text.as_bytes()).unwrap();
        }
    }
}

/// Every second sampled, every fourth without a limit that a list could keep.
fn mixed(demands: &mut [Demand], form: Option<&Form>) {
    for (demand, seed) in demands.iter_mut().zip(0..) {
        let top_k = [Some(40), None][usize::from(seed % 4 == 3)];
        let sampled = SamplingParams { temperature: 0.9, top_k, top_p: 0.95, min_p: 0.0, seed };
        demand.sampling = (seed % 2 == 1).then_some(sampled);
        demand.form = form.cloned();
    }
}

#[test]
fn lists_of_the_likeliest_change_no_answer_and_leave_few_rows_to_be_fetched() {
    let form = Form { spec: GrammarSpec::JsonSchema(schema()), closing: ClosingPolicy::Declared };
    for (form, drafting) in [
        (None, Drafting::Off),
        (None, Drafting::Head),
        (Some(&form), Drafting::Off),
        (Some(&form), Drafting::Head),
    ] {
        let mut all = demands(100);
        mixed(&mut all, form);
        let whole = answers(&mut bench("demo", 3, drafting), &all);
        let lister = Lister::default();
        let counts = lister.counts.clone();
        let listed = answers(&mut bench_with_rows("demo", 3, drafting, Some(lister)), &all);
        assert_eq!(said(&listed), said(&whole), "{drafting:?}, a form: {}", form.is_some());
        let [num_listed, num_fetched] = [0, 1].map(|at: usize| counts[at].load(Ordering::SeqCst));
        let num_tokens: usize = listed.iter().map(|reply| reply.token_ids.len()).sum();
        let unlimited = listed.iter().skip(3).step_by(4);
        let num_unlimited: usize = unlimited.map(|reply| reply.token_ids.len()).sum();
        println!("{drafting:?}: {num_listed} rows listed, {num_fetched} fetched, {num_tokens} tokens");
        assert!(num_listed > num_tokens / 3, "{num_listed} of {num_tokens}");
        match (form, drafting) {
            // Steps without a tree have their whole rows with them.
            (None, Drafting::Off) => assert_eq!(num_fetched, 0),
            (None, _) => assert!(num_fetched > 0 && num_fetched <= num_unlimited, "{num_fetched}"),
            // Of 64 likeliest tokens 40 that are allowed are not always found, one is.
            (Some(_), _) => assert!(num_fetched < num_listed, "{num_fetched} of {num_listed}"),
        }
    }
}

#[test]
fn a_backend_that_chooses_gives_every_answer_and_nobody_fetches_a_row() {
    let form = Form { spec: GrammarSpec::JsonSchema(schema()), closing: ClosingPolicy::Declared };
    for drafting in [Drafting::Off, Drafting::Head] {
        for form in [None, Some(&form)] {
            let mut all = demands(100);
            mixed(&mut all, form);
            if form.is_some() {
                // Beside those that the backend chooses for.
                all.iter_mut().step_by(3).for_each(|demand| demand.form = None);
            }
            let whole = answers(&mut bench("demo", 3, drafting), &all);
            let lister = Lister::choosing();
            let counts = lister.counts.clone();
            let chosen = answers(&mut bench_with_rows("demo", 3, drafting, Some(lister)), &all);
            assert_eq!(said(&chosen), said(&whole), "{drafting:?}, a form: {}", form.is_some());
            let [num_listed, num_fetched] = [0, 1].map(|at: usize| counts[at].load(Ordering::SeqCst));
            assert_eq!((num_listed > 0, num_fetched > 0), (form.is_some(), form.is_some()), "{drafting:?}");
        }
    }
}

#[test]
fn lanes_that_are_taken_away_and_requests_that_are_cancelled_leave_every_other_answer_alone() {
    let all = demands(90);
    let plain = answers(&mut bench("demo", 1, Drafting::Off), &all);
    let mut bench = bench("demo", 2, Drafting::Head);
    for (round, (demand, expected)) in all.iter().zip(&plain).enumerate() {
        // Background work that a control loop takes the lane from, in the middle of its answer, or that is cancelled.
        let (id, background) = bench.ask(Demand { class: Class::Background, ..demand.clone() });
        (0..round % 5).for_each(|_| _ = bench.core.turn().unwrap());
        let urgent: Vec<_> = (0..2).map(|_| bench.ask(demand.clone().promised(900 * MS)).1).collect();
        (0..round % 3).for_each(|_| _ = bench.core.turn().unwrap());
        if round % 4 == 3 {
            bench.core.cancel(id);
        }
        bench.run_until_idle();
        for receiver in urgent {
            let (reply, _) = finish(&receiver);
            assert_eq!((reply.status, &reply.text), (Status::Complete, &expected.text));
        }
        let (reply, _) = finish(&background);
        match reply.status {
            Status::Cancelled => assert!(expected.text.starts_with(&reply.text)),
            status => assert_eq!((status, &reply.text), (Status::Complete, &expected.text)),
        }
        assert_eq!(bench.core.num_free_lanes(), 2);
    }
    assert!(plain.iter().all(|reply| reply.status == Status::Complete));
    assert!(bench.log.num_levels.load(Ordering::SeqCst) > 0);
}

#[test]
fn requests_with_one_system_prompt_share_its_snapshot_and_draft_all_the_same() {
    let system = "Battery: 80%. At: workshop. Gripper: empty. Sees: black wrench, green hammer. Places: lab, workshop.";
    let ask = |user: &str| {
        let messages = [("system", system), ("user", user)];
        let messages = messages.map(|(role, text)| (role.to_owned(), text.to_owned())).into();
        Demand { prompt: Prompt::Chat(messages), max_tokens: 48, ..Demand::raw("") }
    };
    let all =
        ["pick up the black wrench", "bring the green hammer to the lab", "go to the lab", "take the wrench"];
    let all: Vec<Demand> = all.iter().cycle().take(12).map(|user| ask(user)).collect();
    let plain = answers(&mut bench("demo", 2, Drafting::Off), &all);
    let mut bench = bench("demo", 2, Drafting::Head);
    for (demand, expected) in all.iter().zip(&plain) {
        bench.log.reset();
        let receiver = bench.ask(demand.clone()).1;
        bench.run_until_idle();
        let (reply, _) = finish(&receiver);
        assert_eq!(reply.text, expected.text);
        assert!(reply.speculation.is_some(), "{reply:?}");
    }
    // The last ones computed little of their prompts.
    let num_prompt_tokens = plain[0].prompt_token_ids.len();
    assert!(bench.log.num_tokens.load(Ordering::SeqCst) < num_prompt_tokens);
}

#[test]
fn no_promise_is_broken_for_a_round() {
    let mut bench = bench("demo", 3, Drafting::Head);
    let all = demands(30);
    let mut open = Vec::new();
    for (idx, demand) in all.iter().enumerate() {
        let allowed = [40, 90, 25, 300, 60][idx % 5] * MS;
        let asked = bench.clock.now();
        open.push((asked + allowed, bench.ask(demand.clone().promised(allowed)).1));
        (0..idx % 4).for_each(|_| _ = bench.core.turn().unwrap());
    }
    bench.run_until_idle();
    let (mut promised, mut complete) = (0, 0);
    for (_, receiver) in &open {
        let (reply, _) = finish(receiver);
        if reply.is_promised {
            promised += 1;
            assert!(reply.timings.total <= reply.timings.deadline.unwrap(), "{reply:?}");
            assert!(!reply.token_ids.is_empty(), "a first token is promised");
        }
        complete += usize::from(reply.status == Status::Complete);
    }
    assert!(promised > 10 && complete > 10, "{promised} promised, {complete} complete");
}

#[test]
fn a_head_far_below_its_record_is_switched_off_and_the_answers_go_on() {
    // A record that the head, whose weights are random, cannot keep.
    let dir = tempfile::tempdir().unwrap();
    let engine = dir.path().join("engine");
    copy(&ENGINES.path().join("random"), &engine);
    let path = engine.join("draft/draft.json");
    let mut manifest: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    manifest["record"]["acceptance"] = json!([0.9, 0.9, 0.9]);
    replace_listed(&engine, "draft/draft.json", manifest.to_string().as_bytes());
    let options = EngineOptions {
        threads: Some(1),
        num_lanes: 2,
        lane_capacity: Some(128),
        ..EngineOptions::default()
    };
    let ask = |drafting| {
        let worker = WorkerOptions { drafting, ..WorkerOptions::default() };
        let mut bench = Bench::of(&engine, &options, &worker);
        let mut texts = Vec::new();
        for idx in 0..70 {
            let demand = Demand { max_tokens: 80, ..Demand::raw(["the robot", "a cup", "where"][idx % 3]) };
            let receiver = bench.ask(demand).1;
            while bench.core.turn().unwrap() == Turn::Worked {}
            texts.push(finish(&receiver).0.token_ids);
        }
        (texts, bench.core.desk().no_speculation(), bench.log.num_levels.load(Ordering::SeqCst))
    };
    let (found, reason, num_levels) = ask(Drafting::Head);
    let reason = reason.expect("the collapse is noticed");
    assert!(reason.contains('%') && num_levels > 0, "{reason}");
    let (plain, none, _) = ask(Drafting::Off);
    assert_eq!((found, none), (plain, None));
}

#[test]
fn a_node_that_starts_with_a_head_that_no_longer_proposes_as_recorded_says_so_and_decodes_plainly() {
    let dir = tempfile::tempdir().unwrap();
    let started = |engine: PathBuf| {
        let opener = move || {
            let options =
                EngineOptions { threads: Some(1), lane_capacity: Some(256), ..EngineOptions::default() };
            let engine_dir = Engine::open(&engine, &options)?;
            let text = Arc::new(Text::open(&engine)?.unwrap());
            let Engine { backend, manifest, draft, .. } = engine_dir;
            Ok(Opened { backend, text, manifest, draft, costs: None })
        };
        let worker = Worker::spawn(Box::new(opener), WorkerOptions::default()).unwrap();
        let reason = worker.facts().desk.no_speculation();
        worker.shut_down();
        reason
    };
    assert_eq!(started(ENGINES.path().join("demo")), None);
    // As if the build had found a head that is always right.
    let engine = dir.path().join("engine");
    copy(&ENGINES.path().join("random"), &engine);
    let path = engine.join("draft/draft.json");
    let mut manifest: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    manifest["record"]["check"]["accept_len"] = json!(6.0);
    replace_listed(&engine, "draft/draft.json", manifest.to_string().as_bytes());
    let reason = started(engine.clone()).expect("the collapse is noticed");
    assert!(reason.contains("6.00 when the engine was built"), "{reason}");
    // A record that cannot be asked is refused when the engine is opened.
    manifest["record"]["check"]["prompt"] = json!([1, 2, 640]);
    replace_listed(&engine, "draft/draft.json", manifest.to_string().as_bytes());
    let refused = Engine::open(&engine, &EngineOptions::default()).unwrap_err().to_string();
    assert!(refused.contains("token 640"), "{refused}");
    manifest["spec"]["head_dim"] = json!(1_u64 << 62);
    replace_listed(&engine, "draft/draft.json", manifest.to_string().as_bytes());
    let refused = Engine::open(&engine, &EngineOptions::default()).unwrap_err().to_string();
    assert!(refused.contains("head_dim"), "{refused}");
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target)
        } else {
            _ = std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// Replaces a file of an engine and what its manifest says of it.
fn replace_listed(engine: &Path, name: &str, contents: &[u8]) {
    std::fs::write(engine.join(name), contents).unwrap();
    let path = engine.join("engine.json");
    let mut manifest: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let files = manifest["files"].as_array_mut().unwrap();
    let entry = files.iter_mut().find(|entry| entry["name"] == name).unwrap();
    entry["size_bytes"] = contents.len().into();
    entry["blake3"] = takt_engine::dir::blake3_hex(contents).into();
    std::fs::write(path, manifest.to_string()).unwrap();
}
