//! Schedules in virtual time: what was promised is kept, whatever comes.

use std::time::Duration;

use proptest::prelude::*;

use super::{
    Arrivals, Demand, Outcome, Policy, Report, Run, Settings, gantt, play,
    trace::{random, to_text},
};
use crate::scheduler::{
    bandwidth_server::Bandwidth,
    class::Class,
    cost_table::{Cost, CostTable, Grid, SectionKind},
    job::Limits,
};

const MS: Duration = Duration::from_millis(1);

/// A small device: a decode step takes 0.9 ms and 0.2 more for each lane, a prompt token 0.05 ms, with a floor of 0.6 ms; the 99th
/// percentile is half as much again.
fn table() -> CostTable {
    let grid = Grid::of(32, 4, 512);
    let costs: Vec<Cost> = grid
        .shapes()
        .map(|shape| {
            let us = match shape.kind {
                SectionKind::Decode => 900 + 200 * shape.size,
                SectionKind::Prefill | SectionKind::Verify | SectionKind::Draft => 600 + 50 * shape.size,
            };
            let p50 = Duration::from_micros(us as u64);
            Cost { p50, p99: p50 * 3 / 2, worst: p50 * 3 / 2 }
        })
        .collect();
    CostTable::with_margin(grid, &costs, 1.0)
}

fn settings(policy: Policy, num_lanes: usize) -> Settings {
    Settings {
        policy,
        num_lanes,
        queue_len: 32,
        limits: Limits {
            max_prefill_slice_tokens: 32,
            max_step_tokens: 36,
            max_section: 4 * MS,
            max_any_section: None,
            idle_gap: Duration::ZERO,
            reply_margin: MS / 2,
        },
        bandwidth: Bandwidth { budget: 5 * MS, period: 50 * MS },
        seed: 1,
        has_forms: false,
        max_records: 10_000,
    }
}

fn demands() -> impl Strategy<Value = Vec<Demand>> {
    let class =
        prop_oneof![3 => Just(Class::Control), 1 => Just(Class::Interactive), 1 => Just(Class::Background)];
    let demand = (0_u64..120, class, 1_u64..150, 1_usize..120, 1_usize..40).prop_map(
        |(arrival_ms, class, allowed_ms, prompt_len, answer_len)| Demand {
            arrival: Duration::from_millis(arrival_ms),
            class,
            allowed: (class != Class::Background).then(|| Duration::from_millis(allowed_ms)),
            prompt_len,
            answer_len,
        },
    );
    prop::collection::vec(demand, 1..40).prop_map(|mut demands| {
        demands.sort_by_key(|demand| demand.arrival);
        demands
    })
}

fn assert_kept(demands: &[Demand], run: &Run) -> Result<(), TestCaseError> {
    for (demand, outcome) in demands.iter().zip(&run.outcomes) {
        let Outcome::Replied { at, num_tokens, is_complete } = *outcome else {
            prop_assert!(demand.class != Class::Background || run.outcomes.len() > 8, "refused: {demand:?}");
            continue;
        };
        prop_assert!(at >= demand.arrival);
        prop_assert!(num_tokens <= demand.answer_len);
        match (demand.class, demand.allowed) {
            (Class::Control, Some(allowed)) => {
                prop_assert!(at <= demand.arrival + allowed, "late: {demand:?} at {at:?}");
                prop_assert!(num_tokens > 0, "no token by the deadline: {demand:?}");
            }
            (Class::Background, _) => prop_assert!(is_complete, "cut without a deadline: {demand:?}"),
            _ => {}
        }
    }
    Ok(())
}

