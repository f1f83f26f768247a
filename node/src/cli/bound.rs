//! One answer in a demanded form, on the caller's own thread: prefill, decode, and the closing when the next step would be too late.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use takt_engine::{
    EngineError,
    backend::Backend,
    grammar::{Closing, ClosingPolicy, GrammarCompiler, GrammarSpec, Steering},
    kv::LaneId,
    sequence::{Finish, Sequence, SequenceLimits, SequenceOptions},
    step::StepPlan,
    text::{ChatOptions, Message, SpecialTokens, Text},
};

use super::{CliError, interrupt::Interrupt};
use crate::request::{Prompt, Reply, RequestId, Status, Timings};

const LANE: LaneId = LaneId(0);
/// Time kept for the closing and the reply.
const REPLY_MARGIN: Duration = Duration::from_micros(500);

/// What is asked.
pub(super) struct BoundAsk<'a> {
    pub prompt: Prompt,
    pub options: SequenceOptions,
    pub spec: &'a GrammarSpec,
    pub policy: ClosingPolicy,
    /// Time from now to the deadline.
    pub allowed: Option<Duration>,
}

/// What came of it.
pub(super) struct BoundReply {
    pub reply: Reply,
    /// What of the answer is not the model's, when something is not.
    pub closing: Option<Closing>,
}

/// Answers `ask`; `show` gets text as it comes. A form that is refused makes a rejected reply.
pub(super) fn answer(
    backend: &mut dyn Backend,
    text: Arc<Text>,
    ask: &BoundAsk<'_>,
    interrupt: &Interrupt,
    show: &mut dyn FnMut(&str),
) -> Result<BoundReply, CliError> {
    let arrived = Instant::now();
    let mut sequence = match prepare(backend, &text, ask) {
        Ok(sequence) => sequence,
        Err(error) => return Ok(rejected(&error, arrived.elapsed())),
    };
    let mut run = Run {
        backend,
        sequence: &mut sequence,
        // Beyond what the clock can count is as good as none.
        deadline: ask.allowed.and_then(|allowed| arrived.checked_add(allowed)),
        started: Instant::now(),
        first_token: None,
        longest_step: Duration::ZERO,
        num_decode_steps: 0,
    };
    let status = run.decode(interrupt, show)?;
    let (started, first_token) = (run.started, run.first_token);
    show(match status {
        Status::ClosedAtDeadline | Status::Cancelled => sequence.close(),
        _ => "",
    });
    let timings = Timings {
        queue: started - arrived,
        prefill: first_token.unwrap_or_else(Instant::now) - started,
        ttft: first_token.map(|at| at - arrived),
        total: arrived.elapsed(),
        deadline: ask.allowed,
    };
    Ok(BoundReply { reply: reply(&sequence, status, timings), closing: sequence.closing().cloned() })
}

fn prepare(backend: &dyn Backend, text: &Arc<Text>, ask: &BoundAsk<'_>) -> Result<Sequence, EngineError> {
    let limits = SequenceLimits::of(backend);
    let compiler = GrammarCompiler::new(text, limits.vocab_size, &ask.options.eos_token_ids)?;
    let grammar = compiler.compile(ask.spec, ask.policy)?;
    let tokens = match &ask.prompt {
        Prompt::Raw(prompt) => text.encode(prompt, SpecialTokens::Add)?,
        Prompt::Chat(turns) => {
            let messages: Vec<Message> =
                turns.iter().map(|(role, content)| Message::new(role, content)).collect();
            text.encode_chat(&messages, &ChatOptions::default())?
        }
    };
    Sequence::new(&tokens, &ask.options, limits, Some(text.stream_decoder()))?.bound_to(&grammar)
}

/// An answer being made.
struct Run<'a> {
    backend: &'a mut dyn Backend,
    sequence: &'a mut Sequence,
    deadline: Option<Instant>,
    started: Instant,
    first_token: Option<Instant>,
    longest_step: Duration,
    num_decode_steps: usize,
}

impl Run<'_> {
    /// Runs steps until the answer ends, the next one would end too late, or the user wants no more.
    fn decode(&mut self, interrupt: &Interrupt, show: &mut dyn FnMut(&str)) -> Result<Status, CliError> {
        let max_step_tokens = self.backend.capabilities().max_step_tokens;
        let mut plan = StepPlan::with_capacity(max_step_tokens, 1);
        while !self.sequence.pending().is_empty() {
            if interrupt.is_raised() {
                return Ok(Status::Cancelled);
            }
            let Some(slack) = self.slack() else { return Ok(Status::ClosedAtDeadline) };
            self.steer(slack);
            let begun = Instant::now();
            plan.clear();
            let num_tokens = self.sequence.push_to(&mut plan, LANE, max_step_tokens);
            let output = self.backend.run_step(&plan)?;
            self.sequence.commit(num_tokens)?;
            if self.sequence.awaits_logits() {
                let logits = output
                    .last_logits(0)
                    .ok_or_else(|| EngineError::Backend("no logits came back".into()))?;
                show(self.sequence.advance(logits)?.text);
                self.first_token.get_or_insert_with(Instant::now);
            }
            self.note_step(begun.elapsed());
        }
        Ok(Status::Complete)
    }

    /// A prefill step says little about decode steps: the first decode step replaces what it left.
    fn note_step(&mut self, took: Duration) {
        let is_decode = self.first_token.is_some();
        self.num_decode_steps += usize::from(is_decode);
        self.longest_step = if self.num_decode_steps == 2 { took } else { self.longest_step.max(took) };
    }

    /// Time left after one more step as long as the longest so far; `None` when that step would be late.
    fn slack(&self) -> Option<Duration> {
        let Some(deadline) = self.deadline else { return Some(Duration::MAX) };
        deadline.checked_duration_since(Instant::now() + self.longest_step + REPLY_MARGIN)
    }

    /// Leads towards the end once the closing's bytes, taken for tokens, would fill the time left; lets nothing new begin from twice that on.
    fn steer(&mut self, slack: Duration) {
        if self.deadline.is_none() || self.first_token.is_none() {
            return;
        }
        let to_close = self.longest_step * u32::try_from(self.sequence.closing_len()).unwrap_or(u32::MAX);
        self.sequence.steer(if slack < to_close {
            Steering::Shorten
        } else if slack < to_close * 2 {
            Steering::Hold
        } else {
            Steering::Free
        });
    }
}

fn reply(sequence: &Sequence, status: Status, timings: Timings) -> Reply {
    let finish_reason = match status {
        Status::ClosedAtDeadline => "deadline",
        Status::Cancelled => "cancelled",
        _ => sequence.finish().map_or("stop", Finish::reason),
    };
    Reply {
        id: RequestId::next(),
        status,
        text: sequence.text().to_owned(),
        token_ids: sequence.token_ids().to_vec(),
        prompt_token_ids: sequence.prompt_token_ids().to_vec(),
        finish_reason,
        reason: None,
        earliest_deadline: None,
        is_promised: false,
        timings,
    }
}

fn rejected(error: &EngineError, total: Duration) -> BoundReply {
    let reply = Reply {
        id: RequestId::next(),
        status: Status::Rejected,
        text: String::new(),
        token_ids: Vec::new(),
        prompt_token_ids: Vec::new(),
        finish_reason: "rejected",
        reason: Some(error.to_string()),
        earliest_deadline: None,
        is_promised: false,
        timings: Timings { queue: total, total, ..Timings::default() },
    };
    BoundReply { reply, closing: None }
}
