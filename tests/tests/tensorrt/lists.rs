//! Lists of the likeliest tokens of mixed steps, and their graphs, of which not all stay.

use takt_engine::{
    backend::Backend,
    kv::LaneId,
    step::{Detail, LogitsWanted, StepPlan},
};
use takt_tests::backends::argmax;

use crate::{
    emulator::driver::Device,
    models::{emulated, options, usual},
};

/// Most graphs of lists at a time.
const MAX_GRAPHS: u64 = 96;

/// What a step asks of its lanes.
#[derive(Debug, Clone, Copy)]
enum Work {
    Single,
    /// Of so many nodes.
    Tree(usize),
    /// All rows of so many tokens.
    Scored(usize),
    /// The same, behind the rows of a tree that nobody asks for.
    ScoredBehind(usize),
    /// The last row of so many tokens.
    Prompt(usize),
}

/// A step with lists of `len` in the first `num_lanes` lanes.
#[derive(Debug, Clone, Copy)]
struct Asked {
    num_lanes: usize,
    work: Work,
    len: usize,
}

/// Steps of which each has lists in other rows, or in other numbers, or of other lengths, than all others.
fn all() -> Vec<Asked> {
    let mut steps: Vec<(usize, Work)> = (1..=3).map(|num_lanes| (num_lanes, Work::Single)).collect();
    let trees = [(1, 2), (1, 4), (1, 8), (1, 20), (2, 8), (2, 20), (3, 2), (3, 4), (3, 8), (3, 20)];
    steps.extend(trees.map(|(num_lanes, num_nodes)| (num_lanes, Work::Tree(num_nodes))));
    // To powers of two; shorter ones are as many rows as trees are.
    steps.extend([32, 60].map(|len| (1, Work::Scored(len))));
    steps.extend([2, 7, 16, 30].map(|len| (1, Work::ScoredBehind(len))));
    steps.push((1, Work::Prompt(7)));
    let with_len = |(num_lanes, work)| [1, 8, 16, 32, 64].map(|len| Asked { num_lanes, work, len });
    steps.into_iter().flat_map(with_len).collect()
}

/// Runs it in empty lanes and looks at lists of every segment.
fn run(backend: &mut dyn Backend, asked: Asked) {
    let mut plan = StepPlan::default();
    let mut last_row = 0;
    for lane in (0..asked.num_lanes).map(LaneId) {
        backend.truncate(lane, 0).unwrap();
        let tokens: Vec<u32> = (0..60).map(|token| 3 + token).collect();
        match asked.work {
            Work::Single => plan.push(lane, &tokens[..1], LogitsWanted::Last),
            Work::Tree(len) => plan.push_tree(lane, &tokens[..len], &vec![0; len]),
            Work::Scored(len) => plan.push(lane, &tokens[..len], LogitsWanted::All),
            Work::ScoredBehind(len) => {
                backend.truncate(LaneId(2), 0).unwrap();
                plan.push(lane, &tokens[..len], LogitsWanted::All);
            }
            Work::Prompt(len) => plan.push(lane, &tokens[..len], LogitsWanted::Last),
        }
        plan.last_needs(Detail::Likeliest(asked.len));
        last_row = match asked.work {
            Work::Tree(len) | Work::Scored(len) | Work::ScoredBehind(len) => len - 1,
            Work::Single | Work::Prompt(_) => 0,
        };
    }
    let num_asked = plan.segments.len();
    if let Work::ScoredBehind(_) = asked.work {
        plan.push_tree(LaneId(2), &[3, 4], &[0, 0]);
        plan.last_needs(Detail::OnDemand);
    }
    let mut output = backend.run_step(&plan).unwrap();
    for idx in 0..num_asked {
        for row in [0, last_row] {
            let mut found = output.row(idx, row).unwrap();
            let listed: Vec<_> = found.list().expect("a list").entries().collect();
            let whole = found.whole().unwrap();
            assert_eq!(listed[0].0, argmax(whole), "{asked:?}: segment {idx}, row {row}");
            assert!(listed.len() >= asked.len, "{asked:?}: {} tokens", listed.len());
            assert!(listed.iter().all(|(token, value)| whole[*token as usize] == *value), "{asked:?}");
        }
    }
}

fn captures(device: &Device) -> u64 {
    device.report().calls("cuStreamBeginCapture_v2")
}

#[test]
fn graphs_of_lists_that_were_not_run_for_longest_give_way_and_come_back() {
    let test = "lists::graphs_of_lists_that_were_not_run_for_longest_give_way_and_come_back";
    emulated(test, |device, _, _| {
        let mut backend = usual().open(&options()).unwrap();
        let all = all();
        for asked in &all {
            run(&mut backend, *asked);
        }
        // Five of decode steps, ten of trees and one in another lane, and lists.
        let graphs = || device.report().value("graph_execs");
        assert_eq!(graphs(), 5 + 11 + MAX_GRAPHS);
        let num_gone = all.len() - MAX_GRAPHS as usize;
        assert_eq!(num_gone, 4);
        let (first, later) = all.split_at(num_gone);
        let last = &later[later.len() - 10..];
        let mut captured_by = |steps: &[Asked]| {
            let before = captures(device);
            steps.iter().for_each(|asked| run(&mut backend, *asked));
            captures(device) - before
        };
        assert_eq!(captured_by(last), 0);
        assert_eq!(captured_by(first), 4);
        assert_eq!(captured_by(first) + captured_by(last), 0);
        assert_eq!(captured_by(&later[..1]), 1, "the oldest when others came back");
        assert_eq!(graphs(), 5 + 11 + MAX_GRAPHS);
    });
}

#[test]
fn every_section_of_a_mixed_step_has_a_list_of_its_own_rows_alone() {
    let test = "lists::every_section_of_a_mixed_step_has_a_list_of_its_own_rows_alone";
    emulated(test, |device, _, _| {
        let mut backend = usual().open(&options()).unwrap();
        let mut step = |detail| {
            (0..3).for_each(|lane| backend.truncate(LaneId(lane), 0).unwrap());
            let mut plan = StepPlan::default();
            plan.push(LaneId(2), &[5], LogitsWanted::Last);
            plan.last_needs(detail);
            plan.push_tree(LaneId(0), &[6, 7, 8], &[0, 0, 1]);
            plan.last_needs(detail);
            plan.push(LaneId(1), &[9; 40], LogitsWanted::Last);
            plan.last_needs(Detail::OnDemand);
            let before = device.report();
            backend.run_step(&plan).unwrap();
            let after = device.report();
            let launches = after.calls_since(&before)["cuGraphLaunch"];
            (launches, after.value("bytes_to_host") - before.value("bytes_to_host"))
        };
        step(Detail::OnDemand);
        let (sections, nothing) = step(Detail::OnDemand);
        assert_eq!(nothing, 0);
        step(Detail::Likeliest(1));
        // One row of one lane, and a tree of four: a status, a token and its logit each. Nobody wants a list of the prompt.
        assert_eq!(step(Detail::Likeliest(1)), (sections + 2, (1 + 4) * 12));
    });
}
