use std::time::Duration;

use crossbeam_channel::Receiver;
use serde_json::Value;
use takt_node::request::Status;
use takt_node::ros::message::{DiagnosticArray, Message as _, STRING, encode_string};
use takt_node::ros::transport::{Publish, Qos, Transport};
use takt_node::ros::{AskDefaults, RosOptions, serve};

use super::{
    EchoWorker, PATIENCE, dds_options, next, private_options, send_reply, send_tokens, serve_echo,
    strings_into,
};

/// A robot with all four topics matched.
struct Robot {
    ask: Box<dyn Publish>,
    tokens: Receiver<String>,
    answer: Receiver<String>,
    status: Receiver<String>,
    _transport: Box<dyn Transport>,
}

impl Robot {
    fn join(node: &RosOptions) -> Self {
        let transport =
            takt_node::ros::join(&RosOptions { node_name: "robot".to_owned(), ..node.clone() }).unwrap();
        let node = node.node().unwrap();
        let listen = |suffix: &str, qos| {
            let (sender, receiver) = crossbeam_channel::unbounded();
            let subscription =
                transport.subscribe(&node.private(suffix), STRING, qos, strings_into(sender)).unwrap();
            assert!(subscription.wait_for_publisher(PATIENCE), "no publisher on ~/{suffix}");
            receiver
        };
        let (tokens, answer, status) =
            (listen("tokens", Qos::STREAM), listen("answer", Qos::DEFAULT), listen("status", Qos::DEFAULT));
        let ask = transport.publisher(&node.private("ask"), STRING, Qos::DEFAULT).unwrap();
        assert!(ask.wait_for_subscriber(PATIENCE), "nobody listens on ~/ask");
        Self { ask, tokens, answer, status, _transport: transport }
    }

    fn say(&self, text: &str) {
        self.ask.publish(&encode_string(text).unwrap()).unwrap();
    }

    fn next_status(&self) -> Value {
        serde_json::from_str(&next(&self.status)).unwrap()
    }
}

#[test]
fn a_sentence_on_ask_is_answered_streamed_and_accounted_for() {
    let options = private_options();
    let _node = serve_echo(&options);
    let robot = Robot::join(&options);
    for sentence in ["bring me the red cup", "größer — 世界"] {
        robot.say(sentence);
        let answer = next(&robot.answer);
        assert_eq!(answer, format!("echo: {sentence}"));
        let mut streamed = String::new();
        while streamed.len() < answer.len() {
            streamed.push_str(&next(&robot.tokens));
        }
        assert_eq!(streamed, answer);
        let status = robot.next_status();
        assert_eq!((&status["ask"], &status["status"]), (&sentence.into(), &"complete".into()));
        assert_eq!((&status["answer"], &status["num_tokens"]), (&answer.into(), &3.into()));
    }
}

#[test]
fn many_sentences_at_once_are_all_answered() {
    let options = private_options();
    let _node = serve_echo(&options);
    let robot = Robot::join(&options);
    let sentences: Vec<String> = (0..8).map(|i| format!("sentence {i}")).collect();
    sentences.iter().for_each(|sentence| robot.say(sentence));
    let mut answers: Vec<String> = sentences.iter().map(|_| next(&robot.answer)).collect();
    answers.sort();
    let expected: Vec<String> = sentences.iter().map(|sentence| format!("echo: {sentence}")).collect();
    assert_eq!(answers, expected);
}

#[test]
fn a_burst_beyond_what_ros_keeps_by_default_loses_no_sentence() {
    let options = private_options();
    let _node = serve_echo(&options);
    let transport =
        takt_node::ros::join(&RosOptions { node_name: "crowd".to_owned(), ..options.clone() }).unwrap();
    let node = options.node().unwrap();
    let (sender, statuses) = crossbeam_channel::unbounded();
    let status =
        transport.subscribe(&node.private("status"), STRING, Qos::BURST, strings_into(sender)).unwrap();
    let ask = transport.publisher(&node.private("ask"), STRING, Qos::BURST).unwrap();
    assert!(status.wait_for_publisher(PATIENCE) && ask.wait_for_subscriber(PATIENCE));
    let sentences: Vec<String> = (0..300).map(|i| format!("sentence {i:03}")).collect();
    let messages: Vec<_> = sentences.iter().map(|sentence| encode_string(sentence).unwrap()).collect();
    messages.iter().for_each(|message| ask.publish(message).unwrap());
    let ended =
        |status: String| serde_json::from_str::<Value>(&status).unwrap()["ask"].as_str().unwrap().to_owned();
    let mut ends: Vec<String> = sentences.iter().map(|_| ended(next(&statuses))).collect();
    ends.sort();
    assert_eq!(ends, sentences);
}

