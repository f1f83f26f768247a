//! From a ROS 2 message to a [`Request`], or to the reason why not.

use std::time::{Duration, Instant};

use crossbeam_channel::Sender;

use super::{form::form_of, message::AskRequest};
use crate::{
    request::{Event, Form, Prompt, Reply, Request, RequestId, Status, Timings},
    scheduler::class::Class,
};

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
    /// The form of answers to plain sentences; `None` for any text. Requests to the service say it themselves.
    pub form: Option<Form>,
    /// Longest prompt and system prompt together.
    pub max_prompt_bytes: usize,
    /// Requests being answered at a time; more are rejected.
    pub max_in_flight: usize,
}

impl Default for AskDefaults {
    fn default() -> Self {
        Self {
            system: String::new(),
            deadline: None,
            class: Class::Interactive,
            max_tokens: None,
            form: None,
            max_prompt_bytes: 64 * 1024,
            max_in_flight: 64,
        }
    }
}

/// A message whose demands are checked.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Ask {
    prompt: Vec<(String, String)>,
    /// From arrival.
    pub deadline: Option<Duration>,
    class: Class,
    max_tokens: Option<usize>,
    pub form: Option<Form>,
}

impl AskDefaults {
    /// A plain sentence with everything else by default.
    ///
    /// # Errors
    /// As [`Self::complete`].
    pub(super) fn sentence(&self, sentence: &str) -> Result<Ask, String> {
        let ask = self.complete(AskRequest { prompt: sentence.to_owned(), ..AskRequest::default() })?;
        Ok(Ask { form: self.form.clone(), ..ask })
    }

    /// Checks `message` and fills in what it leaves open.
    ///
    /// # Errors
    /// What was wrong and what to do, for the reply.
    pub(super) fn complete(&self, message: AskRequest) -> Result<Ask, String> {
        if message.prompt.trim().is_empty() {
            return Err("the prompt is empty: send the text to answer".to_owned());
        }
        let form = form_of(&message)?;
        let system = if message.system.is_empty() { self.system.clone() } else { message.system };
        let num_bytes = message.prompt.len().saturating_add(system.len());
        if num_bytes > self.max_prompt_bytes {
            let limit = self.max_prompt_bytes;
            return Err(format!(
                "the prompt and its system prompt have {num_bytes} bytes, {limit} are allowed"
            ));
        }
        let asked = message.deadline.to_std().ok_or_else(|| {
            let (sec, nanosec) = (message.deadline.sec, message.deadline.nanosec);
            format!(
                "the deadline of {sec} s + {nanosec} ns is negative or has a second or more of nanoseconds: \
                 send the time from now, or zero for the node's default"
            )
        })?;
        let (deadline, class) =
            if asked.is_zero() { (self.deadline, self.class) } else { (Some(asked), Class::Control) };
        let max_tokens = match message.max_tokens {
            0 => self.max_tokens,
            max => usize::try_from(max).ok(),
        };
        let mut prompt = Vec::with_capacity(2);
        if !system.is_empty() {
            prompt.push(("system".to_owned(), system));
        }
        prompt.push(("user".to_owned(), message.prompt));
        Ok(Ask { prompt, deadline, class, max_tokens, form })
    }
}

impl Ask {
    /// The request for the worker, as of `arrived`.
    pub fn into_request(self, arrived: Instant, events: Sender<Event>) -> Request {
        Request {
            id: RequestId::next(),
            prompt: Prompt::Chat(self.prompt),
            arrived,
            // A deadline beyond what the clock can count is as good as none.
            deadline: self.deadline.and_then(|deadline| arrived.checked_add(deadline)),
            class: self.class,
            max_tokens: self.max_tokens,
            sampling: None,
            stop: Vec::new(),
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

    fn message(prompt: &str) -> AskRequest {
        AskRequest { prompt: prompt.to_owned(), ..AskRequest::default() }
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
        let said = AskRequest {
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
        let negative = AskRequest { deadline: RosDuration { sec: -1, nanosec: 0 }, ..message("p") };
        let overfull =
            AskRequest { deadline: RosDuration { sec: 0, nanosec: 2_000_000_000 }, ..message("p") };
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
        let request = defaults().complete(message("p")).unwrap().into_request(arrived, events.clone());
        assert_eq!(request.deadline, Some(arrived + Duration::from_millis(300)));
        let far = Ask {
            prompt: Vec::new(),
            deadline: Some(Duration::MAX),
            class: Class::Control,
            max_tokens: None,
            form: None,
        };
        assert_eq!(far.into_request(arrived, events).deadline, None);
    }
}
