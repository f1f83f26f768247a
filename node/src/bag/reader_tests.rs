//! Tests: recordings in every state of damage, and what is not ours in them.

use std::{collections::BTreeMap, io::Cursor, path::Path};

use mcap::records::MessageHeader;
use ruzstd::encoding::{CompressionLevel, compress_to_vec};

use super::{
    fixture_tests::{EVERYTHING, fixture},
    *,
};
use crate::ros::message::{Answer, Message as _, Question, Time};

const REPLY_FILE: &str = include_str!("../../../launch/takt_msgs/msg/Reply.msg");

/// A message of a bag to be: topic, type, and bytes.
type Row = (&'static str, &'static str, Vec<u8>);

/// How a bag is written.
#[derive(Clone, Copy)]
struct Style {
    chunk_len: Option<u64>,
    has_index: bool,
    definition: &'static str,
    encoding: &'static str,
}

const PLAIN: Style =
    Style { chunk_len: Some(1 << 20), has_index: true, definition: REPLY_FILE, encoding: "cdr" };

/// A bag by the crate's own writer, a message every 10 ms.
fn write(rows: &[Row], style: Style) -> Vec<u8> {
    let options = mcap::WriteOptions::new()
        .compression(None)
        .use_chunks(style.chunk_len.is_some())
        .chunk_size(style.chunk_len)
        .emit_message_indexes(style.has_index)
        .profile("ros2");
    let mut writer = options.create(Cursor::new(Vec::new())).unwrap();
    for (at, (topic, type_name, data)) in rows.iter().enumerate() {
        let text = if type_name.ends_with("Reply") { style.definition } else { "" };
        let schema = writer.add_schema(type_name, "ros2msg", text.as_bytes()).unwrap();
        let channel_id = writer.add_channel(schema, topic, style.encoding, &BTreeMap::new()).unwrap();
        let log_time = 1_000_000_000 + at as u64 * 10_000_000;
        let header = MessageHeader { channel_id, sequence: 0, log_time, publish_time: log_time };
        writer.write_to_known_channel(&header, data).unwrap();
    }
    writer.finish().unwrap();
    writer.into_inner().into_inner()
}

fn answer(request_id: &str) -> Answer {
    Answer {
        stamp: Time { sec: 1, nanosec: 0 },
        request_id: request_id.to_owned(),
        status: "complete".to_owned(),
        priority_class: "control".to_owned(),
        ttft_ms: 1.0,
        total_ms: 5.0,
        deadline_ms: 20.0,
        earliest_deadline_ms: f64::NAN,
        is_promised: true,
        ..Answer::default()
    }
}

fn reply(request_id: &str) -> Row {
    ("/takt/reply", "takt_msgs/msg/Reply", answer(request_id).encode().unwrap())
}

fn prompt(topic: &'static str, request_id: &str) -> Row {
    let question = Question { request_id: request_id.to_owned(), ..Question::default() };
    (topic, "takt_msgs/msg/Prompt", question.encode().unwrap())
}

fn replies(num: usize) -> Vec<Row> {
    (0..num).map(|idx| reply(&format!("r{idx}"))).collect()
}

fn read_bytes(bytes: &[u8], recording: &mut Recording) -> Result<FileReport, BagError> {
    let mut source = Cursor::new(bytes);
    source.set_position(8);
    reader::read_from(source, bytes.len() as u64, Path::new("a.mcap"), recording, &mut |_| true)
}

fn read_one(bytes: &[u8]) -> (Recording, FileReport) {
    let mut recording = Recording::default();
    let file = read_bytes(bytes, &mut recording).unwrap();
    (recording, file)
}

fn num_replies(recording: &Recording) -> usize {
    recording.replies.values().map(Vec::len).sum()
}

#[test]
fn chunked_unchunked_and_unindexed_bags_say_the_same() {
    for (chunk_len, has_index) in [(Some(1 << 20), true), (Some(300), true), (Some(300), false), (None, true)]
    {
        let (recording, file) = read_one(&write(&replies(9), Style { chunk_len, has_index, ..PLAIN }));
        assert_eq!((num_replies(&recording), file.is_whole, file.notes.len()), (9, true, 0));
        assert_eq!(recording.span_ns, Some((1_000_000_000, 1_080_000_000)));
    }
}