#[test]
fn a_bad_sentence_is_refused_on_status_and_never_answered() {
    let options = dds_options();
    let defaults = AskDefaults { max_prompt_bytes: 100, ..AskDefaults::default() };
    let _node = serve(&options, EchoWorker::start().sender, defaults).unwrap();
    let robot = Robot::join(&options);
    let not_utf8 = [0, 1, 0, 0, 3, 0, 0, 0, 0xff, 0xfe, 0];
    let truncated = [0, 1, 0, 0, 200, 0, 0, 0, b'x', 0];
    let wrong_encoding = [0, 7, 0, 0, 2, 0, 0, 0, b'x', 0];
    for (bad, word) in [
        (encode_string("").unwrap(), "empty"),
        (encode_string(&"x".repeat(101)).unwrap(), "have 101 bytes"),
        (not_utf8.to_vec(), "not valid UTF-8"),
        (truncated.to_vec(), "truncated"),
    ] {
        robot.ask.publish(&bad).unwrap();
        let status = robot.next_status();
        assert_eq!(status["status"], "rejected");
        let reason = status["reason"].as_str().unwrap();
        assert!(reason.contains(word), "{reason}");
    }
    // Our writer always says plain CDR, so this one arrives as its bytes read that way.
    robot.ask.publish(&wrong_encoding).unwrap();
    assert_eq!(next(&robot.answer), "echo: x");
    assert!(robot.answer.try_recv().is_err(), "a refused sentence was answered");
}

#[test]
fn an_answer_cut_at_its_deadline_is_still_an_answer_and_says_so() {
    let options = private_options();
    let worker = EchoWorker::with(|requests| {
        for request in requests {
            assert_eq!(request.deadline, Some(request.arrived + Duration::from_millis(250)));
            send_tokens(&request, "half of");
            send_reply(&request, Status::TruncatedAtDeadline, "half of");
        }
    });
    let defaults = AskDefaults { deadline: Some(Duration::from_millis(250)), ..AskDefaults::default() };
    let _node = serve(&options, worker.sender.clone(), defaults).unwrap();
    let robot = Robot::join(&options);
    robot.say("tell me a story");
    assert_eq!(next(&robot.answer), "half of");
    let status = robot.next_status();
    assert_eq!(status["status"], "truncated_at_deadline");
    assert_eq!(status["timings_ms"]["deadline"], 250.0);
}

#[test]
fn tokens_a_full_channel_dropped_still_reach_the_stream() {
    let options = private_options();
    let worker = EchoWorker::with(|requests| {
        for request in requests {
            let event = |index, offset, text: &str| takt_node::request::Event::Tokens {
                id: request.id,
                index,
                offset,
                text: text.to_owned(),
            };
            request.events.send(event(0, 0, "one ")).unwrap();
            // Index 1, "two ", was dropped on the way.
            request.events.send(event(2, 8, "three")).unwrap();
            send_reply(&request, Status::Complete, "one two three");
        }
    });
    let _node = serve(&options, worker.sender.clone(), AskDefaults::default()).unwrap();
    let robot = Robot::join(&options);
    robot.say("count");
    assert_eq!(next(&robot.answer), "one two three");
    assert_eq!((next(&robot.tokens), next(&robot.tokens)), ("one ".to_owned(), "two three".to_owned()));
}

#[test]
fn a_worker_that_drops_a_request_is_answered_for() {
    let options = private_options();
    let worker = EchoWorker::with(|requests| requests.iter().for_each(drop));
    let _node = serve(&options, worker.sender.clone(), AskDefaults::default()).unwrap();
    let robot = Robot::join(&options);
    robot.say("anyone?");
    let status = robot.next_status();
    assert_eq!(status["status"], "failed");
    assert!(status["reason"].as_str().unwrap().contains("without a reply"));
}

#[test]
fn a_node_that_ends_cancels_what_is_open_and_leaves_no_thread() {
    let options = private_options();
    let (seen, taken) = crossbeam_channel::unbounded();
    let worker =
        EchoWorker::with(move |requests| requests.iter().for_each(|request| seen.send(request).unwrap()));
    let node = serve(&options, worker.sender.clone(), AskDefaults::default()).unwrap();
    let robot = Robot::join(&options);
    robot.say("wait for it");
    let request = next(&taken);
    assert_eq!(node.num_open(), 1);
    node.close();
    let status = robot.next_status();
    assert_eq!((status["status"].as_str(), status["ask"].as_str()), (Some("cancelled"), Some("wait for it")));
    drop(request);
    // Joins only if the node has dropped its sender, that is: if its threads and callbacks are gone.
    worker.join();
}

#[test]
fn diagnostics_say_once_a_second_whether_deadlines_are_promised() {
    let options = private_options();
    let _node = serve_echo(&options);
    let transport =
        takt_node::ros::join(&RosOptions { node_name: "monitor".to_owned(), ..options.clone() }).unwrap();
    let (sender, messages) = crossbeam_channel::unbounded();
    let on_message = Box::new(move |message: &[u8]| sender.send(message.to_vec()).unwrap());
    let _listening =
        transport.subscribe("/diagnostics", DiagnosticArray::TYPE, Qos::DEFAULT, on_message).unwrap();
    for _ in 0..2 {
        let array = DiagnosticArray::decode(&next(&messages)).unwrap();
        assert!(array.header.stamp.sec > 1_700_000_000, "stamped with the time of day");
        let node = options.node().unwrap().to_string();
        let part = |part: &str| {
            let name = format!("{}: {part}", node.trim_start_matches('/'));
            array.status.iter().find(|status| status.name == name).unwrap()
        };
        assert_eq!(part("deadlines").message, "deadlines are promised");
        assert_eq!(part("lifecycle").values[0].value, "active");
        assert_eq!(part("queue").message, "0 of at most 64 requests are open");
        let version = part("engine").values.iter().find(|value| value.key == "takt").unwrap();
        assert!(!version.value.is_empty());
        for name in ["costs", "engine", "speculation", "hardware"] {
            assert!(!part(name).message.is_empty());
        }
    }
}
