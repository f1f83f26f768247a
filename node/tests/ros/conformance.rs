//! What every transport promises, one suite for all of them, and for the built-in DDS serving rcl. Not the other way round: its client
//! is understood by its own kind and by CycloneDDS only. Fast DDS, if it is rcl's middleware, loses messages between new participants of one
//! process unless its profile says `intraprocess_delivery` `OFF`.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;
use takt_node::ros::dds::DdsTransport;
use takt_node::ros::message::{ASK, Message as _, STRING, decode_string, encode_string};
use takt_node::ros::transport::{
    Call, Durability, OnRequest, Publish, Qos, Reliability, Respond, Subscription, Transport,
};
use takt_node::ros::{Answer, Question, RosError, RosOptions, TransportKind, join};

use super::{PATIENCE, next, private_options};

/// One transport on each side.
#[derive(Clone, Copy)]
struct Pair {
    server: TransportKind,
    client: TransportKind,
    /// Of the built-in DDS: samples after which writers are renewed, if it is not to be what it always is.
    renew_after: Option<i64>,
}

/// A domain of its own, and names in it.
struct Place {
    options: RosOptions,
    pair: Pair,
}

impl Place {
    fn new(pair: Pair) -> Self {
        Self { options: private_options(), pair }
    }

    fn name(&self, name: &str) -> String {
        format!("{}/{name}", self.options.namespace)
    }

    fn join(&self, node_name: &str, transport: TransportKind) -> Box<dyn Transport> {
        let options = RosOptions { node_name: node_name.to_owned(), transport, ..self.options.clone() };
        match self.pair.renew_after {
            Some(after) => Box::new(DdsTransport::join_renewing(&options, after).unwrap()),
            None => join(&options).unwrap(),
        }
    }

    /// The side that publishes and serves.
    fn server(&self) -> Box<dyn Transport> {
        self.join("server", self.pair.server)
    }

    /// The side that hears and calls.
    fn client(&self) -> Box<dyn Transport> {
        self.join("client", self.pair.client)
    }
}

fn strings(transport: &dyn Transport, topic: &str, qos: Qos) -> (Receiver<String>, Box<dyn Subscription>) {
    let (sender, messages) = crossbeam_channel::unbounded();
    let on_message = Box::new(move |message: &[u8]| {
        let _ = sender.send(decode_string(message).unwrap().to_owned());
    });
    (messages, transport.subscribe(topic, STRING, qos, on_message).unwrap())
}

/// Publishes until something is heard: a CycloneDDS reader throws away what comes before the first heartbeat of a RustDDS writer, which is
/// matched before it.
fn open_way(publisher: &dyn Publish, heard: &Receiver<String>) {
    let started = Instant::now();
    while heard.recv_timeout(Duration::from_millis(20)).is_err() {
        assert!(started.elapsed() < PATIENCE, "nothing is heard");
        publisher.publish(&encode_string("?").unwrap()).unwrap();
    }
    publisher.publish(&encode_string("open").unwrap()).unwrap();
    while next(heard) != "open" {}
}

fn question(text: &str) -> Vec<u8> {
    Question { prompt: text.to_owned(), ..Question::default() }.encode().unwrap()
}

fn answer(text: &str) -> Vec<u8> {
    Answer { text: text.to_owned(), ..Answer::default() }.encode().unwrap()
}

/// Answers with the question; what cannot be read, with `unreadable`.
fn echo() -> OnRequest {
    Box::new(|message: &[u8], respond: Box<dyn Respond>| {
        let text = Question::decode(message).map_or("unreadable".to_owned(), |question| question.prompt);
        respond.respond(&answer(&text), None);
    })
}

/// Serves `/…/echo` by `on_request`, and announces it.
fn serve(transport: &dyn Transport, service: &str, on_request: OnRequest) {
    transport.serve(service, ASK, &Answer::default().encode().unwrap(), on_request).unwrap();
    transport.announce().unwrap();
}

fn client_of(transport: &dyn Transport, service: &str) -> Box<dyn Call> {
    let call = transport.client(service, ASK).unwrap();
    transport.announce().unwrap();
    assert!(call.wait_for_server(PATIENCE), "no server of {service}");
    call
}

#[track_caller]
fn ask(call: &dyn Call, text: &str) -> String {
    let reply = call.call(&question(text)).unwrap().wait(PATIENCE);
    Answer::decode(&reply.unwrap()).unwrap().text
}

