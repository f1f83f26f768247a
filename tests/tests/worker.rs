//! The worker on the real CPU backend and a fixture model, in virtual time.

use std::{
    path::Path,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use crossbeam_channel::{Receiver, Sender, bounded};
use takt_engine::{EngineError, engine::Engine, text::Text};
use takt_node::{
    clock::VirtualClock,
    request::{Event, Prompt, Request, RequestId, Status},
    scheduler::{class::Class, cost_table::NoPromise},
    worker::{Opened, Worker, WorkerOptions},
};
use takt_tests::virtual_backend::{StepLog, VirtualBackend};
use takt_tests::worker_bench::{Bench, Demand, STEP, engine_dir, engine_options, finish};

fn raw(text: &str) -> Prompt {
    Prompt::Raw(text.into())
}

fn chat(system: &str, user: &str) -> Prompt {
    Prompt::Chat(vec![("system".into(), system.into()), ("user".into(), user.into())])
}

#[test]
fn an_answer_is_streamed_whole_and_equals_what_the_request_alone_gets() {
    let mut bench = Bench::new(1, &WorkerOptions::default());
    let events = bench.submit(raw("pick the red cup"), None, 24);
    bench.run_until_idle();
    let (reply, streamed) = finish(&events);
    assert_eq!(reply.status, Status::Complete);
    assert_eq!(streamed, reply.text);
    let golden: serde_json::Value = serde_json::from_slice(
        &std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/hf/tiny-llama/golden.json"))
            .unwrap(),
    )
    .unwrap();
    let case = &golden["cases"][0];
    assert_eq!(serde_json::json!(reply.prompt_token_ids), case["input_ids"]);
    // transformers' greedy tokens, up to the first choice that other arithmetic may make differently.
    let margins = case["greedy_margins"].as_array().unwrap();
    let sure = margins
        .iter()
        .take(reply.token_ids.len())
        .take_while(|margin| margin.as_f64().unwrap() > 1e-2)
        .count();
    assert!(sure > 0);
    let expected: Vec<u64> =
        case["greedy_48"].as_array().unwrap()[..sure].iter().map(|id| id.as_u64().unwrap()).collect();
    let found: Vec<u64> = reply.token_ids[..sure].iter().map(|id| u64::from(*id)).collect();
    assert_eq!(found, expected);
}

#[test]
fn lanes_advance_together_and_give_the_same_answers_as_one_after_another() {
    let prompts = ["pick the red cup", "go to the lab", "where are you", "stop"];
    let mut alone = Bench::new(1, &WorkerOptions::default());
    let expected: Vec<Vec<u32>> = prompts
        .iter()
        .map(|prompt| {
            let events = alone.submit(raw(prompt), None, 12);
            alone.run_until_idle();
            finish(&events).0.token_ids
        })
        .collect();
    let mut together = Bench::new(3, &WorkerOptions::default());
    let events: Vec<_> = prompts.iter().map(|prompt| together.submit(raw(prompt), None, 12)).collect();
    together.run_until_idle();
    let found: Vec<Vec<u32>> = events.iter().map(|events| finish(events).0.token_ids).collect();
    assert_eq!(found, expected);
    assert_eq!(together.log.max_segments.load(Ordering::SeqCst), 3, "all lanes in one step");
    assert_eq!(together.core.num_free_lanes(), 3);
}

#[test]
fn a_request_that_reaches_its_deadline_returns_what_it_has_before_it() {
    let mut bench = Bench::new(1, &WorkerOptions::default());
    let allowed = Duration::from_millis(25);
    let events = bench.submit(raw("pick the red cup"), Some(allowed), 100);
    bench.run_until_idle();
    let (reply, streamed) = finish(&events);
    assert_eq!((reply.status, reply.finish_reason), (Status::TruncatedAtDeadline, "deadline"));
    assert!(!reply.token_ids.is_empty() && reply.text == streamed);
    assert!(reply.timings.total <= allowed, "{:?}", reply.timings);
    assert!(reply.timings.total + STEP * 2 > allowed, "cut too early: {:?}", reply.timings);
}

#[test]
fn a_deadline_during_prefill_or_in_the_queue_is_answered_too() {
    let slices = WorkerOptions { max_prefill_slice_tokens: 4, ..WorkerOptions::default() };
    let mut bench = Bench::new(1, &slices);
    let long = "pick the red cup and then place it on the green table near the door ".repeat(3);
    let reading = bench.submit(raw(&format!("now {long}")), Some(Duration::from_millis(7)), 10);
    let queued = bench.submit(raw("stop"), Some(Duration::from_millis(8)), 10);
    bench.run_until_idle();
    let (reply, _) = finish(&reading);
    assert_eq!((reply.status, reply.token_ids.len()), (Status::TruncatedAtDeadline, 0));
    assert!(reply.timings.ttft.is_none());
    let (reply, _) = finish(&queued);
    assert_eq!(reply.status, Status::TruncatedAtDeadline);
}

#[test]
fn the_earliest_deadline_runs_first_and_background_work_last() {
    let mut bench = Bench::new(1, &WorkerOptions::default());
    let background = bench.submit(raw("a"), None, 3);
    let late = bench.submit(raw("b"), Some(Duration::from_secs(9)), 3);
    let early = bench.submit(raw("c"), Some(Duration::from_secs(1)), 3);
    let mut order = Vec::new();
    while bench.core.num_open() > 0 {
        bench.core.turn().unwrap();
        for (name, events) in [("background", &background), ("late", &late), ("early", &early)] {
            if events.try_iter().any(|event| matches!(event, Event::Reply(_))) {
                order.push(name);
            }
        }
    }
    assert_eq!(order, ["early", "late", "background"]);
}

#[test]
fn the_system_prompt_is_computed_once() {
    let system = "You are a robot. Answer with one skill call as JSON. Be brief and careful with people.";
    let options = WorkerOptions { max_prefill_slice_tokens: 16, ..WorkerOptions::default() };
    let mut bench = Bench::new(2, &options);
    let first = bench.submit(chat(system, "pick the red cup"), None, 4);
    bench.run_until_idle();
    let first_tokens = bench.log.num_tokens.load(Ordering::SeqCst);
    // Two at once: one can reuse the lane, the other needs the snapshot.
    let second = bench.submit(chat(system, "go to the lab"), None, 4);
    let third = bench.submit(chat(system, "stop now please"), None, 4);
    bench.run_until_idle();
    let later_tokens = bench.log.num_tokens.load(Ordering::SeqCst) - first_tokens;
    assert!(later_tokens < first_tokens, "{later_tokens} tokens for two, {first_tokens} for the first");
    // … and reuse changes no answer.
    let mut fresh = Bench::new(1, &WorkerOptions { prefix_snapshots: 0, ..WorkerOptions::default() });
    for (events, user) in [(first, "pick the red cup"), (second, "go to the lab"), (third, "stop now please")]
    {
        let alone = fresh.submit(chat(system, user), None, 4);
        fresh.run_until_idle();
        assert_eq!(finish(&events).0.token_ids, finish(&alone).0.token_ids, "{user}");
    }
}

#[test]
fn what_cannot_be_served_is_rejected_with_the_reason() {
    let options = WorkerOptions { queue_len: 7, ..WorkerOptions::default() };
    let mut bench = Bench::new(1, &options);
    let cases = [
        (bench.submit(raw("hello"), Some(Duration::ZERO), 4), "deadline"),
        (bench.submit(raw(&"pick the red cup ".repeat(60)), None, 4), "does not fit a lane of 128"),
        (bench.submit(raw("hello"), None, 0), "max_tokens"),
    ];
    for (events, word) in cases {
        let (reply, _) = finish(&events);
        assert_eq!(reply.status, Status::Rejected);
        assert!(reply.reason.as_ref().unwrap().contains(word), "{:?}", reply.reason);
        assert_eq!(reply.is_prompt_too_long, word.starts_with("does not fit"));
    }
    let running = bench.submit(raw("a"), None, 8);
    bench.core.turn().unwrap();
    let waiting = bench.submit(raw("b"), None, 8);
    let refused = bench.submit(raw("c"), None, 8);
    assert!(finish(&refused).0.reason.unwrap().contains("background requests may take 2 places"));
    bench.run_until_idle();
    assert_eq!(finish(&running).0.status, Status::Complete);
    assert_eq!(finish(&waiting).0.status, Status::Complete);
}

#[test]
fn a_failing_backend_fails_every_open_request_and_the_next_one_works() {
    let mut bench = Bench::new(1, &WorkerOptions::default());
    let events = [bench.submit(raw("a"), None, 8), bench.submit(raw("b"), None, 8)];
    bench.log.failures.store(1, Ordering::SeqCst);
    let error = bench.core.turn().unwrap_err();
    bench.core.end_all(Status::Failed, &error.to_string());
    bench.core.reset().unwrap();
    for events in &events {
        let (reply, _) = finish(events);
        assert_eq!(reply.status, Status::Failed);
        assert!(reply.reason.unwrap().contains("pulled the plug"));
    }
    let next = bench.submit(raw("a"), None, 8);
    bench.run_until_idle();
    assert_eq!(finish(&next).0.status, Status::Complete);
}

#[test]
fn cancelling_returns_what_there_is_and_a_gone_asker_frees_its_lane() {
    let mut bench = Bench::new(1, &WorkerOptions::default());
    let (id, events) = bench.ask(Demand { max_tokens: 60, ..Demand::raw("pick the red cup") });
    for _ in 0..6 {
        bench.core.turn().unwrap();
    }
    bench.core.cancel(id);
    let (reply, _) = finish(&events);
    assert_eq!(reply.status, Status::Cancelled);
    assert!(!reply.token_ids.is_empty());
    drop(bench.submit(raw("pick the red cup"), None, 100));
    bench.run_until_idle();
    assert_eq!(bench.core.num_free_lanes(), 1);
    let num_tokens = bench.log.num_tokens.load(Ordering::SeqCst);
    assert!(num_tokens < 60, "{num_tokens} tokens for an asker that was gone");
}

#[test]
fn an_asker_that_does_not_read_loses_tokens_but_never_the_reply() {
    let mut bench = Bench::new(1, &WorkerOptions::default());
    let (_, events) = bench.ask(Demand { max_tokens: 24, room: 2, ..Demand::raw("pick the red cup") });
    bench.run_until_idle();
    let all: Vec<Event> = events.try_iter().collect();
    assert_eq!(all.len(), 2);
    assert!(
        matches!(&all[1], Event::Reply(reply) if reply.token_ids.len() == 24 || reply.finish_reason == "stop")
    );
}

/// Five tokens, without a deadline.
fn request(events: Sender<Event>) -> Request {
    Request {
        id: RequestId::next(),
        prompt: raw("pick the red cup"),
        arrived: std::time::Instant::now(),
        deadline: None,
        class: Class::Background,
        max_tokens: Some(5),
        sampling: None,
        stop: Vec::new(),
        form: None,
        events,
        admission: None,
    }
}

#[test]
fn shutting_the_thread_down_answers_open_requests_and_closes_the_queue() {
    let dir = engine_dir();
    let opener = move || {
        let engine = Engine::open(&dir, &engine_options(1))?;
        let text = Arc::new(Text::open(&dir)?.expect("the fixture has a tokenizer"));
        Ok(Opened {
            backend: engine.backend,
            text,
            manifest: engine.manifest,
            draft: engine.draft,
            costs: None,
        })
    };
    let worker = Worker::spawn(Box::new(opener), WorkerOptions::default()).unwrap();
    assert!(worker.facts().decode_step > Duration::ZERO, "measured while warming up");
    let sender = worker.sender();
    let (events_in, events) = bounded(1024);
    sender.submit(request(events_in)).unwrap();
    let reply = events.iter().find_map(|event| match event {
        Event::Reply(reply) => Some(*reply),
        Event::Tokens { .. } => None,
    });
    assert_eq!(reply.unwrap().status, Status::Complete);
    let (open_in, open) = bounded(1024);
    let mut endless = request(open_in);
    endless.max_tokens = None;
    sender.submit(endless).unwrap();
    worker.shut_down();
    let (reply, _) = finish(&open);
    assert!(matches!(reply.status, Status::Cancelled | Status::Complete), "{:?}", reply.status);
    assert!(sender.submit(request(bounded(1).0)).is_err());
}

#[test]
fn a_change_of_the_clocks_ends_all_promises_until_costs_are_measured_again() {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("sys/devices/system/cpu/cpu0/cpufreq");
    std::fs::create_dir_all(&folder).unwrap();
    let set = |governor: &str| std::fs::write(folder.join("scaling_governor"), governor).unwrap();
    set("powersave");
    let dir = engine_dir();
    let opener = move || {
        let engine = Engine::open(&dir, &engine_options(1))?;
        let text = Arc::new(Text::open(&dir)?.expect("the fixture has a tokenizer"));
        Ok(Opened {
            backend: engine.backend,
            text,
            manifest: engine.manifest,
            draft: engine.draft,
            costs: None,
        })
    };
    let options = WorkerOptions { system_root: root.path().to_owned(), ..WorkerOptions::default() };
    let worker = Worker::spawn(Box::new(opener), options).unwrap();
    let sender = worker.sender();
    assert_eq!(sender.distrust(), None);
    // Measuring again takes a moment in which promises are withdrawn; a machine that stalls may miss it once.
    let noticed = (0..20).find_map(|i| {
        set(if i % 2 == 0 { "performance" } else { "powersave" });
        (0..3000).find_map(|_| {
            std::thread::sleep(Duration::from_millis(1));
            sender.distrust()
        })
    });
    assert!(noticed.unwrap().contains("governor was"));
    let is_trusted_again = (0..30_000).any(|_| {
        std::thread::sleep(Duration::from_millis(1));
        sender.distrust().is_none()
    });
    assert!(is_trusted_again);
}

#[test]
fn an_engine_that_is_being_opened_is_not_waited_for_when_the_process_ends() {
    let (end, process_end) = bounded(0);
    let (release, released) = bounded::<()>(0);
    let mut end = Some(end);
    let opener = move || {
        end.take(); // only once the engine is being opened
        let _ = released.recv();
        Err(EngineError::Text("opened too late".into()))
    };
    let options = WorkerOptions { process_end, ..WorkerOptions::default() };
    let error = Worker::spawn(Box::new(opener), options).unwrap_err();
    assert!(matches!(error, EngineError::Interrupted), "{error}");
    drop(release);
}

#[test]
fn an_engine_that_is_being_opened_again_is_not_waited_for_when_the_process_ends() {
    let (end, process_end) = bounded(0);
    let (release, released) = bounded::<()>(0);
    let (again_in, again) = bounded::<()>(1);
    let log = StepLog::default();
    let (mut end, mut num_opened, dir, panics) = (Some(end), 0, engine_dir(), Arc::clone(&log.panics));
    let opener = move || {
        num_opened += 1;
        if num_opened == 2 {
            end.take();
            again_in.send(()).unwrap();
            let _ = released.recv();
        }
        let engine = Engine::open(&dir, &engine_options(1))?;
        let backend = VirtualBackend {
            facts: engine.backend.capabilities().clone(),
            inner: engine.backend,
            clock: VirtualClock::default(),
            step: STEP,
            token: Duration::ZERO,
            level: Duration::ZERO,
            log: log.clone(),
            lister: None,
        };
        let text = Arc::new(Text::open(&dir)?.expect("the fixture has a tokenizer"));
        Ok(Opened {
            backend: Box::new(backend),
            text,
            manifest: engine.manifest,
            draft: engine.draft,
            costs: None,
        })
    };
    let options = WorkerOptions { process_end, ..WorkerOptions::default() };
    let worker = Worker::spawn(Box::new(opener), options).unwrap();
    panics.store(true, Ordering::SeqCst);
    let (events_in, events) = bounded(8);
    worker.sender().submit(request(events_in)).unwrap();
    again.recv().unwrap();
    assert_eq!(finish(&events).0.status, Status::Failed);
    worker.shut_down();
    drop(release);
}

#[test]
fn an_engine_that_does_not_open_is_reported_by_spawn() {
    let opener = || Engine::open(Path::new("nowhere"), &engine_options(1)).map(|_| unreachable!());
    let error = Worker::spawn(Box::new(opener), WorkerOptions::default()).unwrap_err();
    assert!(error.to_string().contains("does not exist"), "{error}");
}

const LONG: &str = "pick the red cup and then place it on the green table near the door";

#[test]
fn a_deadline_that_cannot_be_kept_is_refused_with_the_earliest_that_could_and_that_one_is_kept() {
    let mut bench = Bench::new(1, &WorkerOptions::default());
    let refused = finish(&bench.control(raw(LONG), Duration::from_millis(3), 8)).0;
    assert_eq!(refused.status, Status::Rejected, "{refused:?}");
    assert!(refused.is_prompt_too_long, "there is nobody else");
    let earliest = refused.earliest_deadline.expect("one that could be promised");
    assert!(refused.reason.unwrap().contains("cannot be promised: the earliest is"));
    let kept = bench.control(raw(LONG), earliest, 100);
    bench.run_until_idle();
    let (reply, _) = finish(&kept);
    assert_eq!((reply.status, reply.is_promised), (Status::TruncatedAtDeadline, true), "{reply:?}");
    assert!(!reply.token_ids.is_empty() && reply.timings.total <= earliest, "{:?}", reply.timings);
}

#[test]
fn a_control_loops_request_takes_a_lane_and_who_lost_it_gets_the_same_answer_later() {
    let mut alone = Bench::new(1, &WorkerOptions::default());
    let expected = alone.submit(raw(LONG), None, 30);
    alone.run_until_idle();
    let mut bench = Bench::new(1, &WorkerOptions::default());
    let background = bench.submit(raw(LONG), None, 30);
    for _ in 0..8 {
        bench.core.turn().unwrap();
    }
    let allowed = Duration::from_millis(40);
    let urgent = bench.control(raw("stop"), allowed, 5);
    bench.core.turn().unwrap();
    assert_eq!(bench.core.num_open(), 2);
    bench.run_until_idle();
    let (reply, _) = finish(&urgent);
    assert_eq!(reply.status, Status::Complete);
    assert!(reply.timings.total <= allowed, "{:?}", reply.timings);
    let (reply, streamed) = finish(&background);
    assert_eq!(reply.token_ids, finish(&expected).0.token_ids);
    assert_eq!(reply.text, streamed);
    assert_eq!(bench.core.num_free_lanes(), 1);
}

#[test]
fn a_burst_of_ten_thousand_gets_ten_thousand_replies_and_leaves_nothing_behind() {
    let mut bench = Bench::new(2, &WorkerOptions::default());
    let classes = [Class::Control, Class::Interactive, Class::Background];
    let mut askers: Vec<(RequestId, Receiver<Event>)> = Vec::new();
    for i in 0..10_000_u64 {
        let class = classes[usize::try_from(i % 3).unwrap()];
        let allowed = (class != Class::Background).then(|| Duration::from_millis(10 + i % 90));
        askers.push(bench.ask(Demand { class, allowed, max_tokens: 6, room: 64, ..Demand::raw("stop now") }));
        assert!(bench.core.num_open() <= 34, "more open than there are places");
        match i % 10 {
            3 => bench.core.cancel(askers[askers.len() / 2].0),
            7 => drop(bench.core.turn().unwrap()),
            _ => {}
        }
    }
    bench.run_until_idle();
    let mut num_promised = 0;
    for (i, (_, events)) in askers.iter().enumerate() {
        let (reply, _) = finish(events);
        if reply.is_promised && reply.status != Status::Cancelled {
            num_promised += 1;
            assert!(reply.timings.total <= reply.timings.deadline.unwrap(), "{i}: {reply:?}");
            assert!(!reply.token_ids.is_empty(), "{i}: {reply:?}");
        }
    }
    assert!(num_promised > 100, "{num_promised}");
    assert_eq!(bench.core.num_free_lanes(), 2);
    let after = bench.control(raw("stop now"), Duration::from_millis(50), 2);
    bench.run_until_idle();
    assert_eq!(finish(&after).0.status, Status::Complete);
}

#[test]
fn sections_that_take_much_longer_than_measured_end_all_promises_until_costs_are_measured_again() {
    let mut bench = Bench::new(1, &WorkerOptions::default());
    bench.log.set_slow_down(4);
    for i in 0..200 {
        bench.submit(raw(&format!("pick cup {i}")), None, 100);
        bench.run_until_idle();
    }
    assert!(matches!(bench.core.costs().no_promise(), Some(NoPromise::Drift { .. })));
    let unpromised = bench.control(raw("stop"), Duration::from_millis(1), 4);
    bench.run_until_idle();
    let (reply, _) = finish(&unpromised);
    assert_eq!((reply.status, reply.is_promised), (Status::TruncatedAtDeadline, false));
    assert!(bench.core.desk().distrust().unwrap().contains("times as long"));
    bench.core.recalibrate_if_idle(|| true).unwrap();
    assert_eq!((bench.core.costs().no_promise(), bench.core.desk().distrust()), (None, None));
    let promised = bench.control(raw("stop"), Duration::from_millis(200), 4);
    bench.run_until_idle();
    assert!(finish(&promised).0.is_promised);
}
