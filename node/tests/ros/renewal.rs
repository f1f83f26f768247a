//! Writers are renewed while they are used: only who counts them notices. Identities are read by `rustdds` directly.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use rustdds::no_key::DataReader;
use rustdds::policy::{Durability, History};
use rustdds::{DomainParticipant, DomainParticipantBuilder, QosPolicyBuilder, TopicKind};
use serde::Deserialize;
use takt_node::ros::dds::DdsTransport;
use takt_node::ros::message::{ASK, Message as _, STRING, encode_string};
use takt_node::ros::presence::Guid;
use takt_node::ros::transport::{Call, Qos, Respond, Transport};
use takt_node::ros::{Answer, Question, RosOptions, join};

use super::{PATIENCE, dds_options, next, strings_into};

const RENEW_AFTER: i64 = 20;

fn node(options: &RosOptions) -> DdsTransport {
    DdsTransport::join_renewing(options, RENEW_AFTER).unwrap()
}

fn peer(options: &RosOptions, name: &str) -> Box<dyn Transport> {
    join(&RosOptions { node_name: name.to_owned(), ..options.clone() }).unwrap()
}

/// Sees what is on the network.
fn onlooker(options: &RosOptions) -> DomainParticipant {
    let builder = DomainParticipantBuilder::new(options.domain_id);
    builder.with_only_networks([Ipv4Addr::LOCALHOST]).build().unwrap()
}

fn writers_of(onlooker: &DomainParticipant, topic: &str) -> BTreeSet<Guid> {
    let writers = onlooker.discovered_writers();
    let of_topic = writers.iter().filter(|writer| writer.publication_topic_data.topic_name == topic);
    of_topic.map(|writer| writer.writer_proxy.remote_writer_guid.to_bytes()).collect()
}

#[test]
fn a_subscriber_hears_every_message_once_and_in_order_across_renewals() {
    let options = dds_options();
    let (node, robot, onlooker) = (node(&options), peer(&options, "robot"), onlooker(&options));
    let publisher = node.publisher("/said", STRING, Qos::STREAM).unwrap();
    let (sender, heard) = crossbeam_channel::unbounded();
    let subscription = robot.subscribe("/said", STRING, Qos::STREAM, strings_into(sender)).unwrap();
    assert!(subscription.wait_for_publisher(PATIENCE) && publisher.wait_for_subscriber(PATIENCE));
    let (mut num_sent, mut writers, started) = (0, BTreeSet::new(), Instant::now());
    // As many as it takes: how long a renewal lasts is the network's business.
    while num_sent < 500 || writers.len() < 5 {
        assert!(started.elapsed() < PATIENCE, "{} writers after {num_sent} messages", writers.len());
        publisher.publish(&encode_string(&num_sent.to_string()).unwrap()).unwrap();
        num_sent += 1;
        writers.extend(writers_of(&onlooker, "rt/said"));
        std::thread::sleep(Duration::from_micros(500));
    }
    for i in 0..num_sent {
        assert_eq!(next(&heard), i.to_string());
    }
    assert!(node.wait_delivered(PATIENCE));
    assert!(heard.is_empty());
}

fn serve_echo(node: &DdsTransport) {
    let on_request = |message: &[u8], respond: Box<dyn Respond>| {
        let text = Question::decode(message).unwrap().prompt;
        respond.respond(&Answer { text, ..Answer::default() }.encode().unwrap(), None);
    };
    let blank = Answer::default().encode().unwrap();
    node.serve("/echo", ASK, &blank, Box::new(on_request)).unwrap();
    node.announce().unwrap();
}

#[track_caller]
fn ask(call: &dyn Call, text: &str) {
    let question = Question { prompt: text.to_owned(), ..Question::default() };
    let reply = call.call(&question.encode().unwrap()).unwrap().wait(PATIENCE);
    assert_eq!(Answer::decode(&reply.unwrap()).unwrap().text, text);
}

#[test]
fn clients_old_and_new_get_their_replies_across_renewals() {
    let options = dds_options();
    let (node, robot, onlooker) = (node(&options), peer(&options, "robot"), onlooker(&options));
    serve_echo(&node);
    let call = robot.client("/echo", ASK).unwrap();
    assert!(call.wait_for_server(PATIENCE));
    let (mut num_asked, mut writers, started) = (0, BTreeSet::new(), Instant::now());
    while num_asked < 200 || writers.len() < 5 {
        assert!(started.elapsed() < PATIENCE, "{} writers after {num_asked} replies", writers.len());
        ask(call.as_ref(), &num_asked.to_string());
        num_asked += 1;
        if num_asked % 25 == 0 {
            let fresh = peer(&options, &format!("fresh_{num_asked}"));
            let call = fresh.client("/echo", ASK).unwrap();
            assert!(call.wait_for_server(PATIENCE));
            ask(call.as_ref(), "first");
        }
        writers.extend(writers_of(&onlooker, "rr/echoReply"));
    }
}

/// `rmw_dds_common/msg/ParticipantEntitiesInfo`.
#[derive(Debug, Deserialize)]
struct Entities {
    _participant: Guid,
    nodes: Vec<Node>,
}

#[derive(Debug, Deserialize)]
struct Node {
    _namespace: String,
    _name: String,
    _readers: Vec<Guid>,
    writers: BTreeSet<Guid>,
}

fn announcements(onlooker: &DomainParticipant) -> DataReader<Entities> {
    let qos = QosPolicyBuilder::new()
        .reliable(rustdds::Duration::from_millis(100))
        .durability(Durability::TransientLocal)
        .history(History::KeepLast { depth: 1000 })
        .build();
    let ty = "rmw_dds_common::msg::dds_::ParticipantEntitiesInfo_".to_owned();
    let topic = onlooker.create_topic("ros_discovery_info".to_owned(), ty, &qos, TopicKind::NoKey).unwrap();
    onlooker.create_subscriber(&qos).unwrap().create_datareader_no_key_cdr(&topic, None).unwrap()
}

#[test]
fn the_announcement_names_the_writers_that_are_there() {
    let options = dds_options();
    let (node, onlooker) = (node(&options), onlooker(&options));
    let mut announcements = announcements(&onlooker);
    let publisher = node.publisher("/said", STRING, Qos::STREAM).unwrap();
    node.announce().unwrap();
    let (mut writers, started) = (BTreeSet::new(), Instant::now());
    while writers.len() < 3 {
        assert!(started.elapsed() < PATIENCE, "{} writers", writers.len());
        publisher.publish(&encode_string("?").unwrap()).unwrap();
        writers.extend(writers_of(&onlooker, "rt/said"));
        std::thread::sleep(Duration::from_micros(500));
    }
    let mut told = BTreeSet::new();
    while told.is_empty() || told != writers_of(&onlooker, "rt/said") {
        assert!(started.elapsed() < PATIENCE, "told: {told:?}");
        if let Some(sample) = announcements.take_next_sample().unwrap() {
            told = sample.into_value().nodes.remove(0).writers;
        }
        std::thread::sleep(Duration::from_micros(500));
    }
}
