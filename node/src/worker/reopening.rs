//! An engine that failed, opened again: at once, and for a while where there is no memory for it.
//!
//! On boards whose memory all share, what an engine gave back may be somebody else's by the time it is asked for again, and a minute later free:
//! a camera's pipeline that started, a model that another process loads. So a lack of memory, and nothing else, is waited out, with pauses in
//! which every request is answered at once.

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use crossbeam_channel::{after, select_biased};
use takt_engine::EngineError;

use super::{
    WorkerCore, WorkerOptions,
    opening::{Facts, Leftover, Opener, open},
    thread::{Channels, OPEN_ALLOWANCE, answer},
};
use crate::{
    clock::{Clock, MonotonicClock},
    request::Status,
};

/// How long after the first try the second begins; each pause is twice the one before, up to [`MAX_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// The longest pause between two tries: opening costs the processor and the disk something, and nobody waits for it meanwhile.
const MAX_PAUSE: Duration = Duration::from_secs(5);

/// Opens the engine again that failed for `reason`. While there is no memory for it, it is tried again for `options.memory_patience`, and requests
/// are answered `rejected` with the reason meanwhile; those that come during a try wait for what comes of it.
///
/// # Errors
/// Those of [`open`]; a lack of memory only when patience is at its end.
pub(super) fn reopen(
    opener: &mut Opener,
    options: &WorkerOptions,
    channels: &Channels,
    leftover: &Leftover,
    reason: &str,
) -> Result<(WorkerCore, Facts), EngineError> {
    let (started, mut pause) = (MonotonicClock.now(), FIRST_PAUSE);
    leftover.desk().note_no_engine(Some(reason.to_owned()));
    loop {
        channels.beat(OPEN_ALLOWANCE);
        let error = match open(opener, options, || channels.are_open(), Some(leftover)) {
            Err(error) if error.is_capacity() => error,
            Ok(opened) => {
                leftover.desk().note_no_engine(None);
                return Ok(opened);
            }
            Err(error) => return Err(error),
        };
        let now = MonotonicClock.now();
        let patience = options.memory_patience.saturating_sub(now.saturating_duration_since(started));
        if pause > patience {
            return Err(error);
        }
        tracing::warn!(
            "there is no memory to open the engine again: {error}; the next try is in {:.2} s, the last within {:.0} s",
            pause.as_secs_f64(),
            patience.as_secs_f64()
        );
        let told = format!(
            "{reason}; there is no memory to open the engine again, which is tried every few seconds: {error}"
        );
        leftover.desk().note_no_engine(Some(told.clone()));
        if !refuse_until(now + pause, channels, &told) {
            return Err(EngineError::Interrupted);
        }
        pause = (pause * 2).min(MAX_PAUSE);
    }
}

/// Answers whoever asks, and has asked, with `reason` until `end`; false for shutdown.
fn refuse_until(end: Instant, channels: &Channels, reason: &str) -> bool {
    let mut cancelled = HashSet::new();
    let ended = after(end.saturating_duration_since(MonotonicClock.now()));
    loop {
        select_biased! {
            recv(channels.stop) -> _ => return false,
            recv(ended) -> _ => return true, // also where requests never cease
            recv(channels.requests) -> request => match request {
                Ok(request) => {
                    // Of who asked before this pause, most likely: whoever asks now is answered before it can think better of it.
                    cancelled.extend(channels.cancels.try_iter());
                    match cancelled.remove(&request.id) {
                        true => answer(&request, Status::Cancelled, None),
                        false => answer(&request, Status::Rejected, Some(reason)),
                    }
                }
                Err(_) => return false, // every sender is gone
            },
        }
    }
}
