//! A worker on the device: when the device fails, every open request is answered with the reason, and the engine is opened anew.

use std::{path::PathBuf, sync::Arc, thread, time::Duration};

use crossbeam_channel::{Receiver, bounded};
use takt_engine::{EngineError, backend::cuda::CudaOptions, dir::EngineDir, kv::KvKind, text::Text};
use takt_kernels_cu::driver::{
    context::{Context, Share},
    device,
    memory::DeviceBuffer,
};
use takt_node::{
    calibrate::Effort,
    request::{Event, Prompt, Reply, Request, RequestId, Status},
    scheduler::class::Class,
    worker::{Opened, Worker, WorkerOptions},
};

use crate::{
    draft::{attach, speculation},
    emulator::driver::{Device, Report},
    models::{emulated, open, options},
    shipped::build_demo,
};

const MAX_TOKENS: u32 = 6;

fn worker(dir: PathBuf, step_limit: Duration) -> Worker {
    worker_with(dir, cuda_options(step_limit))
}

fn cuda_options(step_limit: Duration) -> CudaOptions {
    CudaOptions {
        num_lanes: 1,
        lane_capacity: 64,
        max_step_tokens: 8,
        max_logits_rows: 8,
        step_limit,
        ..options(KvKind::Bf16)
    }
}

/// With the engine's head, where it has one.
pub fn worker_with(dir: PathBuf, cuda_options: CudaOptions) -> Worker {
    spawn(dir, cuda_options, WorkerOptions::default())
}

fn spawn(dir: PathBuf, cuda_options: CudaOptions, options: WorkerOptions) -> Worker {
    let opener = move || {
        let engine = EngineDir::open(&dir)?;
        let text = Text::open(&dir)?.ok_or_else(|| EngineError::Input("no tokenizer".into()))?;
        let mut backend = Box::new(open(&engine.manifest().spec, &engine, &cuda_options)?);
        let draft = engine.draft().map(|head| head.manifest().clone());
        if draft.is_some() {
            attach(backend.as_mut(), &engine)?;
        }
        let manifest = engine.manifest().clone();
        Ok(Opened { backend, text: Arc::new(text), manifest, draft, costs: None })
    };
    let options = WorkerOptions { max_prefill_slice_tokens: 8, effort: Effort::LEAST, ..options };
    Worker::spawn(Box::new(opener), options).unwrap()
}

pub fn ask(worker: &Worker) -> Receiver<Event> {
    ask_for(worker, Prompt::Raw("bring the red wrench".into()))
}

fn ask_for(worker: &Worker, prompt: Prompt) -> Receiver<Event> {
    try_ask_for(worker, prompt).expect("the worker takes requests")
}

/// As [`ask`]; `None` where the worker takes no request any more.
pub fn try_ask(worker: &Worker) -> Option<Receiver<Event>> {
    try_ask_for(worker, Prompt::Raw("bring the red wrench".into()))
}

fn try_ask_for(worker: &Worker, prompt: Prompt) -> Option<Receiver<Event>> {
    let (events, replies) = bounded(1024);
    let request = Request {
        id: RequestId::next(),
        prompt,
        arrived: std::time::Instant::now(),
        deadline: None,
        class: Class::Background,
        max_tokens: Some(MAX_TOKENS as _),
        sampling: None,
        stop: Vec::new(),
        form: None,
        events,
        admission: None,
    };
    worker.sender().submit(request).is_ok().then_some(replies)
}

pub fn reply(events: &Receiver<Event>) -> Reply {
    let reply = events.iter().find_map(|event| match event {
        Event::Reply(reply) => Some(*reply),
        Event::Tokens { .. } => None,
    });
    reply.expect("every request is answered")
}

/// What opening an engine asks of the driver: to load, capture, allocate and copy.
type Opening = [u64; 4];

fn opening(before: &Report, after: &Report) -> Opening {
    let calls = after.calls_since(before);
    ["cuModuleLoadData", "cuGraphInstantiateWithFlags", "cuMemAlloc_v2", "cuMemcpyHtoDAsync_v2"]
        .map(|name| calls.get(name).copied().unwrap_or(0))
}

/// Opening again is what `opened` was, not more: everything once.
#[track_caller]
fn fails_and_recovers(device: &Device, worker: &Worker, (expected, opened): (&Reply, Opening), reason: &str) {
    let failing = device.report();
    let held = || {
        let report = device.report();
        ["device_allocations", "host_allocations", "modules", "streams", "events"]
            .map(|name| report.value(name))
    };
    let before = held();
    let open = [ask(worker), ask(worker)];
    for events in &open {
        let reply = reply(events);
        assert_eq!(reply.status, Status::Failed, "{reply:?}");
        let told = reply.reason.unwrap();
        assert!(told.contains(reason), "{told}");
    }
    assert!(device.report().value("contexts") <= 1, "the one before is gone before another is made");
    let next = reply(&ask(worker));
    assert_eq!((next.status, &next.token_ids), (expected.status, &expected.token_ids), "{next:?}");
    assert_eq!(held(), before, "what was lost is given back whole, and as much taken again");
    assert_eq!(opening(&failing, &device.report()), opened);
}