#[test]
fn chunks_without_a_topic_of_ours_are_stepped_over() {
    let camera = || ("/camera", "sensor_msgs/msg/Image", vec![7; 2000]);
    let rows = [camera(), reply("a"), camera(), camera(), camera(), reply("b"), camera()];
    let (recording, file) = read_one(&write(&rows, Style { chunk_len: Some(1000), ..PLAIN }));
    assert_eq!(num_replies(&recording), 2);
    assert!(file.num_chunks_skipped >= 2, "{file:?}");
    assert_eq!(recording.seconds(recording.span_ns.unwrap().1), 0.06);
}

#[test]
fn a_recording_cut_by_power_loss_is_read_as_far_as_it_goes() {
    for style in [PLAIN, Style { chunk_len: Some(700), ..PLAIN }, Style { chunk_len: None, ..PLAIN }] {
        let whole = write(&replies(8), style);
        let mut num_before = 0;
        for len in 8..whole.len() {
            let (recording, file) = read_one(&whole[..len]);
            let num = num_replies(&recording);
            assert!(num >= num_before, "{len} bytes: {num} replies after {num_before}");
            assert!(file.is_whole || !file.notes.is_empty(), "{len} bytes: {file:?}");
            num_before = num;
        }
        assert_eq!(num_before, 8);
    }
}

#[test]
fn a_compressed_recording_cut_anywhere_is_read_as_far_as_it_goes() {
    for name in ["field-zstd.mcap", "field-lz4.mcap"] {
        let whole = std::fs::read(fixture(name)).unwrap();
        let mut num_before = 0;
        for len in (8..whole.len()).step_by(31) {
            let (recording, file) = read_one(&whole[..len]);
            let num = num_replies(&recording);
            assert!(num >= num_before, "{name}, {len} bytes: {num} replies after {num_before}");
            assert!(file.is_whole || !file.notes.is_empty());
            num_before = num;
        }
        assert_eq!(num_before, 20, "{name}");
    }
}

#[test]
fn a_chunk_with_a_wrong_byte_is_left_out_and_the_others_are_read() {
    let mut bytes = write(&replies(8), Style { chunk_len: Some(700), ..PLAIN });
    let at = bytes.windows(2).position(|pair| pair == b"r4").unwrap();
    bytes[at] ^= 1;
    let (recording, file) = read_one(&bytes);
    assert_eq!(file.num_chunks_damaged, 1);
    assert!(file.notes[0].contains("checksum"), "{:?}", file.notes);
    assert!((1..8).contains(&num_replies(&recording)));
}

#[test]
fn no_wrong_byte_makes_reading_panic() {
    for name in ["field-zstd.mcap", "field-lz4.mcap"] {
        let whole = std::fs::read(fixture(name)).unwrap();
        for at in (8..whole.len()).step_by(61) {
            for byte in [0x00, 0x7f, 0xff] {
                let mut bytes = whole.clone();
                bytes[at] = byte;
                let mut recording = Recording::default();
                // Definitions may differ now: an error as good as any.
                if let Ok(file) = read_bytes(&bytes, &mut recording)
                    && let Ok(nodes) = EVERYTHING.nodes(&recording)
                {
                    let picture = svg(&recording, &nodes, &EVERYTHING);
                    assert!(picture.ends_with("</svg>\n"));
                    let _ = Report::of(&recording, &EVERYTHING, &nodes, vec![file]);
                }
            }
        }
    }
}

#[test]
fn zeros_after_the_last_chunk_end_the_reading() {
    let mut bytes = write(&replies(4), Style { chunk_len: Some(700), ..PLAIN });
    bytes.truncate(bytes.len() / 2);
    let num = num_replies(&read_one(&bytes).0);
    bytes.extend([0; 4096]);
    let (recording, file) = read_one(&bytes);
    assert!(num_replies(&recording) <= num && !file.notes.is_empty());
}

#[test]
fn a_malformed_message_is_counted_and_the_next_is_read() {
    let cut = |len: usize| ("/takt/reply", "takt_msgs/msg/Reply", reply("x").2[..len].to_vec());
    let odd = Answer { status: "done".to_owned(), ..answer("x") };
    let endless = Answer { total_ms: f64::INFINITY, ..answer("x") };
    let rows = [
        reply("a"),
        cut(50),
        cut(0),
        ("/takt/reply", "takt_msgs/msg/Reply", odd.encode().unwrap()),
        ("/takt/reply", "takt_msgs/msg/Reply", endless.encode().unwrap()),
        reply("b"),
    ];
    let (recording, _) = read_one(&write(&rows, PLAIN));
    assert_eq!(num_replies(&recording), 2);
    let (num, first) = &recording.malformed["/takt/reply"];
    assert_eq!(*num, 4);
    assert!(first.contains("truncated"), "{first}");
}