fn messages_of_any_size_arrive_whole_and_in_order(pair: Pair) {
    let place = Place::new(pair);
    let (server, client) = (place.server(), place.client());
    let publisher = server.publisher(&place.name("said"), STRING, Qos::STREAM).unwrap();
    let (heard, subscription) = strings(client.as_ref(), &place.name("said"), Qos::STREAM);
    assert!(publisher.wait_for_subscriber(PATIENCE) && subscription.wait_for_publisher(PATIENCE));
    open_way(publisher.as_ref(), &heard);
    let sent: Vec<String> =
        (0..40).map(|i| "größer ".repeat([0, 1, 7, 300, 20_000][i % 5]) + &i.to_string()).collect();
    for text in &sent {
        publisher.publish(&encode_string(text).unwrap()).unwrap();
    }
    for text in &sent {
        assert!(next(&heard) == *text, "{} bytes were sent", text.len());
    }
    assert!(server.wait_delivered(PATIENCE));
}

fn late_subscribers_get_the_last_message_where_it_is_kept(pair: Pair) {
    let kept = Qos { reliability: Reliability::Reliable, durability: Durability::TransientLocal, depth: 1 };
    let place = Place::new(pair);
    let server = place.server();
    let state = server.publisher(&place.name("state"), STRING, kept).unwrap();
    let event = server.publisher(&place.name("event"), STRING, Qos::DEFAULT).unwrap();
    for text in ["old", "last"] {
        state.publish(&encode_string(text).unwrap()).unwrap();
        event.publish(&encode_string(text).unwrap()).unwrap();
    }
    let client = place.client();
    let (states, _states) = strings(client.as_ref(), &place.name("state"), kept);
    let (events, on_events) = strings(client.as_ref(), &place.name("event"), Qos::DEFAULT);
    // RustDDS keeps more than it was asked to, so older ones may come before it.
    while next(&states) != "last" {}
    assert!(event.wait_for_subscriber(PATIENCE) && on_events.wait_for_publisher(PATIENCE));
    event.publish(&encode_string("new").unwrap()).unwrap();
    assert_eq!(next(&events), "new");
}

fn threads_publish_at_once(pair: Pair) {
    let place = Place::new(pair);
    let (server, client) = (place.server(), place.client());
    let publisher = server.publisher(&place.name("said"), STRING, Qos::STREAM).unwrap();
    let (heard, subscription) = strings(client.as_ref(), &place.name("said"), Qos::STREAM);
    assert!(publisher.wait_for_subscriber(PATIENCE) && subscription.wait_for_publisher(PATIENCE));
    open_way(publisher.as_ref(), &heard);
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let publisher = &publisher;
            scope.spawn(move || {
                for i in 0..50 {
                    publisher.publish(&encode_string(&format!("{thread} {i}")).unwrap()).unwrap();
                }
            });
        }
    });
    let all: BTreeSet<String> = (0..200).map(|_| next(&heard)).collect();
    assert_eq!(all.len(), 200);
}

fn calls_of_any_size_are_answered(pair: Pair) {
    let place = Place::new(pair);
    let (server, client) = (place.server(), place.client());
    serve(server.as_ref(), &place.name("echo"), echo());
    let call = client_of(client.as_ref(), &place.name("echo"));
    for len in [0, 1, 100, 1_000, 9_000] {
        assert_eq!(ask(call.as_ref(), &"x".repeat(len)).len(), len);
    }
}

/// Longer than a datagram.
fn calls_of_many_datagrams_are_answered(pair: Pair) {
    let place = Place::new(pair);
    let (server, client) = (place.server(), place.client());
    serve(server.as_ref(), &place.name("echo"), echo());
    let call = client_of(client.as_ref(), &place.name("echo"));
    assert_eq!(ask(call.as_ref(), &"x".repeat(200_000)).len(), 200_000);
}

fn malformed_requests_disturb_nobody(pair: Pair) {
    let place = Place::new(pair);
    let (server, client) = (place.server(), place.client());
    serve(server.as_ref(), &place.name("echo"), echo());
    let call = client_of(client.as_ref(), &place.name("echo"));
    let good = question("whole");
    let mut huge = good.clone();
    // The prompt's length.
    huge[20..24].copy_from_slice(&u32::MAX.to_le_bytes());
    for bad in (0..good.len()).step_by(3).map(|len| good[..len].to_vec()).chain([huge]) {
        // A transport may refuse it here, let its server answer it, or lose it.
        if let Ok(pending) = call.call(&bad) {
            drop(pending.wait(Duration::from_millis(1)));
        }
        assert_eq!(ask(call.as_ref(), "and now?"), "and now?");
    }
}