#[test]
fn a_device_that_fails_or_hangs_fails_the_open_requests_and_the_next_is_answered_as_before() {
    let test =
        "worker::a_device_that_fails_or_hangs_fails_the_open_requests_and_the_next_is_answered_as_before";
    emulated(test).run(|device| {
        let scratch = tempfile::tempdir().unwrap();
        let dir = scratch.path().join("engine");
        build_demo(&dir);
        let (unopened, worker) = (device.report(), worker(dir, Duration::from_secs(3)));
        let opened = opening(&unopened, &device.report());
        assert!(opened.iter().all(|count| *count > 0), "{opened:?}");
        let expected = reply(&ask(&worker));
        assert_eq!(expected.status, Status::Complete, "{expected:?}");
        assert!(!expected.token_ids.is_empty());
        device.fail_launch(100);
        fails_and_recovers(device, &worker, (&expected, opened), "the device failed in");
        device.hang_launch(100);
        fails_and_recovers(device, &worker, (&expected, opened), "did not finish within");
        worker.shut_down();
        let left = device.report();
        assert_eq!(left.value("contexts"), 0);
    });
}

/// The head's steps, too: a step that fails, one whose reading along fails, and one that hangs.
#[test]
fn a_device_that_fails_with_a_head_is_opened_anew_with_the_head() {
    let test = "worker::a_device_that_fails_with_a_head_is_opened_anew_with_the_head";
    emulated(test).run(|device| {
        let scratch = tempfile::tempdir().unwrap();
        let dir = scratch.path().join("engine");
        speculation::build_demo(&dir);
        // A device that is emulated is slow with a head beside it, on a busy machine slower.
        let (unopened, worker) = (device.report(), worker(dir, Duration::from_secs(12)));
        let opened = opening(&unopened, &device.report());
        let before = device.report().value("launches");
        let expected = reply(&ask(&worker));
        let per_answer = device.report().value("launches") - before;
        assert_eq!(expected.status, Status::Complete, "{expected:?}");
        // Steps and readings take turns; four places are in both.
        for place in 0..4 {
            device.fail_launch((per_answer / 2 + place * 11) as _);
            fails_and_recovers(device, &worker, (&expected, opened), "the device failed in");
        }
        device.hang_launch(100);
        fails_and_recovers(device, &worker, (&expected, opened), "did not finish within");
        worker.shut_down();
        assert_eq!(device.report().value("contexts"), 0);
    });
}

#[test]
fn a_prefix_without_memory_is_not_kept_and_its_request_is_answered_all_the_same() {
    let test = "worker::a_prefix_without_memory_is_not_kept_and_its_request_is_answered_all_the_same";
    emulated(test).run(|device| {
        let scratch = tempfile::tempdir().unwrap();
        let dir = scratch.path().join("engine");
        build_demo(&dir);
        let worker = worker(dir, Duration::from_secs(30));
        let chat = || {
            let system = "You are a robot: answer with one skill call".to_owned();
            Prompt::Chat(vec![("system".into(), system), ("user".into(), "stop".into())])
        };
        // Another text in the lane, so that the prefix is not found there.
        let answer = || {
            assert_eq!(reply(&ask(&worker)).status, Status::Complete);
            let before = device.report().calls("cuMemAlloc_v2");
            let reply = reply(&ask_for(&worker, chat()));
            assert_eq!(reply.status, Status::Complete, "{reply:?}");
            (reply.token_ids, device.report().calls("cuMemAlloc_v2") - before)
        };
        device.fail_allocation(1);
        let (expected, num_tried) = answer();
        assert_eq!(num_tried, 1, "to keep the prefix");
        assert_eq!(answer(), (expected.clone(), 1), "now it is kept");
        assert_eq!(answer(), (expected, 0), "and found");
        worker.shut_down();
        assert_eq!(device.report().leaks(), Vec::<String>::new());
    });
}

/// No context, and no memory, is left.
#[track_caller]
fn nothing_is_held(device: &Device) {
    let left = device.report();
    for name in ["contexts", "green_contexts", "device_allocations", "host_allocations"] {
        assert_eq!(left.value(name), 0, "{name}");
    }
}

