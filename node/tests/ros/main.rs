//! The node over real DDS traffic on the loopback interface: two participants of one process, a domain per test. With
//! `TAKT_TEST_TRANSPORT=rcl` and the feature `r2r`, both go through rcl, whatever its middleware is.

#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail by panicking")]

mod action;
mod client;
mod conformance;
mod enhanced;
mod leaving;
mod lifecycle;
mod names;
mod parameters;
mod renewal;
mod service;
mod topics;
mod typed;

use std::sync::atomic::{AtomicU16, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use takt_engine::grammar::Closing;
use takt_node::request::{Event, Prompt, Reply, Request, RequestSender, Status, Timings};
use takt_node::ros::{AskDefaults, RosNode, RosOptions, TransportKind, serve};

/// Generous: discovery takes milliseconds, but the machine may be busy.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Options of a node nobody else talks to: a domain per test and process, a namespace on top.
pub(crate) fn private_options() -> RosOptions {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    let pid = std::process::id();
    let domain_id = 1 + u16::try_from((pid + u32::from(n) * 37) % 230).unwrap();
    RosOptions {
        domain_id,
        namespace: format!("/test_{pid}_{n}"),
        localhost_only: true,
        transport: TransportKind::named(&std::env::var("TAKT_TEST_TRANSPORT").unwrap_or_default()),
        ..RosOptions::default()
    }
}

/// The same over the built-in DDS, whatever is tested: bytes that are no message, or a service mapping of its own.
pub(crate) fn dds_options() -> RosOptions {
    RosOptions { transport: TransportKind::Dds, ..private_options() }
}

/// A stand-in for the worker: answers each request by a function of its prompt, in three sections.
pub(crate) struct EchoWorker {
    pub(crate) sender: RequestSender,
    thread: Option<JoinHandle<()>>,
}

impl EchoWorker {
    /// Answers `echo: PROMPT`.
    pub(crate) fn start() -> Self {
        Self::with(|requests| requests.iter().for_each(|request| echo(&request)))
    }

    /// Answers as `work` does, until the queue closes.
    pub(crate) fn with(work: impl FnOnce(Receiver<Request>) + Send + 'static) -> Self {
        let (queue, requests) = crossbeam_channel::bounded(64);
        let thread = std::thread::spawn(move || work(requests));
        Self { sender: RequestSender::new(queue), thread: Some(thread) }
    }

    /// Waits for the thread after every sender is gone.
    pub(crate) fn join(mut self) {
        let thread = self.thread.take();
        drop(self);
        thread.unwrap().join().unwrap();
    }
}

/// The user's part of a prompt.
pub(crate) fn user_text(request: &Request) -> &str {
    match &request.prompt {
        Prompt::Chat(messages) => &messages.last().unwrap().1,
        Prompt::Raw(text) => text,
    }
}

pub(crate) fn echo(request: &Request) {
    let answer = format!("echo: {}", user_text(request));
    send_tokens(request, &answer);
    send_reply(request, Status::Complete, &answer);
}

/// `answer` in three sections, cut between characters.
pub(crate) fn send_tokens(request: &Request, answer: &str) {
    let cuts: Vec<usize> = answer.char_indices().map(|(at, _)| at).chain([answer.len()]).collect();
    let third = cuts.len().div_ceil(3);
    let mut from = 0;
    for (index, to) in
        [third, 2 * third, cuts.len() - 1].iter().map(|i| cuts[(*i).min(cuts.len() - 1)]).enumerate()
    {
        let index = u32::try_from(index).unwrap();
        let text = answer[from..to].to_owned();
        request.events.send(Event::Tokens { id: request.id, index, offset: from, text }).unwrap();
        from = to;
    }
}

/// What a reply says that refuses a prompt for its length.
pub(crate) const TOO_LONG: &str = "too long";

pub(crate) fn send_reply(request: &Request, status: Status, answer: &str) {
    send(request, status, answer, None);
}

/// The reply to a request with a form whose time was up.
pub(crate) fn send_closed(request: &Request, answer: &str, closing: Closing) {
    send(request, Status::ClosedAtDeadline, answer, Some(closing));
}

fn send(request: &Request, status: Status, answer: &str, closing: Option<Closing>) {
    let total = request.arrived.elapsed();
    let deadline = request.deadline.map(|deadline| deadline - request.arrived);
    let reply = Reply {
        id: request.id,
        status,
        text: answer.to_owned(),
        closing,
        token_ids: vec![Default::default(); 3],
        prompt_token_ids: vec![Default::default(); 5],
        finish_reason: "stop",
        reason: None,
        earliest_deadline: None,
        is_prompt_too_long: status == Status::Rejected && answer == TOO_LONG,
        is_promised: false,
        speculation: None,
        timings: Timings { ttft: Some(total), total, deadline, ..Timings::default() },
    };
    request.events.send(Event::Reply(Box::new(reply))).unwrap();
}

pub(crate) fn serve_echo(options: &RosOptions) -> RosNode {
    serve(options, EchoWorker::start().sender, AskDefaults::default()).unwrap()
}

/// The next message, or a failure that says how long it was waited for.
#[track_caller]
pub(crate) fn next<T>(messages: &Receiver<T>) -> T {
    let started = Instant::now();
    messages.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("nothing came within {:?}", started.elapsed()))
}

/// A callback that decodes strings into `messages`.
pub(crate) fn strings_into(messages: Sender<String>) -> takt_node::ros::transport::OnMessage {
    Box::new(move |message| {
        messages.send(takt_node::ros::message::decode_string(message).unwrap().to_owned()).unwrap();
    })
}