fn many_clients_get_their_own_replies_in_any_order(pair: Pair) {
    let place = Place::new(pair);
    let server = place.server();
    let (open, opened) = crossbeam_channel::unbounded();
    let on_request: OnRequest = Box::new(move |message, respond| {
        let _ = open.send((Question::decode(message).unwrap().prompt, respond));
    });
    serve(server.as_ref(), &place.name("echo"), on_request);
    let clients: Vec<_> = (0..4).map(|i| place.join(&format!("client_{i}"), pair.client)).collect();
    let calls: Vec<_> =
        clients.iter().map(|client| client_of(client.as_ref(), &place.name("echo"))).collect();
    let pending: Vec<_> =
        (0..20).map(|i| (i, calls[i % calls.len()].call(&question(&i.to_string())).unwrap())).collect();
    let mut requests: Vec<_> = (0..20).map(|_| next(&opened)).collect();
    // Answered on a thread of its own, the last one first.
    let answering = std::thread::spawn(move || {
        while let Some((text, respond)) = requests.pop() {
            respond.respond(&answer(&text), None);
        }
    });
    for (i, call) in pending {
        assert_eq!(Answer::decode(&call.wait(PATIENCE).unwrap()).unwrap().text, i.to_string());
    }
    answering.join().unwrap();
    assert!(server.wait_delivered(PATIENCE));
}

fn new_clients_lose_no_first_reply(pair: Pair) {
    let place = Place::new(pair);
    let server = place.server();
    serve(server.as_ref(), &place.name("echo"), echo());
    for i in 0..20 {
        let client = place.join(&format!("client_{i}"), pair.client);
        let call = client_of(client.as_ref(), &place.name("echo"));
        assert_eq!(ask(call.as_ref(), &format!("call {i}")), format!("call {i}"));
    }
}

fn clients_that_left_and_replies_that_never_come_disturb_nobody(pair: Pair) {
    let place = Place::new(pair);
    let server = place.server();
    let (open, opened) = crossbeam_channel::unbounded();
    let on_request: OnRequest = Box::new(move |_, respond| {
        let _ = open.send(respond);
    });
    serve(server.as_ref(), &place.name("echo"), on_request);
    let leaving = place.join("leaving", pair.client);
    let call = client_of(leaving.as_ref(), &place.name("echo"));
    let (forgotten, unanswered) =
        (call.call(&question("one")).unwrap(), call.call(&question("two")).unwrap());
    let (first, second) = (next(&opened), next(&opened));
    drop((forgotten, second));
    assert!(unanswered.wait(Duration::from_millis(50)).is_none());
    drop((unanswered, call, leaving));
    first.respond(&answer("too late"), None);
    let client = place.client();
    let call = client_of(client.as_ref(), &place.name("echo"));
    let pending = call.call(&question("three")).unwrap();
    next(&opened).respond(&answer("here"), None);
    assert_eq!(Answer::decode(&pending.wait(PATIENCE).unwrap()).unwrap().text, "here");
}

fn waits_end_when_nobody_comes(pair: Pair) {
    let place = Place::new(pair);
    let client = place.client();
    let publisher = client.publisher(&place.name("said"), STRING, Qos::DEFAULT).unwrap();
    let (_, subscription) = strings(client.as_ref(), &place.name("heard"), Qos::DEFAULT);
    let call = client.client(&place.name("echo"), ASK).unwrap();
    client.announce().unwrap();
    let (started, timeout) = (Instant::now(), Duration::from_millis(50));
    assert!(!publisher.wait_for_subscriber(timeout));
    assert!(!subscription.wait_for_publisher(timeout));
    assert!(!call.wait_for_server(timeout));
    assert!(started.elapsed() >= 3 * timeout && started.elapsed() < PATIENCE);
    // To nobody: nothing is left to deliver.
    publisher.publish(&encode_string("hello?").unwrap()).unwrap();
    assert!(client.wait_delivered(PATIENCE));
}

