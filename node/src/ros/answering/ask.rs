//! From a ROS 2 message to a [`Request`], or to the reason why not.

use std::time::{Duration, Instant};

use crossbeam_channel::Sender;
use takt_engine::sampler::SamplingParams;

use super::form::form_of;
use crate::{
    request::{Event, Form, Prompt, Reply, Request, RequestId, Status, Timings},
    ros::message::{ChatMessage, Question, Sampling},
    scheduler::class::Class,
};

/// Longest name of a request or of a conversation.
const MAX_NAME_BYTES: usize = 128;
/// Texts that may end an answer, and how long each may be.
const MAX_STOPS: usize = 16;
const MAX_STOP_BYTES: usize = 256;
/// Turns of a conversation.
const MAX_MESSAGES: usize = 256;

/// What a message that does not say gets, and how much a message may ask for.
#[derive(Debug, Clone, PartialEq)]
pub struct AskDefaults {
    /// System prompt; empty for none.
    pub system: String,
    /// Time allowed from arrival; `None` for background work.
    pub deadline: Option<Duration>,
    /// What a message with the default deadline is promised; one that names its deadline is a control loop's.
    pub class: Class,
    /// Most tokens of an answer; `None` for what there is room for.
    pub max_tokens: Option<usize>,
    /// How tokens are chosen; `None` for the engine's defaults.
    pub sampling: Option<SamplingParams>,
    /// The form of answers to plain sentences; `None` for any text. Other messages say it themselves.
    pub form: Option<Form>,
    /// Longest prompt and system prompt together.
    pub max_prompt_bytes: usize,
    /// Requests being answered at a time; more are rejected.
    pub max_in_flight: usize,
    /// The same of each class, in the order of [`Class::ALL`].
    pub max_of_class: [usize; 3],
    /// Whether speculation is used, where something can draft.
    pub speculate: bool,
}

impl Default for AskDefaults {
    fn default() -> Self {
        Self {
            system: String::new(),
            deadline: None,
            class: Class::Interactive,
            max_tokens: None,
            sampling: None,
            form: None,
            max_prompt_bytes: 64 * 1024,
            max_in_flight: 64,
            max_of_class: [usize::MAX; 3],
            speculate: true,
        }
    }
}

/// A message whose demands are checked.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Ask {
    /// The asker's name for it; `None` to make one.
    pub request_id: Option<String>,
    prompt: Vec<(String, String)>,
    /// Conversation to continue.
    pub session: Option<String>,
    /// From arrival.
    pub deadline: Option<Duration>,
    pub class: Class,
    max_tokens: Option<usize>,
    stop: Vec<String>,
    sampling: Option<SamplingParams>,
    pub form: Option<Form>,
}

impl AskDefaults {
    /// A plain sentence with everything else by default.
    ///
    /// # Errors
    /// As [`Self::complete`].
    pub(super) fn sentence(&self, sentence: &str) -> Result<Ask, String> {
        let ask = self.complete(Question { prompt: sentence.to_owned(), ..Question::default() })?;
        Ok(Ask { form: self.form.clone(), ..ask })
    }

    /// Checks `message` and fills in what it leaves open.
    ///
    /// # Errors
    /// What was wrong and what to do, for the reply.
    pub(super) fn complete(&self, message: Question) -> Result<Ask, String> {
        if message.messages.len() > MAX_MESSAGES {
            let num_messages = message.messages.len();
            return Err(format!("{num_messages} messages: at most {MAX_MESSAGES} are allowed"));
        }
        let form = form_of(&message)?;
        let (deadline, class) = self.deadline_and_class(&message)?;
        let request_id = name("request_id", message.request_id)?;
        let session = name("session", message.session)?;
        let system = if message.system.is_empty() { self.system.clone() } else { message.system };
        let prompt = conversation(message.prompt, message.messages, system, session.is_some())?;
        let num_bytes = prompt.iter().fold(0_usize, |sum, (_, text)| sum.saturating_add(text.len()));
        if num_bytes > self.max_prompt_bytes {
            let limit = self.max_prompt_bytes;
            return Err(format!(
                "the prompt and its system prompt have {num_bytes} bytes, {limit} are allowed"
            ));
        }
        let is_stop = |stop: &String| (1..=MAX_STOP_BYTES).contains(&stop.len());
        if message.stop.len() > MAX_STOPS || !message.stop.iter().all(is_stop) {
            return Err(format!(
                "stop holds {} texts: at most {MAX_STOPS} of 1 to {MAX_STOP_BYTES} bytes are allowed",
                message.stop.len()
            ));
        }
        let max_tokens = match message.max_tokens {
            0 => self.max_tokens,
            max => usize::try_from(max).ok(),
        };
        let sampling = message.sampling.map(params).transpose()?.or(self.sampling);
        Ok(Ask {
            request_id,
            prompt,
            session,
            deadline,
            class,
            max_tokens,
            stop: message.stop,
            sampling,
            form,
        })
    }

