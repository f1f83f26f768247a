use takt_node::ros::message::{
    Answer, ChatMessage, GENERATE, Message as _, PROMPT, Question, REPLY, SendGoalRequest, SendGoalResponse,
    Time, Token,
};
use takt_node::ros::transport::Qos;
use takt_node::ros::{AskDefaults, TypeName, serve};

use super::client::Peer;
use super::{EchoWorker, TOO_LONG, private_options, send_reply, send_tokens, serve_echo};

fn question(prompt: &str, request_id: &str) -> Question {
    Question { prompt: prompt.to_owned(), request_id: request_id.to_owned(), ..Question::default() }
}

#[test]
fn a_prompt_is_streamed_and_replied_to_under_its_own_name() {
    let options = private_options();
    let _node = serve_echo(&options);
    let peer = Peer::of(&options);
    let stream = peer.listen::<Token>("stream", Qos::STREAM);
    let replies = peer.listen_as::<Answer>("reply", REPLY, Qos::DEFAULT);
    let prompt = peer.publisher("prompt", PROMPT);
    prompt.publish(&question("größer — 世界", "tick-7").encode().unwrap()).unwrap();
    let tokens = stream.until(|token| token.is_last);
    let mut text = String::new();
    for (i, token) in tokens.iter().enumerate() {
        assert_eq!(
            (token.index, token.offset),
            (u32::try_from(i).unwrap(), u32::try_from(text.len()).unwrap())
        );
        assert_eq!(token.request_id, "tick-7");
        assert!(token.stamp > Time::ZERO);
        text.push_str(&token.text);
    }
    assert_eq!(text, "echo: größer — 世界");
    let reply = replies.next();
    assert_eq!((reply.request_id.as_str(), reply.text, reply.status.as_str()), ("tick-7", text, "complete"));
    assert!(reply.stamp >= reply.arrival && reply.arrival > Time::ZERO);
}

#[test]
fn every_request_ends_on_reply_whichever_way_it_came() {
    let options = private_options();
    let _node = serve_echo(&options);
    let peer = Peer::of(&options);
    let replies = peer.listen_as::<Answer>("reply", REPLY, Qos::DEFAULT);
    let ask = peer.service("ask", takt_node::ros::message::ASK);
    let answer: Answer = ask.call(&question("by service", "a"));
    assert_eq!((answer.request_id.as_str(), answer.text.as_str()), ("a", "echo: by service"));
    assert_eq!(replies.next().request_id, "a");
    let sentence = peer.publisher("ask", takt_node::ros::message::STRING);
    sentence.publish(&takt_node::ros::message::encode_string("by topic").unwrap()).unwrap();
    let reply = replies.next();
    assert_eq!(reply.text, "echo: by topic");
    assert!(!reply.request_id.is_empty(), "the node names what the asker did not");
    let bad: Answer = ask.call(&Question { prompt: String::new(), ..question("", "b") });
    let told = replies.next();
    assert_eq!((bad.status.as_str(), told.status.as_str()), ("rejected", "rejected"));
    assert_eq!(
        (bad.request_id.as_str(), told.request_id.as_str()),
        ("b", "b"),
        "a refusal has its asker's name"
    );
    // A goal that is refused has its reason here.
    let send_goal =
        peer.service("generate/_action/send_goal", TypeName { name: "Generate_SendGoal", ..GENERATE });
    let goal = SendGoalRequest { goal: question(" ", "c"), ..SendGoalRequest::default() };
    let response: SendGoalResponse = send_goal.call(&goal);
    let told = replies.next();
    assert!(!response.accepted);
    assert_eq!((told.request_id.as_str(), told.status.as_str()), ("c", "rejected"));
    assert!(told.reason.contains("empty"), "{}", told.reason);
    // The question by which our own clients open the way is nobody's request.
    let probe: Answer = ask.call(&Question::default());
    assert_eq!(probe.status, "rejected");
    let last: Answer = ask.call(&question("last", "d"));
    assert_eq!((last.request_id.as_str(), replies.next().request_id.as_str()), ("d", "d"));
}

#[test]
fn sentences_come_whole_and_in_order() {
    let options = private_options();
    let worker = EchoWorker::with(|requests| {
        for request in requests {
            let answer = match super::user_text(&request) {
                "look" => "I see a cup. It is red! Shall I take it",
                _ => "杯子在桌上。",
            };
            send_tokens(&request, answer);
            send_reply(&request, takt_node::request::Status::Complete, answer);
        }
    });
    let _node = serve(&options, worker.sender.clone(), AskDefaults::default()).unwrap();
    let peer = Peer::of(&options);
    let sentences = peer.listen::<Token>("sentence", Qos::DEFAULT);
    let prompt = peer.publisher("prompt", PROMPT);
    prompt.publish(&question("look", "x").encode().unwrap()).unwrap();
    let told = sentences.until(|sentence| sentence.is_last);
    let told: Vec<(u32, u32, &str)> =
        told.iter().map(|sentence| (sentence.index, sentence.offset, sentence.text.as_str())).collect();
    assert_eq!(told, [(0, 0, "I see a cup."), (1, 13, "It is red!"), (2, 24, "Shall I take it")]);
    // One that ends with its last sentence's end is ended all the same.
    prompt.publish(&question("看", "y").encode().unwrap()).unwrap();
    let told = sentences.until(|sentence| sentence.is_last);
    let texts: Vec<&str> = told.iter().map(|sentence| sentence.text.as_str()).collect();
    assert_eq!(texts, ["杯子在桌上。", ""]);
}

#[test]
fn a_session_remembers_what_was_said_before() {
    let options = private_options();
    let worker = EchoWorker::with(|requests| {
        for request in requests {
            let takt_node::request::Prompt::Chat(messages) = &request.prompt else { panic!("no chat") };
            let said: Vec<&str> = messages.iter().map(|(_, text)| text.as_str()).collect();
            let refusal = said.last().copied().filter(|last| ["no time", TOO_LONG].contains(last));
            match refusal {
                Some(reason) => send_reply(&request, takt_node::request::Status::Rejected, reason),
                None => send_reply(&request, takt_node::request::Status::Complete, &said.join("|")),
            }
        }
    });
    let defaults = AskDefaults { system: "sys".to_owned(), ..AskDefaults::default() };
    let _node = serve(&options, worker.sender.clone(), defaults).unwrap();
    let peer = Peer::of(&options);
    let ask = peer.service("ask", takt_node::ros::message::ASK);
    let say = |session: &str, prompt: &str| {
        let answer: Answer = ask.call(&Question { session: session.to_owned(), ..question(prompt, "") });
        answer.text
    };
    assert_eq!(say("kitchen", "one"), "sys|one");
    assert_eq!(say("hall", "other"), "sys|other");
    assert_eq!(say("kitchen", "two"), "sys|one|sys|one|two");
    // A refusal for want of time takes nothing away; one for the prompt's length the older half.
    say("hall", "no time");
    assert_eq!(say("hall", "again"), "sys|other|sys|other|again");
    say("hall", TOO_LONG);
    assert_eq!(say("hall", "third"), "sys|again|sys|other|sys|other|again|third");
    let chat = Question {
        messages: vec![ChatMessage { role: "user".to_owned(), content: "alone".to_owned() }],
        ..Question::default()
    };
    let answer: Answer = ask.call(&chat);
    assert_eq!(answer.text, "sys|alone");
}
