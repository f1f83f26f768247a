//! What goes out: a thread that follows every open request's events and tells tokens and replies to who waits for them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Select};

use super::ask::refusal;
use super::intake::OpenCounts;
use super::sentence::{Sentence, Splitter};
use super::session::Sessions;
use super::topics::{Asker, Topics, is_answer};
use crate::request::{Event, Reply, RequestId, RequestSender, Status};
use crate::ros::message::{About, Feedback, Token};

/// A request the worker has.
pub(in crate::ros) struct Open {
    pub id: RequestId,
    pub asker: Asker,
    pub about: About,
    pub arrived: Instant,
    pub deadline: Option<Duration>,
    /// Conversation and question, to remember the answer by.
    pub session: Option<(String, String)>,
    /// Who has it.
    pub requests: RequestSender,
    events: Receiver<Event>,
    /// What of the answer has been told.
    told: Told,
}

/// What of an answer has been told as it grew.
#[derive(Default)]
struct Told {
    /// All of it, in order.
    text: String,
    num_parts: u32,
    sentences: Splitter,
    num_sentences: u32,
}

impl Open {
    pub fn new(
        asker: Asker,
        about: About,
        requests: RequestSender,
        events: Receiver<Event>,
        asked: (RequestId, Instant, Option<Duration>),
    ) -> Self {
        let (id, arrived, deadline) = asked;
        let (session, told) = (None, Told::default());
        Self { id, asker, about, arrived, deadline, session, requests, events, told }
    }

    fn refusal(&self, status: Status, reason: &str) -> Reply {
        refusal(status, reason.to_owned(), self.arrived, self.deadline)
    }
}

/// What the node asks of the thread; it ends when nobody can ask any more.
pub(in crate::ros) enum Command {
    /// Cancel what is open.
    CancelAll,
}

/// The thread's state.
pub(in crate::ros) struct Outlet {
    topics: Arc<Topics>,
    sessions: Arc<Sessions>,
    open_counts: Arc<OpenCounts>,
    newly_open: Receiver<Open>,
    commands: Receiver<Command>,
    open: Vec<Open>,
}

/// What the thread woke up for.
enum News {
    Opened(Box<Open>),
    Of(usize, Option<Event>),
    CancelAll,
    Stop,
}

impl Outlet {
    pub fn new(
        topics: Arc<Topics>,
        sessions: Arc<Sessions>,
        open_counts: Arc<OpenCounts>,
        newly_open: Receiver<Open>,
        commands: Receiver<Command>,
    ) -> Self {
        Self { topics, sessions, open_counts, newly_open, commands, open: Vec::new() }
    }

    /// Follows the open requests until the node ends, then refuses those that are left.
    pub fn run(mut self) {
        loop {
            match self.wait() {
                News::Opened(open) => self.open.push(*open),
                News::Of(i, Some(Event::Tokens { offset, text, .. })) => {
                    tell(&self.topics, &mut self.open[i], offset, &text, false);
                }
                News::Of(i, Some(Event::Reply(reply))) => self.finish(i, *reply),
                News::Of(i, None) => {
                    let reply = self.open[i]
                        .refusal(Status::Failed, "the worker gave the request up without a reply");
                    self.finish(i, reply);
                }
                News::CancelAll => {
                    self.open.extend(self.newly_open.try_iter());
                    self.open.iter().for_each(|open| open.requests.cancel(open.id));
                }
                News::Stop => break,
            }
        }
        self.open.extend(self.newly_open.try_iter());
        while let Some(last) = self.open.len().checked_sub(1) {
            // A reply that is there already is better than a refusal.
            let arrived = self.open[last].events.try_iter().find_map(|event| match event {
                Event::Reply(reply) => Some(*reply),
                Event::Tokens { .. } => None,
            });
            let reply = arrived
                .unwrap_or_else(|| self.open[last].refusal(Status::Cancelled, "the node is shutting down"));
            self.finish(last, reply);
        }
    }

    fn wait(&self) -> News {
        let mut select = Select::new();
        select.recv(&self.commands);
        select.recv(&self.newly_open);
        for open in &self.open {
            select.recv(&open.events);
        }
        let ready = select.select();
        match ready.index() {
            0 => match ready.recv(&self.commands) {
                Ok(Command::CancelAll) => News::CancelAll,
                Err(_) => News::Stop,
            },
            1 => ready.recv(&self.newly_open).map_or(News::Stop, |open| News::Opened(Box::new(open))),
            i => News::Of(i - 2, ready.recv(&self.open[i - 2].events).ok()),
        }
    }

    fn finish(&mut self, i: usize, reply: Reply) {
        let mut open = self.open.swap_remove(i);
        let num_told = open.told.text.len();
        // A refusal after the first tokens has no text: then nothing but the end is left to tell.
        let rest = reply.text.get(num_told..).unwrap_or_default();
        tell(&self.topics, &mut open, num_told, rest, true);
        if let Some((session, question)) = &open.session {
            if is_answer(reply.status) {
                self.sessions.note(session, question, &reply.text);
            }
            // Half of what a lane holds is left for the next question and its answer; what was too long is to fit when asked again.
            let num_tokens = reply.prompt_token_ids.len() + reply.token_ids.len();
            let is_long = open.requests.max_context().is_some_and(|most| num_tokens > most / 2);
            if is_long || reply.is_prompt_too_long {
                self.sessions.shorten(session);
            }
        }
        // Before the reply: whoever has it may ask again at once.
        self.open_counts.leave(open.about.class);
        self.topics.finish(open.asker, &open.about, &reply);
    }
}

/// Tells `text`, which starts at byte `offset` of the answer, to who listens.
fn tell(topics: &Topics, open: &mut Open, offset: usize, text: &str, is_last: bool) {
    // After a gap (a dropped event) the rest is held back until the reply brings the whole text.
    if !open.asker.listens() || offset != open.told.text.len() || (text.is_empty() && !is_last) {
        return;
    }
    let told = &mut open.told;
    told.text.push_str(text);
    let token = |index: u32, offset: usize, text: &str, is_last: bool| Token {
        stamp: topics.clock.now(),
        request_id: open.about.request_id.clone(),
        index,
        offset: u32::try_from(offset).unwrap_or(u32::MAX),
        text: text.to_owned(),
        is_last,
    };
    let part = token(told.num_parts, offset, text, is_last);
    if let Asker::Goal(goal) = &open.asker
        && !text.is_empty()
    {
        topics.goals.feedback(*goal, feedback(&part, &told.text));
    }
    if matches!(open.asker, Asker::Sentence(_)) && !text.is_empty() {
        topics.text(text);
    }
    topics.stream(&part);
    told.num_parts += 1;
    let mut whole = told.sentences.push(text);
    if is_last {
        whole.extend(told.sentences.finish());
    }
    if is_last && whole.is_empty() {
        whole.push(Sentence { offset: told.text.len(), text: String::new() });
    }
    let num_whole = whole.len();
    for (i, Sentence { offset, text }) in whole.into_iter().enumerate() {
        topics.sentence(&token(told.num_sentences, offset, &text, is_last && i + 1 == num_whole));
        told.num_sentences += 1;
    }
}

fn feedback(part: &Token, text_so_far: &str) -> Feedback {
    Feedback {
        stamp: part.stamp,
        request_id: part.request_id.clone(),
        index: part.index,
        offset: part.offset,
        text: part.text.clone(),
        text_so_far: text_so_far.to_owned(),
    }
}
