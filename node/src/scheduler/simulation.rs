//! The planner in virtual time: whole schedules of random requests, with sections that cost what the pace says.

use std::time::{Duration, Instant};

use proptest::prelude::*;
use takt_engine::kv::LaneId;

use super::{
    edf::{EdfQueue, Rank},
    lanes::Lanes,
    pace::Pace,
    planner::{LaneState, Limits, Phase, Section, plan},
};

const DECODE: Duration = Duration::from_micros(900);
const PREFILL_TOKEN: Duration = Duration::from_micros(50);
const LIMITS: Limits =
    Limits { max_prefill_slice_tokens: 32, max_step_tokens: 40, reply_margin: Duration::from_micros(500) };

#[derive(Debug, Clone)]
struct Demand {
    arrival: Duration,
    allowed: Option<Duration>,
    prompt_len: usize,
    answer_len: usize,
}

#[derive(Debug, Clone)]
struct Running {
    demand: usize,
    rank: Rank,
    prompt_left: usize,
    answer_left: usize,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum End {
    Complete(Duration),
    /// Cut, and whether it was still waiting for a lane.
    Cut(Duration, bool),
}

fn demands() -> impl Strategy<Value = Vec<Demand>> {
    let demand = (0_u64..60, prop::option::weighted(0.8, 0_u64..60), 1_usize..90, 1_usize..20).prop_map(
        |(arrival_ms, allowed_ms, prompt_len, answer_len)| Demand {
            arrival: Duration::from_millis(arrival_ms),
            allowed: allowed_ms.map(Duration::from_millis),
            prompt_len,
            answer_len,
        },
    );
    prop::collection::vec(demand, 1..24)
}

/// Plays `demands` to the end; returns how each ended.
fn play(demands: &[Demand], num_lanes: usize) -> Vec<End> {
    let start = Instant::now();
    let mut pace = Pace::default();
    pace.record(1, 0, DECODE);
    pace.record(0, 1, PREFILL_TOKEN);
    let (mut now, mut ends) = (start, vec![None; demands.len()]);
    let mut waiting: EdfQueue<Running> = EdfQueue::new(demands.len());
    let mut lanes: Lanes<Running> = Lanes::new(num_lanes);
    let mut arrivals: Vec<usize> = (0..demands.len()).collect();
    arrivals.sort_by_key(|&i| std::cmp::Reverse(demands[i].arrival));
    let mut section = Section::default();
    loop {
        while arrivals.last().is_some_and(|&i| start + demands[i].arrival <= now) {
            let i = arrivals.pop().unwrap();
            let demand = &demands[i];
            let deadline = demand.allowed.map(|allowed| start + demand.arrival + allowed);
            let rank = Rank { deadline, ticket: (demands.len() - arrivals.len()) as u64 };
            let running =
                Running { demand: i, rank, prompt_left: demand.prompt_len, answer_left: demand.answer_len };
            waiting.push(rank, running).unwrap();
        }
        for late in waiting.take_if(|rank, _| rank.deadline.is_some_and(|d| d - LIMITS.reply_margin <= now)) {
            assert!(ends[late.demand].replace(End::Cut(now - start, true)).is_none(), "replied twice");
        }
        while let Some(choice) = lanes.choose(&[]) {
            let Some((_, running)) = waiting.pop() else { break };
            lanes.occupy(choice.lane, running).unwrap();
        }
        assert_eq!(lanes.num_free() + lanes.num_used(), num_lanes);
        let states = states(&lanes);
        plan(&states, now, &pace, &LIMITS, &mut section);
        check_section(&section, &states);
        for &lane in &section.cut {
            let cut = lanes.release(lane).expect("a cut lane is in use");
            assert!(ends[cut.demand].replace(End::Cut(now - start, false)).is_none(), "replied twice");
        }
        if section.is_idle() {
            if !waiting.is_empty() && !section.cut.is_empty() {
                continue; // lanes just became free
            }
            assert!(waiting.is_empty() && lanes.num_used() == 0, "idle with work to do");
            let Some(&next) = arrivals.last() else { break };
            now = start + demands[next].arrival;
            continue;
        }
        let slice_len = section.prefill.map_or(0, |(_, len)| len);
        now += pace.section(section.decodes.len(), slice_len);
        run_section(&section, &mut lanes, |demand| {
            assert!(ends[demand].replace(End::Complete(now - start)).is_none(), "replied twice");
        });
    }
    ends.into_iter().map(|end| end.expect("every request is replied to")).collect()
}

fn states(lanes: &Lanes<Running>) -> Vec<LaneState> {
    let mut states: Vec<LaneState> = lanes
        .used()
        .map(|(lane, running)| {
            let remaining = running.prompt_left;
            let phase = if remaining > 0 {
                Phase::Prefill { remaining, until_stop: remaining }
            } else {
                Phase::Decode
            };
            LaneState { lane, rank: running.rank, phase }
        })
        .collect();
    states.sort_by_key(|state| state.rank);
    states
}

fn check_section(section: &Section, states: &[LaneState]) {
    let slice_len = section.prefill.map_or(0, |(_, len)| len);
    assert!(slice_len <= LIMITS.max_prefill_slice_tokens);
    assert!(section.decodes.len() + slice_len <= LIMITS.max_step_tokens);
    let mut lanes: Vec<LaneId> = section.decodes.iter().chain(&section.cut).copied().collect();
    lanes.extend(section.prefill.map(|(lane, _)| lane));
    let planned = lanes.len();
    lanes.sort_unstable();
    lanes.dedup();
    assert_eq!(lanes.len(), planned, "a lane twice in {section:?}");
    let decoding = states.iter().filter(|state| state.phase == Phase::Decode).count();
    let cut_decoding =
        section.cut.iter().filter(|lane| states.iter().any(|s| s.lane == **lane && s.phase == Phase::Decode));
    assert_eq!(
        section.decodes.len() + cut_decoding.count(),
        decoding,
        "every decoding lane advances or is cut"
    );
}

fn run_section(section: &Section, lanes: &mut Lanes<Running>, mut complete: impl FnMut(usize)) {
    if let Some((lane, len)) = section.prefill {
        let running = lanes.holder_mut(lane).unwrap();
        running.prompt_left -= len;
        running.answer_left -= usize::from(running.prompt_left == 0); // prefill's end gives the first token
    }
    for &lane in &section.decodes {
        lanes.holder_mut(lane).unwrap().answer_left -= 1;
    }
    let done: Vec<LaneId> = lanes
        .used()
        .filter(|(_, running)| running.prompt_left == 0 && running.answer_left == 0)
        .map(|(lane, _)| lane)
        .collect();
    for lane in done {
        complete(lanes.release(lane).unwrap().demand);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn every_request_ends_once_and_background_work_is_never_cut(demands in demands(), num_lanes in 1_usize..5) {
        for (demand, end) in demands.iter().zip(play(&demands, num_lanes)) {
            match (demand.allowed, end) {
                (None, End::Cut(..)) => prop_assert!(false, "cut without a deadline: {demand:?}"),
                (_, End::Complete(at) | End::Cut(at, _)) => prop_assert!(at >= demand.arrival),
            }
        }
    }

    #[test]
    fn a_reply_is_at_most_one_section_late_and_only_when_others_ran_first(
        demands in demands(), num_lanes in 1_usize..5,
    ) {
        let longest_section = DECODE + PREFILL_TOKEN * 32;
        for (demand, end) in demands.iter().zip(play(&demands, num_lanes)) {
            let (End::Complete(at) | End::Cut(at, _)) = end;
            if let Some(allowed) = demand.allowed {
                prop_assert!(at <= demand.arrival + allowed + longest_section, "{demand:?} ended at {at:?}");
            }
        }
    }

    #[test]
    fn alone_a_request_never_replies_after_its_deadline(allowed_ms in 1_u64..40, prompt_len in 1_usize..200) {
        let demand = Demand {
            arrival: Duration::ZERO, allowed: Some(Duration::from_millis(allowed_ms)), prompt_len, answer_len: 1000,
        };
        let End::Cut(at, waiting) = play(std::slice::from_ref(&demand), 1)[0] else { panic!("1000 tokens do not fit") };
        prop_assert!(!waiting);
        prop_assert!(at <= Duration::from_millis(allowed_ms), "cut at {at:?}");
        // … and not earlier than needed: less than the longest section and the margin are left.
        prop_assert!(at + DECODE + PREFILL_TOKEN * 32 + LIMITS.reply_margin >= Duration::from_millis(allowed_ms));
    }
}

#[test]
fn the_earliest_deadline_reads_its_prompt_first() {
    let now = Instant::now();
    let state = |lane, deadline_ms| LaneState {
        lane: LaneId(lane),
        rank: Rank { deadline: Some(now + Duration::from_millis(deadline_ms)), ticket: 0 },
        phase: Phase::Prefill { remaining: 100, until_stop: 20 },
    };
    let mut section = Section::default();
    plan(&[state(1, 50), state(0, 80)], now, &Pace::default(), &LIMITS, &mut section);
    assert_eq!(section.prefill, Some((LaneId(1), 20)), "the slice stops where a snapshot is to be taken");
}

#[test]
fn a_slice_shrinks_so_that_an_earlier_deadline_beside_it_is_kept() {
    let now = Instant::now();
    let mut pace = Pace::default();
    pace.record(1, 0, DECODE);
    pace.record(0, 1, PREFILL_TOKEN);
    let rank = |ms, ticket| Rank { deadline: Some(now + Duration::from_micros(ms)), ticket };
    let decoding = LaneState { lane: LaneId(0), rank: rank(2000, 0), phase: Phase::Decode };
    let reading = LaneState {
        lane: LaneId(1),
        rank: rank(50_000, 1),
        phase: Phase::Prefill { remaining: 100, until_stop: 100 },
    };
    let mut section = Section::default();
    plan(&[decoding, reading], now, &pace, &LIMITS, &mut section);
    // 2.0 ms - 0.5 ms margin - 0.9 ms decode leave 0.6 ms: 12 tokens of 0.05 ms.
    assert!(matches!(section.prefill, Some((LaneId(1), 11 | 12))), "{section:?}");
    assert_eq!(section.decodes, [LaneId(0)]);
}
