//! What the worker leaves of a GPU to others: sections no longer than agreed, a pause after each, and promises that count both.

use std::{sync::atomic::Ordering, time::Duration};

use takt_engine::Engine;
use takt_node::{
    calibrate::{Effort, grid_of, measure},
    clock::{Clock as _, VirtualClock},
    request::{Prompt, Status},
    scheduler::class::Class,
    worker::{GpuManners, Turn, WorkerOptions},
};
use takt_tests::{
    virtual_backend::{StepLog, VirtualBackend},
    worker_bench::{Bench, Demand, STEP, engine_dir, engine_options, finish},
};

const GAP: Duration = Duration::from_millis(3);
const MS: Duration = Duration::from_millis(1);

fn worker(manners: GpuManners) -> WorkerOptions {
    WorkerOptions { gpu: manners, ..WorkerOptions::default() }
}

fn bench(backend: &'static str, num_lanes: usize, manners: GpuManners) -> Bench {
    Bench::on(backend, &engine_dir(), &engine_options(num_lanes), &worker(manners))
}

fn polite() -> GpuManners {
    GpuManners { idle_gap: GAP, ..GpuManners::default() }
}

/// How long an answer of `num_tokens` takes.
fn length(bench: &mut Bench, num_tokens: usize) -> Duration {
    let begin = bench.clock.now();
    let events = bench.submit(Prompt::Raw("pick the red cup".into()), None, num_tokens);
    bench.run_until_idle();
    assert_eq!(finish(&events).0.token_ids.len(), num_tokens);
    bench.clock.now() - begin
}

#[test]
fn a_gap_follows_every_section_on_a_gpu_and_none_on_the_processor() {
    let [plain, gapped] =
        [GpuManners::default(), polite()].map(|manners| length(&mut bench("cuda", 1, manners), 7));
    assert_eq!(gapped, plain + GAP * 7, "seven sections");
    assert_eq!(length(&mut bench("cpu", 1, polite()), 7), plain);
}

#[test]
fn promises_count_the_gaps_and_are_kept_beside_them() {
    let ask = |bench: &mut Bench, allowed: Duration| {
        let events = bench.control(Prompt::Raw("pick the red cup".into()), allowed, 40);
        bench.run_until_idle();
        finish(&events).0
    };
    // What is promised at the least: found by refusals, which say it.
    let earliest = |manners: GpuManners| {
        let reply = ask(&mut bench("cuda", 1, manners), MS / 10);
        assert_eq!(reply.status, Status::Rejected);
        reply.earliest_deadline.expect("a deadline that could be met")
    };
    let (plain, polite_least) = (earliest(GpuManners::default()), earliest(polite()));
    // One gap behind the section that may begin unseen, one behind the only slice.
    assert!(polite_least >= plain + GAP * 2, "{plain:?} {polite_least:?}");
    let mut beside = bench("cuda", 1, polite());
    let background = beside.submit(Prompt::Raw("tell me a story".into()), None, 60);
    assert_eq!(beside.core.turn().unwrap(), Turn::Worked);
    for _ in 0..20 {
        let allowed = polite_least + MS * 5;
        let events = beside.control(Prompt::Raw("pick the red cup".into()), allowed, 3);
        while beside.core.num_open() > 1 {
            beside.core.turn().unwrap();
        }
        let (reply, _) = finish(&events);
        assert!(reply.status != Status::Rejected && reply.timings.total <= allowed, "{reply:?}");
    }
    beside.run_until_idle();
    assert_eq!(finish(&background).0.status, Status::Complete);
}

#[test]
fn who_would_be_late_after_a_gap_is_answered_before_it() {
    let mut bench = bench("cuda", 1, polite());
    // The section at 5 ms ends at 7 ms; the gap behind it only at 10.
    let allowed = STEP * 2 + GAP + MS;
    let events = bench.submit(Prompt::Raw("stop".into()), Some(allowed), 40);
    bench.run_until_idle();
    let (reply, _) = finish(&events);
    assert_eq!(reply.status, Status::TruncatedAtDeadline);
    assert!(!reply.token_ids.is_empty() && reply.timings.total <= allowed, "{:?}", reply.timings);
}

#[test]
fn sections_keep_the_strict_limit_with_fewer_lanes() {
    let together = |manners: GpuManners| {
        let mut bench = bench("cuda", 4, manners);
        let asked: Vec<_> = (0..4)
            .map(|_| bench.ask(Demand { class: Class::Background, max_tokens: 6, ..Demand::raw("go") }).1)
            .collect();
        bench.run_until_idle();
        asked.iter().for_each(|events| assert_eq!(finish(events).0.status, Status::Complete));
        bench.log.max_segments.load(Ordering::SeqCst)
    };
    assert_eq!(together(GpuManners::default()), 4);
    // A decode step's bound is 2.4 ms however many lanes it has here: nothing but lanes alone is within 2.
    let strict = GpuManners { max_section: Some(MS * 2), ..GpuManners::default() };
    assert_eq!(together(strict), 1);
    let roomy = GpuManners { max_section: Some(MS * 19), ..GpuManners::default() };
    assert_eq!(together(roomy), 4);
}

#[test]
fn measuring_leaves_a_gap_after_every_section_and_measures_no_less_for_it() {
    let measured = |idle_gap: Duration| {
        let clock = VirtualClock::default();
        let inner = Engine::open(&engine_dir(), &engine_options(2)).unwrap().backend;
        let log = StepLog::default();
        let mut backend = VirtualBackend {
            facts: inner.capabilities().clone(),
            inner,
            clock: clock.clone(),
            step: STEP,
            // Every section takes one step, so that time counts them.
            token: Duration::ZERO,
            level: Duration::ZERO,
            log: log.clone(),
            lister: None,
        };
        let grid = grid_of(&backend, 16);
        // Shorter than all samples of the first context would take.
        let effort = Effort { num_samples: 6, most: STEP * 40, idle_gap };
        let begin = clock.now();
        let costs = measure(&mut backend, &clock, &grid, effort, |_| true).unwrap().unwrap();
        (costs, log.num_tokens.load(Ordering::SeqCst), clock.now() - begin)
    };
    let (costs, num_tokens, took) = measured(Duration::ZERO);
    let (gapped_costs, gapped_tokens, gapped_took) = measured(GAP);
    assert_eq!((gapped_costs, gapped_tokens), (costs, num_tokens));
    let num_sections = u32::try_from(took.as_nanos() / STEP.as_nanos()).unwrap();
    assert!(num_sections > 40, "{num_sections}");
    assert_eq!(gapped_took, took + GAP * num_sections, "fills count as sections");
}
