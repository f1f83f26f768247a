//! Answers with a form through the worker: whatever ends them, and whenever, they have it.

use std::time::Duration;

use crossbeam_channel::Receiver;
use serde_json::{Value, json};
use takt_engine::grammar::{ClosingPolicy, GrammarSpec};
use takt_node::{
    bench::forms::Judge,
    random::SplitMix64,
    request::{Event, Form, Reply, RequestId, Status},
    worker::{Turn, WorkerOptions},
};
use takt_tests::worker_bench::{Bench, Demand, finish};

const MS: Duration = Duration::from_millis(1);

fn skill_schema() -> Value {
    json!({
        "type": "object",
        "properties": {
            "skill": {"enum": ["stop", "goto", "pick"], "x-takt-safe": true},
            "object": {"type": "string", "maxLength": 24, "default": ""},
            "speed": {"type": "number", "minimum": 0, "maximum": 1.5, "default": 0},
            "then": {"type": "array", "maxItems": 3, "items": {"enum": ["wait", "report"], "x-takt-safe": true}, "default": []},
        },
        "required": ["skill", "object", "speed", "then"],
        "additionalProperties": false,
    })
}

fn form(schema: Value) -> Option<Form> {
    Some(Form { spec: GrammarSpec::JsonSchema(schema), closing: ClosingPolicy::Declared })
}

fn skill(text: &str) -> Demand {
    Demand { form: form(skill_schema()), ..Demand::raw(text) }
}

/// The reply, which must have the form and be what was streamed.
fn valid(events: &Receiver<Event>) -> Reply {
    let (reply, streamed) = finish(events);
    assert_eq!(reply.text, streamed);
    if let Err(error) = Judge::new(&skill_schema()).unwrap().check(reply.text.as_bytes()) {
        panic!("{error}: {reply:?}");
    }
    reply
}

#[test]
fn an_answer_cut_at_any_deadline_is_valid_and_says_what_is_not_the_models() {
    let (mut num_closed, mut num_complete, mut num_without_a_token) = (0, 0, 0);
    let mut bench = Bench::new(1, &WorkerOptions::default());
    for allowed in (2..160).step_by(3) {
        let allowed = allowed * MS;
        let (_, events) = bench.ask(Demand { allowed: Some(allowed), ..skill("pick the red cup") });
        bench.run_until_idle();
        let reply = valid(&events);
        assert!(reply.timings.total <= allowed, "{:?}", reply.timings);
        let fields = reply.closing.map(|closing| (closing.defaulted_fields, closing.cut_fields));
        match reply.status {
            Status::ClosedAtDeadline => {
                num_closed += 1;
                assert_eq!(reply.finish_reason, "deadline");
                num_without_a_token += usize::from(reply.token_ids.is_empty());
                let all = ["/skill", "/object", "/speed", "/then"];
                assert!(!reply.token_ids.is_empty() || fields.unwrap().0 == all, "all of it stands in");
            }
            Status::Complete => num_complete += 1,
            _ => panic!("{reply:?}", reply = reply.status),
        }
    }
    assert!(num_closed > 5 && num_complete > 5 && num_without_a_token > 0, "{num_closed} {num_complete}");
}

#[test]
fn a_promised_deadline_is_kept_with_a_form_and_a_shorter_one_is_refused() {
    let mut bench = Bench::new(1, &WorkerOptions::default());
    let refused = finish(&bench.ask(skill("pick the red cup").promised(3 * MS)).1).0;
    assert_eq!((refused.status, refused.text.as_str()), (Status::Rejected, ""));
    let earliest = refused.earliest_deadline.unwrap();
    let events = bench.ask(skill("pick the red cup").promised(earliest)).1;
    bench.run_until_idle();
    let reply = valid(&events);
    assert!(reply.is_promised && reply.timings.total <= earliest, "{:?}", reply.timings);
    assert!(!reply.token_ids.is_empty());
}

#[test]
fn a_form_without_a_closing_is_refused_on_arrival_with_the_fields_path() {
    let mut bench = Bench::new(1, &WorkerOptions::default());
    let open = json!({"type": "object", "properties": {"speed": {"type": "number"}}, "required": ["speed"]});
    let nothing = json!({"type": "string", "minLength": 9, "maxLength": 3, "default": ""});
    let endless = json!({"$defs": {"n": {"type": "object", "properties": {"n": {"$ref": "#/$defs/n"}}, "required": ["n"]}}, "$ref": "#/$defs/n"});
    for (schema, word) in [(open, "/speed"), (nothing, "minLength is 9"), (endless, "/n")] {
        let (_, events) = bench.ask(Demand { form: form(schema), ..Demand::raw("a") });
        let (reply, _) = finish(&events);
        assert_eq!(reply.status, Status::Rejected);
        assert!(reply.reason.as_ref().unwrap().contains(word), "{:?}", reply.reason);
    }
    assert_eq!((bench.core.num_open(), bench.core.num_free_lanes()), (0, 1));
}

#[test]
fn a_request_cancelled_at_any_stage_gets_one_valid_reply() {
    // Without snapshots every prompt is read anew, in slices: cancellations fall into all of its stages.
    let options =
        WorkerOptions { max_prefill_slice_tokens: 4, prefix_snapshots: 0, ..WorkerOptions::default() };
    let mut bench = Bench::new(1, &options);
    for num_turns in 0..14 {
        let (id, events) = bench.ask(skill(&format!("{num_turns} pick the red cup")));
        let (queued, waiting) = bench.ask(skill("go to the lab"));
        for _ in 0..num_turns {
            bench.core.turn().unwrap();
        }
        bench.core.cancel(id);
        bench.core.cancel(id);
        bench.core.cancel(queued);
        assert_eq!((bench.core.num_open(), bench.core.num_free_lanes()), (0, 1));
        for events in [events, waiting] {
            let reply = valid(&events);
            assert_eq!((reply.status, reply.finish_reason), (Status::Cancelled, "cancelled"));
            assert!(reply.closing.is_some());
        }
        bench.core.cancel(RequestId(u64::MAX));
    }
}