/// Without patience it ends at once; the wait itself is the next test's.
#[test]
fn an_engine_that_finds_no_memory_for_too_long_when_it_is_opened_again_answers_everybody_and_holds_nothing() {
    let test = "worker::an_engine_that_finds_no_memory_for_too_long_when_it_is_opened_again_answers_everybody_and_holds_nothing";
    emulated(test).run(|device| {
        let scratch = tempfile::tempdir().unwrap();
        let dir = scratch.path().join("engine");
        build_demo(&dir);
        let options = WorkerOptions { memory_patience: Duration::ZERO, ..WorkerOptions::default() };
        let worker = spawn(dir, cuda_options(Duration::from_secs(30)), options);
        assert_eq!(reply(&ask(&worker)).status, Status::Complete);
        device.fail_allocation(1);
        device.fail_launch(100);
        for events in [ask(&worker), ask(&worker)] {
            let reply = reply(&events);
            assert_eq!(reply.status, Status::Failed, "{reply:?}");
            assert!(reply.reason.unwrap().contains("the device failed in"));
        }
        worker.shut_down();
        nothing_is_held(device);
    });
}

/// Somebody else who takes all memory there is: what an engine gives back is less than it takes, and the driver's share.
fn all_memory() -> DeviceBuffer {
    let device = device::probe().unwrap().remove(0);
    let (context, _) = Context::open(&device, Share::None).unwrap();
    let (free, _) = context.memory_bytes().unwrap();
    DeviceBuffer::new(&context, free - (1 << 20), "somebody else").unwrap()
}

/// What `worker` says to who asks while there is no memory for an engine.
#[track_caller]
fn is_refused(worker: &Worker) {
    let refused = reply(&ask(worker));
    assert_eq!(refused.status, Status::Rejected, "{refused:?}");
    let told = refused.reason.unwrap();
    for part in ["the device failed in", "no memory to open the engine again", "tried every few seconds"] {
        assert!(told.contains(part), "{part} not in {told}");
    }
}

#[test]
fn an_engine_that_finds_no_memory_when_it_is_opened_again_is_opened_when_there_is_some() {
    let test = "worker::an_engine_that_finds_no_memory_when_it_is_opened_again_is_opened_when_there_is_some";
    emulated(test).run(|device| {
        let scratch = tempfile::tempdir().unwrap();
        let dir = scratch.path().join("engine");
        build_demo(&dir);
        let worker = worker(dir, Duration::from_secs(30));
        let expected = reply(&ask(&worker));
        assert_eq!(expected.status, Status::Complete);
        let taken = all_memory();
        device.fail_launch(100);
        let failed = reply(&ask(&worker));
        assert_eq!(failed.status, Status::Failed, "{failed:?}");
        is_refused(&worker);
        is_refused(&worker);
        drop(taken);
        let next = answer_when_open(&worker);
        assert_eq!((next.status, &next.token_ids), (expected.status, &expected.token_ids), "{next:?}");
        // What the driver makes for itself finds none, once.
        for call in ["cuGreenCtxCreate", "cuModuleLoadData", "cuGreenCtxStreamCreate"] {
            const OUT_OF_MEMORY: i32 = 2;
            let before = device.report().calls(call);
            device.fail_call(call, 1, OUT_OF_MEMORY);
            device.fail_launch(100);
            assert_eq!(reply(&ask(&worker)).status, Status::Failed);
            let next = answer_when_open(&worker);
            assert_eq!((next.status, &next.token_ids), (expected.status, &expected.token_ids), "{next:?}");
            assert!(device.report().calls(call) > before + 1, "{call} was tried again");
        }
        worker.shut_down();
        nothing_is_held(device);
    });
}

/// The first answer that is no refusal for want of an engine.
fn answer_when_open(worker: &Worker) -> Reply {
    loop {
        let reply = reply(&ask(worker));
        if reply.status != Status::Rejected {
            return reply;
        }
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_worker_that_waits_for_memory_ends_when_it_is_told_to() {
    let test = "worker::a_worker_that_waits_for_memory_ends_when_it_is_told_to";
    emulated(test).run(|device| {
        let scratch = tempfile::tempdir().unwrap();
        let dir = scratch.path().join("engine");
        build_demo(&dir);
        let options = WorkerOptions { memory_patience: Duration::MAX, ..WorkerOptions::default() };
        let worker = spawn(dir, cuda_options(Duration::from_secs(30)), options);
        assert_eq!(reply(&ask(&worker)).status, Status::Complete);
        let taken = all_memory();
        device.fail_launch(100);
        assert_eq!(reply(&ask(&worker)).status, Status::Failed);
        is_refused(&worker);
        worker.shut_down();
        drop(taken);
        nothing_is_held(device);
    });
}
