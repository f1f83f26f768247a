//! `takt bag-report` as a person and a script use it; the figures themselves are held to hand-computed ones beside the code.

use std::{ffi::OsStr, fs};

use serde_json::{Value, json};

use crate::harness::*;

fn bag(name: &str) -> String {
    fixture("bags").join(name).display().to_string()
}

#[test]
fn a_recording_is_reported_for_people_and_for_scripts() {
    let folder = tempfile::tempdir().unwrap();
    let plot = folder.path().join("field.svg").display().to_string();
    let text = succeed(["bag-report", &bag("field-zstd.mcap"), "--plot", &plot]);
    for word in [
        "recording  60.0 s from 2026-09-21 14:13:20 UTC",
        "10 deadlines, 9 kept, 1 missed (10.00 %) by p50 30.00, max 30.00 ms",
        "2 for want of time; could have promised p50 80.00",
        "16 with their reply",
        "prompt to reply, publish_time to log_time",
        "1 lost",
        "promise missed  c10",
        "field.svg",
    ] {
        assert!(text.contains(word), "{word:?} not in {text}");
    }
    assert!(fs::read_to_string(&plot).unwrap().contains("c10: 130 of 100 ms"));
    let found =
        succeed_json(["bag-report", &bag("field-lz4.mcap"), "--json", "--node", "/takt", "--until", "20"]);
    let keys: Vec<&str> = found.as_object().unwrap().keys().map(String::as_str).collect();
    let expected = ["files", "start_ns", "length_s", "since_s", "until_s", "nodes", "malformed"];
    assert_eq!(keys, expected);
    assert_eq!((&found["until_s"], &found["files"][0]["is_whole"]), (&json!(20.0), &json!(true)));
    let node = &found["nodes"][0];
    assert_eq!((&node["node"], &node["num_requests"]), (&json!("/takt"), &json!(16)));
    let control = &node["classes"][0];
    assert_eq!((&control["class"], &control["status"]["rejected"]), (&json!("control"), &json!(3)));
    assert_eq!(control["promised"]["missed_by_ms"]["max"], 30.0);
    assert_eq!(control["total_ms"], json!({"num": 10, "p50": 50.0, "p90": 90.0, "p99": 130.0, "max": 130.0}));
    assert_eq!(control["unpromised"]["missed_by_ms"], Value::Null);
    assert_eq!(node["worst"][0]["request_id"], "c10");
}

#[test]
fn a_rosbag2_folder_is_read_part_by_part() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("metadata.yaml"), "rosbag2_bagfile_information:\n").unwrap();
    for name in ["run_0.mcap", "run_1.mcap"] {
        fs::copy(bag("field-zstd.mcap"), folder.path().join(name)).unwrap();
    }
    let found = succeed_json([OsStr::new("bag-report"), folder.path().as_ref(), "--json".as_ref()]);
    assert_eq!(found["files"].as_array().unwrap().len(), 2);
    let node = found["nodes"].as_array().unwrap().iter().find(|node| node["node"] == "/takt").unwrap();
    // The second part repeats the first, which itself has one reply twice: each counts once.
    assert_eq!((&node["num_requests"], &node["num_replies_twice"]), (&json!(18), &json!(20)));
}

#[test]
fn a_recording_cut_short_is_reported_with_what_it_has() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cut.mcap");
    let bytes = fs::read(bag("field-zstd.mcap")).unwrap();
    fs::write(&path, &bytes[..bytes.len() / 4]).unwrap();
    let text = succeed([OsStr::new("bag-report"), path.as_ref()]);
    assert!(text.contains("cut off") && text.contains("/takt"), "{text}");
    fs::write(&path, &bytes[..20]).unwrap();
    fail([OsStr::new("bag-report"), path.as_ref()], 1, &["no topic of type takt_msgs/msg/Reply", "cut off"]);
}

#[test]
fn what_is_no_recording_of_ours_is_refused_with_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("old.db3").display().to_string();
    fs::write(&path, b"SQLite format 3\0").unwrap();
    fail(["bag-report", &path], 1, &["old.db3", "ros2 bag convert", "-s mcap"]);
    let dir = folder.path().display().to_string();
    fail(["bag-report", &dir], 1, &["old.db3", "ros2 bag convert"]);
    fail(["bag-report", &fixture("bags/make.py").display().to_string()], 1, &["not an MCAP file"]);
    fail(["bag-report", "no/such.mcap"], 1, &["no/such.mcap", "cannot be read"]);
    fail(["bag-report", &bag("field-zstd.mcap"), "--node", "nobody"], 1, &["/robot2/llm, /takt"]);
    fail(["bag-report", &bag("field-zstd.mcap"), "--since", "9", "--until", "3"], 2, &["--until"]);
    fail(["bag-report", &bag("field-zstd.mcap"), "--since", "soon"], 2, &["number of seconds"]);
    fail(["bag-report"], 2, &[]);
}