#[test]
fn forms_and_free_text_share_lanes_and_give_the_same_answers_as_alone() {
    let prompts = ["pick the red cup", "go to the lab", "stop", "where are you"];
    let demand = |i: usize| {
        if i.is_multiple_of(2) {
            skill(prompts[i])
        } else {
            Demand { max_tokens: 30, ..Demand::raw(prompts[i]) }
        }
    };
    let alone: Vec<(String, Vec<u32>)> = (0..prompts.len())
        .map(|i| {
            let mut bench = Bench::new(1, &WorkerOptions::default());
            let (_, events) = bench.ask(demand(i));
            bench.run_until_idle();
            let (reply, _) = finish(&events);
            (reply.text, reply.token_ids)
        })
        .collect();
    let mut bench = Bench::new(3, &WorkerOptions::default());
    let events: Vec<_> = (0..prompts.len()).map(|i| bench.ask(demand(i)).1).collect();
    bench.run_until_idle();
    for (events, alone) in events.iter().zip(alone) {
        let (reply, _) = finish(events);
        assert_eq!((reply.text, reply.token_ids), alone);
    }
}

#[test]
fn forced_tokens_share_a_step_and_change_no_answer() {
    let answer = |num_lanes: usize| {
        let mut bench = Bench::new(num_lanes, &WorkerOptions::default());
        let (_, events) = bench.ask(skill("pick the red cup"));
        let mut num_turns = 0;
        while bench.core.turn().unwrap() == Turn::Worked {
            num_turns += 1;
        }
        (valid(&events), num_turns)
    };
    let (one_by_one, num_slow) = answer(1);
    let (along, num_fast) = answer(4);
    assert_eq!((&along.text, &along.token_ids), (&one_by_one.text, &one_by_one.token_ids));
    assert!(num_fast < num_slow, "{num_fast} sections with room for forced tokens, {num_slow} without");
    assert!(num_slow > one_by_one.token_ids.len() / 2);
}

#[test]
fn a_burst_with_forms_leaves_one_valid_reply_each_and_keeps_every_promise() {
    let mut bench = Bench::new(2, &WorkerOptions::default());
    let mut random = SplitMix64(7);
    let mut askers = Vec::new();
    for i in 0..600 {
        let allowed = (3 + random.below(120)) as u32 * MS;
        let demand = match i % 3 {
            0 => skill("stop now").promised(allowed),
            1 => Demand { allowed: Some(allowed), ..skill("stop now") },
            _ => skill("stop now"),
        };
        askers.push(bench.ask(demand));
        match random.below(4) {
            0 => bench.core.cancel(askers[random.below(askers.len())].0),
            1 | 2 => drop(bench.core.turn().unwrap()),
            _ => {}
        }
    }
    bench.run_until_idle();
    let mut num_kept = 0;
    for (_, events) in &askers {
        let (reply, _) = finish(events);
        if reply.status == Status::Rejected {
            continue;
        }
        if let Err(error) = Judge::new(&skill_schema()).unwrap().check(reply.text.as_bytes()) {
            panic!("{error}: {reply:?}");
        }
        if reply.is_promised && reply.status != Status::Cancelled {
            num_kept += 1;
            assert!(reply.timings.total <= reply.timings.deadline.unwrap(), "{reply:?}");
            assert!(!reply.token_ids.is_empty(), "{reply:?}");
        }
    }
    assert!(num_kept > 20, "{num_kept}");
    assert_eq!(bench.core.num_free_lanes(), 2);
}

#[test]
fn a_failed_request_shows_what_there_is_and_does_not_make_it_look_whole() {
    let mut bench = Bench::new(1, &WorkerOptions::default());
    let (_, events) = bench.ask(skill("pick the red cup"));
    for _ in 0..3 {
        bench.core.turn().unwrap();
    }
    bench.core.end_all(Status::Failed, "the test pulled the plug");
    let (reply, _) = finish(&events);
    assert_eq!((reply.status, reply.closing), (Status::Failed, None));
    assert!(Judge::new(&skill_schema()).unwrap().check(reply.text.as_bytes()).is_err(), "{}", reply.text);
}

#[test]
fn a_clock_that_jumps_ends_who_is_out_of_time_with_one_valid_reply_and_the_next_promise_is_kept() {
    let mut bench = Bench::new(1, &WorkerOptions::default());
    for num_turns in [0, 1, 3, 8] {
        let promised = bench.ask(skill("pick the red cup").promised(500 * MS)).1;
        let waiting = bench.ask(Demand { allowed: Some(900 * MS), ..skill("go to the lab") }).1;
        let background = bench.ask(skill("where are you")).1;
        for _ in 0..num_turns {
            bench.core.turn().unwrap();
        }
        bench.clock.advance(Duration::from_secs(3600)); // the machine slept
        bench.run_until_idle();
        for events in [promised, waiting] {
            let reply = valid(&events);
            assert_eq!(
                (reply.status, reply.finish_reason),
                (Status::ClosedAtDeadline, "deadline"),
                "{reply:?}"
            );
        }
        assert_eq!(valid(&background).status, Status::Complete);
        let next = bench.ask(skill("stop").promised(500 * MS)).1;
        bench.run_until_idle();
        let reply = valid(&next);
        assert!(reply.is_promised && reply.timings.total <= 500 * MS, "{reply:?}");
        assert_eq!(bench.core.num_free_lanes(), 1);
    }
}
