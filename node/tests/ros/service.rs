use std::time::{Duration, Instant};

use takt_engine::grammar::{Closing, ClosingPolicy, GrammarSpec};
use takt_node::request::{Form, Status};
use takt_node::ros::message::{ASK, Message as _};
use takt_node::ros::transport::{Call, Transport};
use takt_node::ros::{Answer, AskClient, AskDefaults, Question, RosDuration, RosError, RosOptions, serve};

use super::{
    EchoWorker, PATIENCE, dds_options, echo, next, private_options, send_closed, send_reply, serve_echo,
};

fn ask(prompt: &str) -> Question {
    Question { prompt: prompt.to_owned(), ..Question::default() }
}

/// A client of the node's service that takes any bytes.
fn raw_client(node: &RosOptions, name: &str) -> (Box<dyn Transport>, Box<dyn Call>) {
    let transport = takt_node::ros::join(&RosOptions { node_name: name.to_owned(), ..node.clone() }).unwrap();
    let client = transport.client(&node.node().unwrap().private("ask"), ASK).unwrap();
    assert!(client.wait_for_server(PATIENCE));
    (transport, client)
}

#[test]
fn a_call_is_answered_with_status_text_and_timings() {
    let options = private_options();
    let _node = serve_echo(&options);
    let client = AskClient::connect(&options, PATIENCE).unwrap();
    let deadline = RosDuration::from_std(Duration::from_secs(20));
    let reply = client.ask(&Question { deadline, ..ask("what now?") }, PATIENCE).unwrap();
    assert_eq!((reply.status.as_str(), reply.text.as_str()), ("complete", "echo: what now?"));
    assert_eq!((reply.num_prompt_tokens, reply.num_tokens), (5, 3));
    assert!(reply.ttft_ms >= 0.0 && reply.total_ms >= reply.ttft_ms);
    assert!((reply.deadline_ms - 20_000.0).abs() < 1e-6, "{}", reply.deadline_ms);
    assert_eq!(reply.reason, "");
}

#[test]
fn twenty_fresh_clients_lose_no_reply() {
    let options = private_options();
    let _node = serve_echo(&options);
    for i in 0..20 {
        // Below `AskClient`, whose own first call opens the way.
        let (_transport, client) = raw_client(&options, &format!("fresh_{i}"));
        let asked = Instant::now();
        let call = client.call(&ask(&format!("call {i}")).encode().unwrap()).unwrap();
        let reply = call.wait(PATIENCE).unwrap_or_else(|| panic!("nothing after {:?}", asked.elapsed()));
        assert_eq!(Answer::decode(&reply).unwrap().text, format!("echo: call {i}"));
    }
}

#[test]
fn a_question_of_many_datagrams_gets_its_answer_of_many_datagrams() {
    let options = private_options();
    let defaults = AskDefaults { max_prompt_bytes: 200_000, ..AskDefaults::default() };
    let _node = serve(&options, EchoWorker::start().sender, defaults).unwrap();
    let client = AskClient::connect(&options, PATIENCE).unwrap();
    let long = "größer ".repeat(20_000);
    let reply = client.ask(&ask(&long), PATIENCE).unwrap();
    assert!(
        reply.text == format!("echo: {long}"),
        "{} with {} bytes: {}",
        reply.status,
        reply.text.len(),
        reply.reason
    );
}

#[test]
fn several_calls_in_flight_each_get_their_own_reply_in_any_order() {
    let options = private_options();
    let worker = EchoWorker::with(|requests| {
        let mut batch: Vec<_> = requests.iter().take(6).collect();
        batch.reverse();
        batch.iter().for_each(echo);
    });
    let _node = serve(&options, worker.sender.clone(), AskDefaults::default()).unwrap();
    let clients =
        [AskClient::connect(&options, PATIENCE).unwrap(), AskClient::connect(&options, PATIENCE).unwrap()];
    let calls: Vec<_> =
        (0..6).map(|i| (i, clients[i % 2].start(&ask(&format!("call {i}"))).unwrap())).collect();
    for (i, call) in calls {
        assert_eq!(call.wait(PATIENCE).unwrap().text, format!("echo: call {i}"));
    }
}

#[test]
fn bad_requests_are_rejected_with_the_reason() {
    let options = private_options();
    let _node = serve_echo(&options);
    let client = AskClient::connect(&options, PATIENCE).unwrap();
    let negative = Question { deadline: RosDuration { sec: -3, nanosec: 0 }, ..ask("p") };
    for (bad, word) in
        [(ask(""), "empty"), (negative, "negative"), (ask(&"x".repeat(70_000)), "have 70000 bytes")]
    {
        let reply = client.ask(&bad, PATIENCE).unwrap();
        assert_eq!((reply.status.as_str(), reply.text.as_str()), ("rejected", ""));
        assert!(reply.reason.contains(word), "{}", reply.reason);
    }
}

#[test]
fn malformed_request_bytes_are_answered_and_the_node_lives_on() {
    let options = dds_options();
    let _node = serve_echo(&options);
    let (_transport, client) = raw_client(&options, "fuzzer");
    let good = ask("whole").encode().unwrap();
    let mut not_utf8 = good.clone();
    // After the header, the stamp, the empty request id and the prompt's length.
    not_utf8[24] = 0xff;
    // A payload is filled up to 4 bytes with zeros on the wire: less than 4 missing zeros are not missing.
    let cut = (4..good.len() - 4).step_by(5).map(|len| good[..len].to_vec());
    for bad in cut.chain([not_utf8]) {
        let reply = Answer::decode(&client.call(&bad).unwrap().wait(PATIENCE).unwrap()).unwrap();
        assert_eq!(reply.status, "rejected", "{bad:?}");
        assert!(reply.reason.contains("not a takt_msgs/srv/Ask request"), "{}", reply.reason);
    }
    let reply = client.call(&good).unwrap().wait(PATIENCE).unwrap();
    assert_eq!(Answer::decode(&reply).unwrap().text, "echo: whole");
}