    fn deadline_and_class(&self, message: &Question) -> Result<(Option<Duration>, Class), String> {
        let asked = message.deadline.to_std().ok_or_else(|| {
            let (sec, nanosec) = (message.deadline.sec, message.deadline.nanosec);
            format!(
                "the deadline of {sec} s + {nanosec} ns is negative or has a second or more of nanoseconds: \
                 send the time from now, or zero for the node's default"
            )
        })?;
        let named = Some(asked).filter(|asked| !asked.is_zero());
        let deadline = named.or(self.deadline);
        // Without a deadline it runs as background work, whatever it is called.
        let or_background = |class| if deadline.is_none() { Class::Background } else { class };
        match message.priority_class.as_str() {
            "" => Ok((deadline, or_background(if named.is_some() { Class::Control } else { self.class }))),
            "control" if deadline.is_none() => Err(
                "priority_class is control, but no deadline is named and the node has no default: name one"
                    .to_owned(),
            ),
            "control" => Ok((deadline, Class::Control)),
            "interactive" => Ok((deadline, or_background(Class::Interactive))),
            "background" if named.is_some() => {
                Err("priority_class is background, but a deadline is named: leave one of them out".to_owned())
            }
            "background" => Ok((None, Class::Background)),
            other => {
                Err(format!("priority_class is {other:?}: send control, interactive, background or nothing"))
            }
        }
    }
}

impl AskDefaults {
    /// The class that `message` means, whatever else is wrong with it.
    pub(super) fn class_of(&self, message: &Question) -> Class {
        self.deadline_and_class(message).map_or(self.class, |(_, class)| class)
    }
}

/// What its asker calls `message`, if that can be a name.
pub(super) fn name_of(message: &Question) -> Option<String> {
    name("request_id", message.request_id.clone()).ok().flatten()
}

/// A name of at most [`MAX_NAME_BYTES`] without control characters; `None` for an empty one.
fn name(what: &str, name: String) -> Result<Option<String>, String> {
    if name.len() > MAX_NAME_BYTES || name.chars().any(char::is_control) {
        let len = name.len();
        return Err(format!(
            "{what} has {len} bytes: at most {MAX_NAME_BYTES} are allowed, and no control characters"
        ));
    }
    Ok(Some(name).filter(|name| !name.is_empty()))
}

/// The messages of a prompt: `(role, content)`, the system prompt first, the question last.
fn conversation(
    prompt: String,
    messages: Vec<ChatMessage>,
    system: String,
    is_session: bool,
) -> Result<Vec<(String, String)>, String> {
    let mut conversation = Vec::with_capacity(messages.len() + 2);
    let has_system = messages.first().is_some_and(|first| first.role == "system");
    if !system.is_empty() && !has_system {
        conversation.push(("system".to_owned(), system));
    }
    if messages.is_empty() {
        if prompt.trim().is_empty() {
            return Err("the prompt is empty: send the text to answer".to_owned());
        }
        conversation.push(("user".to_owned(), prompt));
        return Ok(conversation);
    }
    if !prompt.is_empty() {
        return Err("both prompt and messages: send one of them".to_owned());
    }
    if is_session {
        return Err(
            "both session and messages: a session remembers what was said, send the next prompt alone"
                .to_owned(),
        );
    }
    let last = messages.len() - 1;
    for (i, ChatMessage { role, content }) in messages.into_iter().enumerate() {
        match role.as_str() {
            "user" if i == last && content.trim().is_empty() => {
                return Err("the last message is empty: send the text to answer".to_owned());
            }
            "system" | "user" | "assistant" if i < last => {}
            "user" => {}
            _ if i == last => {
                return Err(format!("the last message has the role {role:?}: user is expected"));
            }
            _ => {
                return Err(format!(
                    "message {i} has the role {role:?}: system, user or assistant is expected"
                ));
            }
        }
        conversation.push((role, content));
    }
    Ok(conversation)
}