fn what_is_dropped_is_gone(pair: Pair) {
    let place = Place::new(pair);
    let (server, client) = (place.server(), place.client());
    serve(server.as_ref(), &place.name("echo"), echo());
    let publisher = server.publisher(&place.name("said"), STRING, Qos::DEFAULT).unwrap();
    let (_, subscription) = strings(client.as_ref(), &place.name("said"), Qos::DEFAULT);
    let call = client_of(client.as_ref(), &place.name("echo"));
    assert!(subscription.wait_for_publisher(PATIENCE));
    drop((publisher, server));
    let left = Instant::now();
    while call.wait_for_server(Duration::ZERO) || subscription.wait_for_publisher(Duration::ZERO) {
        assert!(left.elapsed() < PATIENCE, "still there");
        std::thread::yield_now();
    }
    // And its names are free.
    let again = place.server();
    again.claim_name(Duration::from_millis(300)).unwrap();
    serve(again.as_ref(), &place.name("echo"), echo());
    assert!(call.wait_for_server(PATIENCE));
    assert_eq!(ask(call.as_ref(), "back?"), "back?");
}

fn callbacks_run_one_at_a_time_on_one_thread(pair: Pair) {
    let place = Place::new(pair);
    let (server, client) = (place.server(), place.client());
    let is_busy = Arc::new(AtomicBool::new(false));
    let (ran, threads) = crossbeam_channel::unbounded();
    let note = move || {
        assert!(!is_busy.swap(true, Ordering::SeqCst), "two callbacks at a time");
        let _ = ran.send(std::thread::current().id());
        is_busy.store(false, Ordering::SeqCst);
    };
    let (on_request, on_message) = (note.clone(), note);
    serve(
        server.as_ref(),
        &place.name("echo"),
        Box::new(move |_, respond| {
            on_request();
            respond.respond(&answer(""), None);
        }),
    );
    let _subscription =
        server.subscribe(&place.name("said"), STRING, Qos::STREAM, Box::new(move |_| on_message())).unwrap();
    let publisher = client.publisher(&place.name("said"), STRING, Qos::STREAM).unwrap();
    let call = client_of(client.as_ref(), &place.name("echo"));
    assert!(publisher.wait_for_subscriber(PATIENCE));
    for i in 0..50 {
        publisher.publish(&encode_string(&i.to_string()).unwrap()).unwrap();
        ask(call.as_ref(), "");
    }
    let threads: Vec<_> = (0..100).map(|_| next(&threads)).collect();
    assert!(threads.iter().all(|thread| *thread == threads[0]));
}

fn a_name_is_claimed_once(pair: Pair) {
    let place = Place::new(pair);
    // Longer than Fast DDS's 3 s between announcements: of two participants of one process it may miss the first ones.
    let window = Duration::from_secs(4);
    let first = place.join("takt", pair.server);
    first.claim_name(window).unwrap();
    serve(first.as_ref(), &place.name("echo"), echo());
    let second = place.join("takt", pair.client);
    let refused = second.claim_name(window).unwrap_err();
    assert!(matches!(refused, RosError::NameTaken { .. }), "{refused}");
    place.join("takt_2", pair.client).claim_name(window).unwrap();
}

macro_rules! suite {
    ($pair:ident, $server:ident, $client:ident, $renew_after:expr; $($case:ident)*) => {
        mod $pair {
            use super::{Pair, TransportKind};

            $(#[test]
            fn $case() {
                let (server, client) = (TransportKind::$server, TransportKind::$client);
                super::$case(Pair { server, client, renew_after: $renew_after });
            })*
        }
    };
}

/// The whole suite.
macro_rules! suites {
    ($($pair:ident: $server:ident, $client:ident, $renew_after:expr;)*) => {
        $(suite! { $pair, $server, $client, $renew_after;
            messages_of_any_size_arrive_whole_and_in_order
            late_subscribers_get_the_last_message_where_it_is_kept
            threads_publish_at_once
            calls_of_any_size_are_answered
            calls_of_many_datagrams_are_answered
            malformed_requests_disturb_nobody
            many_clients_get_their_own_replies_in_any_order
            new_clients_lose_no_first_reply
            clients_that_left_and_replies_that_never_come_disturb_nobody
            waits_end_when_nobody_comes
            what_is_dropped_is_gone
            callbacks_run_one_at_a_time_on_one_thread
            a_name_is_claimed_once
        })*
    };
}

suites! { dds: Dds, Dds, None; dds_renewing_all_the_time: Dds, Dds, Some(5); }
#[cfg(feature = "r2r")]
suites! { rcl: Rcl, Rcl, None; dds_serves_rcl: Dds, Rcl, None; }