/// No lane runs two requests at once, no section is longer than allowed, sections do not overlap.
fn assert_sections(run: &Run, settings: &Settings) -> Result<(), TestCaseError> {
    let mut end = Duration::ZERO;
    for record in &run.records {
        prop_assert!(record.start >= end, "sections overlap");
        end = record.start + record.took;
        let mut lanes: Vec<usize> = record
            .decodes
            .iter()
            .map(|(lane, _)| lane.0)
            .chain(record.slice.map(|(lane, ..)| lane.0))
            .collect();
        let num = lanes.len();
        lanes.sort_unstable();
        lanes.dedup();
        prop_assert_eq!(lanes.len(), num, "a lane twice in {:?}", record);
        prop_assert!(lanes.iter().all(|&lane| lane < settings.num_lanes));
        let slice_len = record.slice.map_or(0, |(_, _, len)| len);
        prop_assert!(slice_len <= settings.limits.max_prefill_slice_tokens);
        if slice_len > 1 {
            prop_assert!(record.took <= settings.limits.max_section, "{:?}", record);
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn forced_tokens_of_others_break_no_promise(demands in demands(), num_lanes in 1_usize..5) {
        let settings = Settings { has_forms: true, ..settings(Policy::Takt, num_lanes) };
        let run = play(&demands, &table(), &settings, |_| {});
        assert_kept(&demands, &run)?;
        assert_sections(&run, &settings)?;
    }

    #[test]
    fn every_promise_is_kept_and_every_request_ends_once(demands in demands(), num_lanes in 1_usize..5) {
        let settings = settings(Policy::Takt, num_lanes);
        let run = play(&demands, &table(), &settings, |_| {});
        prop_assert_eq!(run.outcomes.len(), demands.len());
        assert_kept(&demands, &run)?;
        assert_sections(&run, &settings)?;
    }

    #[test]
    fn every_promise_is_kept_beside_gaps_and_a_strict_limit(
        demands in demands(), num_lanes in 1_usize..5, gap_us in 1_u64..3000, strict_us in 800_u64..4000,
    ) {
        let mut settings = settings(Policy::Takt, num_lanes);
        let strict = Duration::from_micros(strict_us);
        settings.limits.idle_gap = Duration::from_micros(gap_us);
        settings.limits.max_section = settings.limits.max_section.min(strict);
        settings.limits.max_any_section = Some(strict);
        let run = play(&demands, &table(), &settings, |_| {});
        assert_kept(&demands, &run)?;
        for pair in run.records.windows(2) {
            let end = pair[0].start + pair[0].took;
            prop_assert!(pair[1].start >= end + settings.limits.idle_gap, "no gap between {:?}", pair);
        }
        for record in &run.records {
            let is_least = record.decodes.len() + record.slice.map_or(0, |(_, _, len)| len) == 1;
            prop_assert!(is_least || record.took <= strict, "{:?} beyond {strict:?}", record);
        }
    }

    #[test]
    fn what_is_said_to_be_the_earliest_beside_gaps_would_have_been_admitted(
        demands in demands(), num_lanes in 1_usize..5, gap_us in 1_u64..3000,
    ) {
        let mut settings = settings(Policy::Takt, num_lanes);
        settings.limits.idle_gap = Duration::from_micros(gap_us);
        let run = play(&demands, &table(), &settings, |_| {});
        let refused = run.outcomes.iter().position(|outcome| matches!(outcome, Outcome::Rejected { earliest: Some(_) }));
        if let Some(idx) = refused
            && let Outcome::Rejected { earliest: Some(earliest) } = run.outcomes[idx]
        {
            let mut again = demands[..=idx].to_vec();
            again[idx].allowed = Some(earliest + Duration::from_nanos(1));
            let run = play(&again, &table(), &settings, |_| {});
            prop_assert!(matches!(run.outcomes[idx], Outcome::Replied { .. }), "{:?} from {earliest:?}", run.outcomes[idx]);
            assert_kept(&again, &run)?;
        }
    }

    #[test]
    fn what_is_said_to_be_the_earliest_deadline_would_have_been_admitted(demands in demands(), num_lanes in 1_usize..5) {
        let settings = settings(Policy::Takt, num_lanes);
        let run = play(&demands, &table(), &settings, |_| {});
        let refused = run.outcomes.iter().position(|outcome| matches!(outcome, Outcome::Rejected { earliest: Some(_) }));
        if let Some(idx) = refused
            && let Outcome::Rejected { earliest: Some(earliest) } = run.outcomes[idx]
        {
            let mut again = demands[..=idx].to_vec();
            prop_assert!(again[idx].allowed.is_some_and(|allowed| allowed < earliest));
            again[idx].allowed = Some(earliest + Duration::from_nanos(1));
            let run = play(&again, &table(), &settings, |_| {});
            prop_assert!(matches!(run.outcomes[idx], Outcome::Replied { .. }), "{:?} from {earliest:?}", run.outcomes[idx]);
            assert_kept(&again, &run)?;
        }
    }
}

#[test]
fn a_promise_is_not_taken_for_broken_while_the_section_that_keeps_it_runs() {
    let of = |arrival: u64, class, allowed: u64, prompt_len, answer_len| Demand {
        arrival: Duration::from_millis(arrival),
        class,
        allowed: Some(Duration::from_millis(allowed)),
        prompt_len,
        answer_len,
    };
    let demands = [
        of(2, Class::Interactive, 10, 17, 4),
        of(4, Class::Control, 21, 17, 9),
        of(8, Class::Control, 59, 33, 20),
        of(11, Class::Control, 86, 73, 1),
        of(18, Class::Control, 30, 17, 9),
        of(23, Class::Control, 15, 1, 6),
        of(25, Class::Control, 53, 26, 8),
        of(30, Class::Control, 42, 49, 10),
        of(37, Class::Control, 46, 2, 8),
        of(41, Class::Control, 47, 66, 2),
        of(79, Class::Control, 16, 33, 4),
    ];
    let run = play(&demands, &table(), &settings(Policy::Takt, 4), |_| {});
    assert_kept(&demands, &run).unwrap();
}

#[test]
fn under_overload_nothing_promised_is_missed_and_more_is_answered_than_by_other_policies() {
    let demands = random(2000, 120.0, Arrivals::Poisson, 5);
    let report = |policy| {
        let run = play(&demands, &table(), &settings(policy, 4), |_| {});
        Report::of(&demands, &run)
    };
    let takt = report(Policy::Takt);
    assert_eq!(takt.control.num_missed, 0, "{takt:?}");
    assert!(takt.utilisation > 0.9, "{takt:?}");
    assert!(takt.max_late_ms <= 0.0 || takt.interactive.num_missed > 0, "{takt:?}");
    for policy in [Policy::AdmitAll, Policy::Fifo, Policy::RoundRobin] {
        let other = report(policy);
        assert!(policy == Policy::AdmitAll || other.control.num_missed > 0, "{policy}: {other:?}");
        assert!(
            takt.control.num_answered > other.control.num_answered,
            "{policy}: {other:?} against {takt:?}"
        );
    }
}

#[test]
fn background_work_gets_its_share_beside_a_full_load_of_others() {
    let mut demands = random(1500, 120.0, Arrivals::Poisson, 6);
    demands.retain(|demand| demand.class != Class::Background);
    let idle = Demand {
        arrival: Duration::ZERO,
        class: Class::Background,
        allowed: None,
        prompt_len: 100,
        answer_len: 60,
    };
    demands.splice(0..0, [idle; 4]);
    let run = play(&demands, &table(), &settings(Policy::Takt, 4), |_| {});
    let report = Report::of(&demands, &run);
    assert_eq!((report.control.num_missed, report.background.num_complete), (0, 4), "{report:?}");
}

#[test]
fn with_little_to_do_everybody_gets_a_whole_answer() {
    let demands = random(500, 2.0, Arrivals::Poisson, 7);
    let run = play(&demands, &table(), &settings(Policy::Takt, 4), |_| {});
    let report = Report::of(&demands, &run);
    for (class, figures) in report.classes() {
        assert_eq!(figures.num_missed, 0, "{class:?} {figures:?}");
        assert!(figures.num_complete * 10 >= figures.num_requests * 9, "{class:?} {figures:?}");
    }
}

#[test]
fn the_picture_is_well_formed_and_shows_every_kept_section() {
    let demands = random(60, 60.0, Arrivals::Bursty, 8);
    let run = play(&demands, &table(), &settings(Policy::Takt, 4), |_| {});
    let svg = gantt::svg(&demands, &run, 4);
    let num_parts: usize =
        run.records.iter().map(|record| record.decodes.len() + usize::from(record.slice.is_some())).sum();
    assert_eq!(svg.matches("<title>request").count(), num_parts + svg.matches(": refused</title>").count());
    assert_eq!(svg.matches("<svg").count(), svg.matches("</svg>").count());
    assert!(to_text(&demands).lines().count() == 60);
}
