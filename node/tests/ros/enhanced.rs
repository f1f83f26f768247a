//! Clients as Fast DDS makes them: no header, an identity in the inline QoS. Written on `rustdds` and `serde` directly, so
//! neither the bytes nor the mapping are the node's own code.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use rustdds::no_key::{DataReader, DataWriter};
use rustdds::policy::{Durability, History};
use rustdds::rpc::SampleIdentity;
use rustdds::{
    DataReaderStatus, DataWriterStatus, DomainParticipant, DomainParticipantBuilder, QosPolicies,
    QosPolicyBuilder, RTPSEntity, SequenceNumber, StatusEvented, TopicKind, WriteOptionsBuilder,
};
use serde::{Deserialize, Serialize};
use takt_node::ros::RosOptions;

use super::{PATIENCE, dds_options, serve_echo};

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Request {
    stamp: (i32, u32),
    request_id: String,
    prompt: String,
    messages: Vec<(String, String)>,
    system: String,
    session: String,
    deadline: (i32, u32),
    priority_class: String,
    max_tokens: u32,
    stop: Vec<String>,
    sampling: Vec<(f32, u32, f32, f32, u64)>,
    schema: String,
    regex: String,
    choices: Vec<String>,
    closing: String,
}

#[derive(Debug, Serialize, Deserialize)]
struct Reply {
    stamp: (i32, u32),
    arrival: (i32, u32),
    request_id: String,
    status: String,
    text: String,
    finish_reason: String,
    reason: String,
    priority_class: String,
    timings_ms: [f64; 6],
    is_promised: bool,
    counts: [u32; 5],
    defaulted_fields: Vec<String>,
    cut_fields: Vec<String>,
}

struct Client {
    writer: DataWriter<Request>,
    reader: DataReader<Reply>,
    _participant: DomainParticipant,
}

/// Looks until `look` finds something.
#[track_caller]
fn until<T>(mut look: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    while started.elapsed() < PATIENCE {
        if let Some(found) = look() {
            return found;
        }
        std::thread::sleep(Duration::from_micros(200));
    }
    panic!("nothing came within {PATIENCE:?}");
}

impl Client {
    fn connect(options: &RosOptions) -> Self {
        let service = options.node().unwrap().private("ask");
        let participant = DomainParticipantBuilder::new(options.domain_id)
            .with_only_networks([Ipv4Addr::LOCALHOST])
            .build()
            .unwrap();
        let qos: QosPolicies = QosPolicyBuilder::new()
            .reliable(rustdds::Duration::from_millis(100))
            .durability(Durability::Volatile)
            .history(History::KeepLast { depth: 10 })
            .build();
        let topic = |name: String, ty: &str| {
            participant
                .create_topic(name, format!("takt_msgs::srv::dds_::{ty}_"), &qos, TopicKind::NoKey)
                .unwrap()
        };
        let replies = topic(format!("rr{service}Reply"), "Ask_Response");
        let requests = topic(format!("rq{service}Request"), "Ask_Request");
        let reader = participant
            .create_subscriber(&qos)
            .unwrap()
            .create_datareader_no_key_cdr(&replies, None)
            .unwrap();
        let writer = participant
            .create_publisher(&qos)
            .unwrap()
            .create_datawriter_no_key_cdr(&requests, None)
            .unwrap();
        let client = Self { writer, reader, _participant: participant };
        until(|| {
            matches!(client.writer.try_recv_status()?, DataWriterStatus::PublicationMatched { .. })
                .then_some(())
        });
        until(|| {
            matches!(client.reader.try_recv_status()?, DataReaderStatus::SubscriptionMatched { .. })
                .then_some(())
        });
        client
    }

    /// The reply, and what it relates to; `told` is the identity the request carries.
    fn call(
        &mut self,
        prompt: &str,
        told: Option<SampleIdentity>,
    ) -> (Reply, SampleIdentity, SequenceNumber) {
        let request = Request { prompt: prompt.to_owned(), ..Request::default() };
        let options = WriteOptionsBuilder::new().related_sample_identity_opt(told).build();
        let sent = self.writer.write_with_options(request, options).unwrap().sequence_number;
        let own = told.map_or(self.writer.guid(), |told| told.writer_guid);
        let (reply, related) = until(|| {
            let sample = self.reader.take_next_sample().unwrap()?;
            let related = sample.sample_info().related_sample_identity()?;
            // The others' replies come, too.
            (related.writer_guid == own).then(|| (sample.into_value(), related))
        });
        (reply, related, sent)
    }

    fn told(&self) -> SampleIdentity {
        SampleIdentity { writer_guid: self.reader.guid(), sequence_number: SequenceNumber::UNKNOWN }
    }
}

#[test]
fn fresh_clients_that_name_their_reader_lose_no_reply() {
    let options = dds_options();
    let _node = serve_echo(&options);
    for n in 0..10 {
        let mut client = Client::connect(&options);
        let told = client.told();
        for prompt in [format!("first of {n}"), format!("second of {n}")] {
            let (reply, related, sent) = client.call(&prompt, Some(told));
            assert_eq!((reply.status.as_str(), reply.text), ("complete", format!("echo: {prompt}")));
            assert_eq!((related.writer_guid, related.sequence_number), (told.writer_guid, sent));
            assert_eq!(reply.counts[..2], [5, 3]);
            assert!(reply.defaulted_fields.is_empty() && reply.cut_fields.is_empty());
            assert!(reply.timings_ms[4].is_nan(), "{:?}", reply.timings_ms);
        }
    }
}

#[test]
fn a_client_that_tells_nothing_is_answered_by_its_writer() {
    let options = dds_options();
    let _node = serve_echo(&options);
    let mut client = Client::connect(&options);
    let (reply, related, sent) = client.call("hello", None);
    assert_eq!(reply.text, "echo: hello");
    assert_eq!((related.writer_guid, related.sequence_number), (client.writer.guid(), sent));
}

/// Longer than a datagram of RustDDS, as long as one of ours; others before, between and after.
#[test]
fn replies_of_any_length_up_to_a_datagram_arrive_whole() {
    let options = dds_options();
    let _node = serve_echo(&options);
    let (mut teller, mut other) = (Client::connect(&options), Client::connect(&options));
    let told = teller.told();
    for num_bytes in [900, 1_200, 9, 2_000, 30_000, 64_500, 90, 5_000, 5_001] {
        let prompt = "x".repeat(num_bytes);
        for (client, told) in [(&mut teller, Some(told)), (&mut other, None)] {
            let reply = client.call(&prompt, told).0;
            assert_eq!((reply.status.as_str(), reply.text), ("complete", format!("echo: {prompt}")));
        }
    }
}

#[test]
fn a_reply_too_long_for_the_mapping_says_so() {
    let options = dds_options();
    let _node = serve_echo(&options);
    let mut client = Client::connect(&options);
    let (reply, ..) = client.call(&"x".repeat(65_100), None);
    assert_eq!((reply.status.as_str(), reply.text.as_str()), ("failed", ""));
    assert!(
        reply.reason.contains("a text of 65106 bytes") && reply.reason.contains("~/reply"),
        "{}",
        reply.reason
    );
    assert_eq!(client.call("and on", None).0.text, "echo: and on");
}