#[test]
fn more_requests_than_the_limit_are_rejected_at_once() {
    let options = private_options();
    let (seen, taken) = crossbeam_channel::unbounded();
    let worker =
        EchoWorker::with(move |requests| requests.iter().for_each(|request| seen.send(request).unwrap()));
    let defaults = AskDefaults { max_in_flight: 2, ..AskDefaults::default() };
    let _node = serve(&options, worker.sender.clone(), defaults).unwrap();
    let client = AskClient::connect(&options, PATIENCE).unwrap();
    let open = [client.start(&ask("one")).unwrap(), client.start(&ask("two")).unwrap()];
    let requests = [next(&taken), next(&taken)];
    let reply = client.ask(&ask("three"), PATIENCE).unwrap();
    assert_eq!(reply.status, "rejected");
    assert!(reply.reason.contains("limit"), "{}", reply.reason);
    requests.iter().for_each(|request| send_reply(request, Status::Complete, "done"));
    open.iter().for_each(|call| assert_eq!(call.wait(PATIENCE).unwrap().text, "done"));
    // The places are free again.
    let call = client.start(&ask("four")).unwrap();
    send_reply(&next(&taken), Status::Complete, "again");
    assert_eq!(call.wait(PATIENCE).unwrap().text, "again");
}

#[test]
fn a_client_that_leaves_before_its_reply_disturbs_nobody() {
    let options = private_options();
    let (seen, taken) = crossbeam_channel::unbounded();
    let worker =
        EchoWorker::with(move |requests| requests.iter().for_each(|request| seen.send(request).unwrap()));
    let _node = serve(&options, worker.sender.clone(), AskDefaults::default()).unwrap();
    let leaving = AskClient::connect(&options, PATIENCE).unwrap();
    let call = leaving.start(&ask("never mind")).unwrap();
    let request = next(&taken);
    drop((call, leaving));
    send_reply(&request, Status::Complete, "too late");
    let client = AskClient::connect(&options, PATIENCE).unwrap();
    let call = client.start(&ask("still there?")).unwrap();
    send_reply(&next(&taken), Status::Complete, "yes");
    assert_eq!(call.wait(PATIENCE).unwrap().text, "yes");
}

#[test]
fn a_missing_node_is_an_error_that_says_what_to_check() {
    let options = private_options();
    let error = AskClient::connect(&options, Duration::from_millis(200)).unwrap_err();
    assert!(matches!(error, RosError::NoNode { .. }), "{error}");
    let text = error.to_string();
    for word in
        [&options.node().unwrap().to_string(), &format!("domain {}", options.domain_id), "ROS_DOMAIN_ID"]
    {
        assert!(text.contains(word), "{text}");
    }
}

#[test]
fn a_form_reaches_the_worker_and_what_stood_in_reaches_the_client() {
    let options = private_options();
    let (seen, taken) = crossbeam_channel::unbounded();
    let worker =
        EchoWorker::with(move |requests| requests.iter().for_each(|request| seen.send(request).unwrap()));
    let _node = serve(&options, worker.sender.clone(), AskDefaults::default()).unwrap();
    let client = AskClient::connect(&options, PATIENCE).unwrap();
    let form = Form {
        spec: GrammarSpec::from_schema_text(r#"{"properties": {"b": {}, "a": {}}}"#).unwrap(),
        closing: ClosingPolicy::Minimal,
    };
    let call = client.start(&ask("go").with_form(form.clone())).unwrap();
    let request = next(&taken);
    assert_eq!(request.form, Some(form));
    let closing = Closing { defaulted_fields: vec!["/b".into(), "/a".into()], ..Closing::default() };
    send_closed(&request, "{}", closing);
    let reply = call.wait(PATIENCE).unwrap();
    assert_eq!((reply.status.as_str(), reply.text.as_str()), ("closed_at_deadline", "{}"));
    assert_eq!((reply.defaulted_fields, reply.cut_fields.len()), (vec!["/b".to_owned(), "/a".to_owned()], 0));
    for (bad, word) in [
        (Question { schema: "{".to_owned(), ..ask("go") }, "no JSON"),
        (Question { schema: "{}".to_owned(), regex: "a".to_owned(), ..ask("go") }, "more than one"),
        (Question { regex: "a".to_owned(), closing: "soon".to_owned(), ..ask("go") }, "closing"),
    ] {
        let reply = client.ask(&bad, PATIENCE).unwrap();
        assert_eq!(reply.status, "rejected");
        assert!(reply.reason.contains(word), "{}", reply.reason);
    }
}

#[test]
fn whoever_has_its_answer_may_ask_in_the_next_form_at_once() {
    let options = private_options();
    let worker = EchoWorker::with(|requests| {
        requests.iter().for_each(|request| send_closed(&request, "{}", Closing::default()));
    });
    let _node = serve(&options, worker.sender.clone(), AskDefaults::default()).unwrap();
    let client = AskClient::connect(&options, PATIENCE).unwrap();
    for n in 0..300 {
        let schema = format!(r#"{{"properties": {{"a{n}": {{}}}}}}"#);
        let question = Question { schema, deadline: RosDuration::from_std(PATIENCE), ..ask("go") };
        let reply = client.ask(&question, PATIENCE).unwrap();
        assert_eq!(reply.status, "closed_at_deadline", "{n}: {}", reply.reason);
    }
}