/// The sampler's parameters of a message.
fn params(sampling: Sampling) -> Result<SamplingParams, String> {
    let Sampling { temperature, top_k, top_p, min_p, seed } = sampling;
    for (name, value, most) in
        [("temperature", temperature, 10.0), ("top_p", top_p, 1.0), ("min_p", min_p, 1.0)]
    {
        if !(0.0..=most).contains(&value) {
            return Err(format!("sampling.{name} is {value}: a number from 0 to {most} is expected"));
        }
    }
    Ok(SamplingParams {
        temperature,
        top_k: usize::try_from(top_k).ok().filter(|top_k| *top_k > 0),
        top_p: if top_p == 0.0 { 1.0 } else { top_p },
        min_p,
        seed,
    })
}

impl Ask {
    /// The question itself, the last message.
    pub fn question(&self) -> &str {
        self.prompt.last().map_or("", |(_, question)| question)
    }

    /// Puts what was said before between the system prompt and the question.
    pub fn recall(&mut self, said: Vec<(String, String)>) {
        let at = self.prompt.len().saturating_sub(1);
        self.prompt.splice(at..at, said);
    }

    /// The request for the worker, as of `arrived`.
    pub fn into_request(self, id: RequestId, arrived: Instant, events: Sender<Event>) -> Request {
        Request {
            id,
            prompt: Prompt::Chat(self.prompt),
            arrived,
            // A deadline beyond what the clock can count is as good as none.
            deadline: self.deadline.and_then(|deadline| arrived.checked_add(deadline)),
            class: self.class,
            max_tokens: self.max_tokens,
            sampling: self.sampling,
            stop: self.stop,
            form: self.form,
            events,
            admission: None,
        }
    }
}

