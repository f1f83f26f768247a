//! What was said before a participant left is heard, however busy the other is; and who finds its ports taken is heard too.

use std::net::{Ipv4Addr, UdpSocket};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender};
use takt_node::ros::message::{ASK, Message as _, STRING, decode_string, encode_string};
use takt_node::ros::transport::{Call, OnRequest, Publish, Qos, Transport};
use takt_node::ros::{Answer, Question, RosOptions, join};

use super::{PATIENCE, dds_options, next};

fn join_as(name: &str, options: &RosOptions) -> Box<dyn Transport> {
    join(&RosOptions { node_name: name.to_owned(), ..options.clone() }).unwrap()
}

/// A participant that is busy with each message on `/said` until it is told to go on.
struct Busy {
    transport: Box<dyn Transport>,
    heard: Receiver<String>,
    go_on: Sender<()>,
    /// On `/back`, to the one that will leave.
    back: Box<dyn Publish>,
}

impl Busy {
    /// Beside `leaving`, which publishes by what is returned.
    fn meet(leaving: &dyn Transport, options: &RosOptions) -> (Self, Box<dyn Publish>) {
        let transport = join_as("busy", options);
        let (say, heard) = crossbeam_channel::unbounded();
        let (go_on, gate) = crossbeam_channel::unbounded::<()>();
        let on_message = move |message: &[u8]| {
            let _ = say.send(decode_string(message).unwrap().to_owned());
            let _ = gate.recv();
        };
        let subscription = transport.subscribe("/said", STRING, Qos::DEFAULT, Box::new(on_message)).unwrap();
        let said = leaving.publisher("/said", STRING, Qos::DEFAULT).unwrap();
        leaving.subscribe("/back", STRING, Qos::DEFAULT, Box::new(|_| ())).unwrap();
        let back = transport.publisher("/back", STRING, Qos::DEFAULT).unwrap();
        assert!(subscription.wait_for_publisher(PATIENCE) && said.wait_for_subscriber(PATIENCE));
        assert!(back.wait_for_subscriber(PATIENCE));
        (Self { transport, heard, go_on, back }, said)
    }

    /// Lets the other leave, and goes on when that has been told: what is said to nobody else is delivered then.
    fn part(&self, leave: impl FnOnce()) {
        leave();
        say(self.back.as_ref(), "are you there?");
        assert!(self.transport.wait_delivered(PATIENCE));
        // That the other's readers are gone is told a moment before its writers are.
        std::thread::sleep(Duration::from_millis(20));
        self.go_on.send(()).unwrap();
    }
}

fn say(publisher: &dyn Publish, text: &str) {
    publisher.publish(&encode_string(text).unwrap()).unwrap();
}

/// Answers with the question, and tells that it did.
fn serve_echo(transport: &dyn Transport) -> Receiver<()> {
    let (tell, answered) = crossbeam_channel::unbounded();
    let on_request: OnRequest = Box::new(move |message, respond| {
        let text = Question::decode(message).unwrap().prompt;
        respond.respond(&Answer { text, ..Answer::default() }.encode().unwrap(), None);
        let _ = tell.send(());
    });
    transport.serve("/echo", ASK, &Answer::default().encode().unwrap(), on_request).unwrap();
    answered
}

fn client_of(transport: &dyn Transport) -> Box<dyn Call> {
    let call = transport.client("/echo", ASK).unwrap();
    assert!(call.wait_for_server(PATIENCE));
    call
}

fn question(text: &str) -> Vec<u8> {
    Question { prompt: text.to_owned(), ..Question::default() }.encode().unwrap()
}

#[track_caller]
fn text_of(reply: Option<Vec<u8>>) -> String {
    Answer::decode(&reply.unwrap()).unwrap().text
}

#[test]
fn a_busy_subscriber_hears_what_was_said_before_its_publisher_left() {
    let options = dds_options();
    let leaving = join_as("leaving", &options);
    let (busy, said) = Busy::meet(leaving.as_ref(), &options);
    say(said.as_ref(), "one");
    assert_eq!(next(&busy.heard), "one");
    say(said.as_ref(), "two");
    say(said.as_ref(), "three");
    assert!(leaving.wait_delivered(PATIENCE));
    busy.part(|| drop((said, leaving)));
    assert_eq!(next(&busy.heard), "two");
    busy.go_on.send(()).unwrap();
    assert_eq!(next(&busy.heard), "three");
    drop(busy.go_on);
    // And nothing twice.
    assert!(busy.heard.recv_timeout(Duration::from_millis(1200)).is_err());
}

#[test]
fn a_busy_client_gets_the_reply_of_a_server_that_left() {
    let options = dds_options();
    let leaving = join_as("leaving", &options);
    let answered = serve_echo(leaving.as_ref());
    let (busy, said) = Busy::meet(leaving.as_ref(), &options);
    let call = client_of(busy.transport.as_ref());
    // The first reply waits for its client's answer; the next does not.
    assert_eq!(text_of(call.call(&question("first")).unwrap().wait(PATIENCE)), "first");
    next(&answered);
    say(said.as_ref(), "be busy");
    next(&busy.heard);
    let pending = call.call(&question("and last?")).unwrap();
    next(&answered);
    assert!(leaving.wait_delivered(PATIENCE));
    busy.part(|| drop((said, leaving)));
    assert_eq!(text_of(pending.wait(PATIENCE)), "and last?");
}

#[test]
fn a_server_is_heard_whose_port_for_user_data_another_program_has() {
    let options = dds_options();
    // RTPS 2.3, 9.6.1.1: of the domain's first participant. Perhaps another program has it indeed.
    let _taken = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 7400 + 250 * options.domain_id + 11));
    let (node, robot) = (join_as("node", &options), join_as("robot", &options));
    serve_echo(node.as_ref());
    let call = client_of(robot.as_ref());
    assert_eq!(text_of(call.call(&question("can you hear me?")).unwrap().wait(PATIENCE)), "can you hear me?");
}