#[test]
fn messages_that_rosbag2_compressed_one_by_one_are_unpacked() {
    let (topic, type_name, data) = reply("a");
    let packed = compress_to_vec(&data[..], CompressionLevel::Fastest);
    let broken = packed[..packed.len() / 2].to_vec();
    let (recording, _) =
        read_one(&write(&[(topic, type_name, packed), (topic, type_name, broken), reply("b")], PLAIN));
    assert_eq!((num_replies(&recording), recording.malformed["/takt/reply"].0), (2, 1));
}

#[test]
fn another_version_of_the_messages_is_an_error_that_names_the_field() {
    let older = REPLY_FILE.replace("bool is_promised", "");
    let style = Style { definition: Box::leak(older.into_boxed_str()), ..PLAIN };
    let error = read_bytes(&write(&replies(1), style), &mut Recording::default()).unwrap_err().to_string();
    for word in ["a.mcap", "takt_msgs/msg/Reply", "another version", "`bool is_promised` here"] {
        assert!(error.contains(word), "{error}");
    }
}

#[test]
fn what_cannot_be_compared_or_is_no_cdr_is_said() {
    let (recording, file) = read_one(&write(&replies(2), Style { definition: "", ..PLAIN }));
    assert_eq!(num_replies(&recording), 2);
    assert!(file.notes[0].contains("no definition"), "{:?}", file.notes);
    let (recording, file) = read_one(&write(&replies(2), Style { encoding: "json", ..PLAIN }));
    assert!(!recording.has_takt_topics());
    assert!(file.notes[0].contains("\"json\""), "{:?}", file.notes);
}

#[test]
fn a_bag_without_takt_topics_is_an_error_that_lists_its_types() {
    let rows = [("/imu", "sensor_msgs/msg/Imu", vec![0; 8]), ("/log", "rcl_interfaces/msg/Log", vec![0; 8])];
    let (recording, _) = read_one(&write(&rows, PLAIN));
    let error = EVERYTHING.nodes(&recording).unwrap_err().to_string();
    assert!(error.contains("rcl_interfaces/msg/Log, sensor_msgs/msg/Imu"), "{error}");
}

#[test]
fn a_part_given_twice_counts_once() {
    let bytes = write(&[prompt("/takt/prompt", "r0"), reply("r0"), reply("r1")], PLAIN);
    let mut recording = Recording::default();
    read_bytes(&bytes, &mut recording).unwrap();
    read_bytes(&bytes, &mut recording).unwrap();
    let [node] = &EVERYTHING.nodes(&recording).unwrap()[..] else { panic!("one node") };
    assert_eq!((node.replies.len(), node.num_replies_twice, node.num_prompts_twice), (2, 2, 1));
}

#[test]
fn a_name_used_again_belongs_to_the_prompt_of_its_time() {
    // Replies say 5 ms: each belongs to the prompt just before it, the second prompt has none.
    let again = Answer { stamp: Time { sec: 2, nanosec: 0 }, ..answer("loop") };
    let rows = [
        prompt("/remapped/question", "loop"),
        reply("loop"),
        prompt("/remapped/question", "loop"),
        ("/other", "std_msgs/msg/String", vec![0; 8]),
        ("/other", "std_msgs/msg/String", vec![0; 8]),
        prompt("/remapped/question", "loop"),
        ("/takt/reply", "takt_msgs/msg/Reply", again.encode().unwrap()),
    ];
    let (recording, _) = read_one(&write(&rows, PLAIN));
    let nodes = EVERYTHING.nodes(&recording).unwrap();
    let report = Report::of(&recording, &EVERYTHING, &nodes, Vec::new());
    // The only node is the one that was asked, whatever the topic is called.
    let asked = report.nodes[0].asked.as_ref().unwrap();
    assert_eq!((report.nodes.len(), asked.num_matched, asked.num_without_reply), (1, 2, 1));
    assert!((asked.without_reply[0].at_s - 0.02).abs() < 1e-9);
    // The writer repeats the time of logging: it is all there is.
    assert_eq!(asked.times, "log_time of both");
    let round_trip = asked.round_trip_ms.unwrap();
    assert_eq!((round_trip.p50, round_trip.max), (10.0, 10.0));
}