/// The reply to what no worker ever saw or finished.
pub(super) fn refusal(status: Status, reason: String, arrived: Instant, deadline: Option<Duration>) -> Reply {
    Reply {
        id: RequestId::next(),
        status,
        text: String::new(),
        closing: None,
        token_ids: Vec::new(),
        prompt_token_ids: Vec::new(),
        finish_reason: status.name(),
        reason: Some(reason),
        earliest_deadline: None,
        is_prompt_too_long: false,
        is_promised: false,
        speculation: None,
        timings: Timings { total: arrived.elapsed(), deadline, ..Timings::default() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ros::message::RosDuration;

    fn defaults() -> AskDefaults {
        AskDefaults {
            system: "You are a robot.".to_owned(),
            deadline: Some(Duration::from_millis(300)),
            ..AskDefaults::default()
        }
    }

    fn message(prompt: &str) -> Question {
        Question { prompt: prompt.to_owned(), ..Question::default() }
    }

    #[test]
    fn a_bare_sentence_gets_the_nodes_defaults() {
        let ask = defaults().complete(message("go home")).unwrap();
        let pair = |role: &str, text: &str| (role.to_owned(), text.to_owned());
        assert_eq!(ask.prompt, [pair("system", "You are a robot."), pair("user", "go home")]);
        assert_eq!((ask.deadline, ask.max_tokens), (Some(Duration::from_millis(300)), None));
    }

    #[test]
    fn what_a_message_says_wins_over_the_defaults() {
        let said = Question {
            system: "s".to_owned(),
            deadline: RosDuration { sec: 2, nanosec: 0 },
            max_tokens: 9,
            ..message("p")
        };
        let ask = defaults().complete(said).unwrap();
        assert_eq!(
            (ask.prompt[0].1.as_str(), ask.deadline, ask.max_tokens),
            ("s", Some(Duration::from_secs(2)), Some(9))
        );
    }

    #[test]
    fn no_system_prompt_anywhere_means_no_system_message() {
        assert_eq!(AskDefaults::default().complete(message("p")).unwrap().prompt.len(), 1);
    }

    #[test]
    fn bad_demands_are_refused_in_words() {
        let negative = Question { deadline: RosDuration { sec: -1, nanosec: 0 }, ..message("p") };
        let overfull = Question { deadline: RosDuration { sec: 0, nanosec: 2_000_000_000 }, ..message("p") };
        let long = message(&"x".repeat(64 * 1024));
        for (bad, word) in
            [(message(" \n"), "empty"), (negative, "negative"), (overfull, "negative"), (long, "bytes")]
        {
            let reason = defaults().complete(bad).unwrap_err();
            assert!(reason.contains(word), "{reason}");
        }
    }

    #[test]
    fn the_deadline_is_absolute_from_arrival_and_never_overflows() {
        let (events, _keep) = crossbeam_channel::bounded(1);
        let arrived = Instant::now();
        let ask = defaults().complete(message("p")).unwrap();
        let request = ask.clone().into_request(RequestId::next(), arrived, events.clone());
        assert_eq!(request.deadline, Some(arrived + Duration::from_millis(300)));
        let far = Ask { deadline: Some(Duration::MAX), ..ask };
        assert_eq!(far.into_request(RequestId::next(), arrived, events).deadline, None);
    }

    #[test]
    fn the_class_follows_from_the_deadline_unless_it_is_named() {
        let class = |priority_class: &str, sec: i32| {
            let said = Question {
                priority_class: priority_class.to_owned(),
                deadline: RosDuration { sec, nanosec: 0 },
                ..message("p")
            };
            defaults().complete(said).map(|ask| (ask.class, ask.deadline.is_some()))
        };
        assert_eq!(class("", 0), Ok((Class::Interactive, true)));
        assert_eq!(class("", 1), Ok((Class::Control, true)));
        assert_eq!(class("control", 0), Ok((Class::Control, true)));
        assert_eq!(class("interactive", 1), Ok((Class::Interactive, true)));
        assert_eq!(class("background", 0), Ok((Class::Background, false)));
        for (name, sec, word) in [("background", 1, "leave one"), ("urgent", 0, "\"urgent\"")] {
            assert!(class(name, sec).unwrap_err().contains(word));
        }
        let said = Question { priority_class: "control".to_owned(), ..message("p") };
        assert!(AskDefaults::default().complete(said).unwrap_err().contains("name one"));
    }

    #[test]
    fn a_conversation_ends_with_what_to_answer() {
        let chat = |roles: &[&str]| Question {
            messages: roles
                .iter()
                .map(|role| ChatMessage { role: (*role).to_owned(), content: format!("{role} says") })
                .collect(),
            ..Question::default()
        };
        let roles = |ask: Ask| ask.prompt.into_iter().map(|(role, _)| role).collect::<Vec<_>>();
        let ask = defaults().complete(chat(&["user", "assistant", "user"])).unwrap();
        assert_eq!(roles(ask), ["system", "user", "assistant", "user"]);
        let ask = defaults().complete(chat(&["system", "user"])).unwrap();
        assert_eq!(roles(ask), ["system", "user"], "its own system prompt wins");
        for (bad, word) in [
            (chat(&["user", "assistant"]), "user is expected"),
            (chat(&["robot", "user"]), "\"robot\""),
            (Question { prompt: "p".to_owned(), ..chat(&["user"]) }, "one of them"),
            (Question { session: "s".to_owned(), ..chat(&["user"]) }, "session"),
        ] {
            let reason = defaults().complete(bad).unwrap_err();
            assert!(reason.contains(word), "{reason}");
        }
    }

    #[test]
    fn sampling_names_and_stops_are_checked() {
        let sampling = |sampling: Sampling| Question { sampling: Some(sampling), ..message("p") };
        let ask =
            defaults().complete(sampling(Sampling { temperature: 0.5, ..Sampling::default() })).unwrap();
        let expected = SamplingParams { temperature: 0.5, ..SamplingParams::default() };
        assert_eq!(ask.sampling, Some(expected));
        for (bad, word) in [
            (sampling(Sampling { temperature: -0.1, ..Sampling::default() }), "temperature"),
            (sampling(Sampling { top_p: f32::NAN, ..Sampling::default() }), "top_p"),
            (Question { request_id: "x".repeat(129), ..message("p") }, "request_id has 129 bytes"),
            (Question { session: "a\nb".to_owned(), ..message("p") }, "session"),
            (Question { stop: vec![String::new()], ..message("p") }, "stop"),
        ] {
            let reason = defaults().complete(bad).unwrap_err();
            assert!(reason.contains(word), "{reason}");
        }
    }
}
