//! Whether a request is let in. Today only what can never be served is refused; the full test, from the measured cost
//! table (`now + rest of section + Σ mandatory cost of all with an earlier deadline ≤ deadline`), takes its place here.

use std::time::{Duration, Instant};

/// What is known about a request when it arrives.
#[derive(Debug, Clone, Copy)]
pub struct Candidate {
    /// Tokens of its prompt.
    pub prompt_len: usize,
    /// Its absolute deadline.
    pub deadline: Option<Instant>,
    /// Time from its arrival to its deadline, for the message.
    pub allowed: Option<Duration>,
}

/// Why a request is refused; the text says what to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The deadline was not in the future when the request arrived.
    #[error("deadline of {allowed_ms} ms has passed on arrival: give the request time to run")]
    DeadlinePassed {
        /// Milliseconds from arrival to the deadline, 0 or less shown as 0.
        allowed_ms: u64,
    },
    /// The prompt leaves no room for an answer.
    #[error(
        "prompt of {prompt_len} tokens does not fit a lane of {lane_capacity} (one token must be left for the answer): \
         shorten it, or raise `max_context`"
    )]
    PromptTooLong {
        /// Tokens of the prompt.
        prompt_len: usize,
        /// Tokens of a lane.
        lane_capacity: usize,
    },
    /// The prompt has no tokens, so there is nothing to continue.
    #[error("the prompt is empty: there is nothing to answer")]
    EmptyPrompt,
    /// Too many wait already.
    #[error("queue full: {queue_len} requests wait already; ask again later, or raise `queue_len`")]
    QueueFull {
        /// Requests waiting.
        queue_len: usize,
    },
}

/// Lets `candidate` in or says why not.
///
/// # Errors
/// The [`Refusal`].
pub fn admit(candidate: &Candidate, now: Instant, lane_capacity: usize) -> Result<(), Refusal> {
    if candidate.deadline.is_some_and(|deadline| deadline <= now) {
        let allowed_ms = u64::try_from(candidate.allowed.unwrap_or_default().as_millis()).unwrap_or(u64::MAX);
        return Err(Refusal::DeadlinePassed { allowed_ms });
    }
    if candidate.prompt_len == 0 {
        return Err(Refusal::EmptyPrompt);
    }
    if candidate.prompt_len >= lane_capacity {
        return Err(Refusal::PromptTooLong { prompt_len: candidate.prompt_len, lane_capacity });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(prompt_len: usize, deadline: Option<Instant>) -> Candidate {
        Candidate { prompt_len, deadline, allowed: None }
    }

    #[test]
    fn a_deadline_of_zero_or_in_the_past_is_refused() {
        let now = Instant::now();
        for deadline in [now, now - Duration::from_millis(5)] {
            let refusal = admit(&candidate(4, Some(deadline)), now, 16).unwrap_err();
            assert!(matches!(refusal, Refusal::DeadlinePassed { .. }), "{refusal}");
        }
        assert_eq!(admit(&candidate(4, Some(now + Duration::from_millis(1))), now, 16), Ok(()));
    }

    #[test]
    fn a_prompt_must_leave_room_for_one_token() {
        let now = Instant::now();
        assert_eq!(admit(&candidate(15, None), now, 16), Ok(()));
        assert_eq!(
            admit(&candidate(16, None), now, 16),
            Err(Refusal::PromptTooLong { prompt_len: 16, lane_capacity: 16 })
        );
        assert_eq!(admit(&candidate(0, None), now, 16), Err(Refusal::EmptyPrompt));
    }
}
