//! Tests: the structures against the interface files in `launch/takt_msgs`, field by field.

use super::*;

/// `(type, name)` of every field of one part of an interface file, types spelled out.
fn fields_of(part: &str) -> Vec<(String, String)> {
    part.lines()
        .map(|line| line.split('#').next().unwrap_or_default().trim())
        .filter(|line| !line.is_empty())
        .map(|line| {
            let (ty, name) = line.split_once(' ').unwrap();
            // Files say `package/Name`, everybody else `package/msg/Name`.
            (ty.replacen('/', "/msg/", 1), name.trim().to_owned())
        })
        .collect()
}

fn fields<M: Message>() -> Vec<(String, String)> {
    M::fields().into_iter().map(|(ty, name)| (ty, name.to_owned())).collect()
}

macro_rules! file {
    ($path:literal) => {
        include_str!(concat!("../../../../launch/takt_msgs/", $path))
    };
}

fn parts(file: &str) -> Vec<&str> {
    let lines: Vec<usize> = file.match_indices("\n---\n").map(|(at, _)| at + 1).collect();
    let starts = std::iter::once(0).chain(lines.iter().map(|at| at + 4));
    let ends = lines.iter().copied().chain([file.len()]);
    starts.zip(ends).map(|(start, end)| &file[start..end]).collect()
}

#[test]
fn every_message_has_the_fields_of_its_file_in_their_order() {
    assert_eq!(fields::<ChatMessage>(), fields_of(file!("msg/ChatMessage.msg")));
    assert_eq!(fields::<Sampling>(), fields_of(file!("msg/Sampling.msg")));
    assert_eq!(fields::<Question>(), fields_of(file!("msg/Prompt.msg")));
    assert_eq!(fields::<Answer>(), fields_of(file!("msg/Reply.msg")));
    assert_eq!(fields::<Token>(), fields_of(file!("msg/Token.msg")));
}

#[test]
fn the_service_and_the_action_ask_and_answer_with_the_same_fields() {
    let (question, answer) = (fields::<Question>(), fields::<Answer>());
    let ask: Vec<_> = parts(file!("srv/Ask.srv")).into_iter().map(fields_of).collect();
    assert_eq!(ask, [question.clone(), answer.clone()]);
    let generate: Vec<_> = parts(file!("action/Generate.action")).into_iter().map(fields_of).collect();
    assert_eq!(generate, [question, answer, fields::<Feedback>()]);
    let info: Vec<_> = parts(file!("srv/EngineInfo.srv")).into_iter().map(fields_of).collect();
    assert_eq!(info, [Vec::new(), fields::<EngineInfo>()]);
}

#[test]
fn the_package_builds_every_file_there_is() {
    let package = concat!(env!("CARGO_MANIFEST_DIR"), "/../launch/takt_msgs");
    let listed = std::fs::read_to_string(format!("{package}/CMakeLists.txt")).unwrap();
    for folder in ["msg", "srv", "action"] {
        for entry in std::fs::read_dir(format!("{package}/{folder}")).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            assert!(listed.contains(&format!("\"{folder}/{name}\"")), "{name} is not in CMakeLists.txt");
        }
    }
}

fn question() -> Question {
    Question {
        stamp: Time { sec: 7, nanosec: 9 },
        request_id: "loop-17".to_owned(),
        prompt: "größer?".to_owned(),
        messages: vec![ChatMessage { role: "user".to_owned(), content: "hi".to_owned() }],
        deadline: RosDuration { sec: 1, nanosec: 2 },
        max_tokens: 3,
        stop: vec!["\n".to_owned()],
        sampling: Some(Sampling { temperature: 0.5, top_k: 4, top_p: 0.9, min_p: 0.1, seed: 5 }),
        choices: vec!["left".to_owned(), "right".to_owned()],
        ..Question::default()
    }
}

#[test]
fn what_is_written_is_read_back() {
    assert_eq!(Question::decode(&question().encode().unwrap()).unwrap(), question());
    let answer = Answer { status: "complete".to_owned(), num_tokens: 7, ttft_ms: 1.5, ..Answer::default() };
    assert_eq!(Answer::decode(&answer.encode().unwrap()).unwrap(), answer);
    let empty = EngineInfoRequest::default().encode().unwrap();
    // C++ has no empty structures: one byte.
    assert_eq!(empty, [0, 1, 0, 0, 0]);
    EngineInfoRequest::decode(&empty).unwrap();
}

#[test]
fn every_truncated_question_is_an_error() {
    let message = question().encode().unwrap();
    for len in 0..message.len() {
        assert!(Question::decode(&message[..len]).is_err(), "{len} bytes");
    }
}

#[test]
fn no_corrupted_byte_makes_decoding_panic_or_read_past_the_end() {
    let message = question().encode().unwrap();
    for i in 0..message.len() {
        for byte in [0x00, 0x01, 0x7f, 0x80, 0xc3, 0xff] {
            let mut corrupted = message.clone();
            corrupted[i] = byte;
            if let Ok(read) = Question::decode(&corrupted) {
                assert!(read.prompt.len() + read.system.len() < message.len());
            }
            let _ = Answer::decode(&corrupted);
            let _ = SetParametersRequest::decode(&corrupted);
            let _ = SendGoalRequest::decode(&corrupted);
            let _ = decode_string(&corrupted);
        }
    }
}
