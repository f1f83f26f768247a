//! What TensorRT says: its log and its error reports, until a failed call asks what it was.
//!
//! TensorRT keeps the first logger a process gives it, for all of its objects and threads, so there is one. Error recorders are told apart by
//! an owner's number: a report is of the plan or the build it happened in. A line of the log is of whoever failed meanwhile.
#![expect(unsafe_code, reason = "strings from TensorRT")]

use std::{
    collections::{HashSet, VecDeque},
    ffi::{CStr, c_char, c_void},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use crate::TensorRtError;

/// Errors that are remembered; an error that is older than as many others has no one who asks for it.
const MAX_ERRORS: usize = 64;
/// Warnings of a build that are kept, and warnings that are known not to be new.
const MAX_WARNINGS: usize = 256;
/// Of one message.
const MAX_TEXT_BYTES: usize = 2000;
/// Messages that one error tells.
const MAX_TOLD: usize = 6;
/// `nvinfer1::ErrorCode::kFAILED_ALLOCATION`.
const FAILED_ALLOCATION: i32 = 5;
/// Owner of what came through the logger.
const LOG: u64 = 0;

static JOURNAL: Mutex<Journal> = Mutex::new(Journal::new());
/// Errors so far: read without the lock, as every call does first.
static NUM_ERRORS: AtomicU64 = AtomicU64::new(0);
static NEXT_OWNER: AtomicU64 = AtomicU64::new(LOG + 1);

struct Journal {
    errors: VecDeque<Entry>,
    /// Of builds that go on.
    builds: Vec<(u64, Vec<String>)>,
    /// Warnings that were logged before: some come with every step.
    known_warnings: Option<HashSet<String>>,
}

struct Entry {
    number: u64,
    owner: u64,
    is_allocation: bool,
    text: String,
}

impl Journal {
    const fn new() -> Self {
        Self { errors: VecDeque::new(), builds: Vec::new(), known_warnings: None }
    }

    fn lock() -> MutexGuard<'static, Self> {
        // A journal is whole between any two of its changes.
        JOURNAL.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note_error(&mut self, owner: u64, is_allocation: bool, text: String) {
        let number = NUM_ERRORS.fetch_add(1, Ordering::Relaxed);
        if self.errors.len() == MAX_ERRORS {
            self.errors.pop_front();
        }
        self.errors.push_back(Entry { number, owner, is_allocation, text });
    }

    /// Notes a warning; whether it is to be shown.
    fn note_warning(&mut self, text: &str) -> bool {
        for (_, warnings) in &mut self.builds {
            if warnings.len() < MAX_WARNINGS && !warnings.iter().any(|known| known == text) {
                warnings.push(text.to_owned());
            }
        }
        let known = self.known_warnings.get_or_insert_default();
        let is_new = known.len() < MAX_WARNINGS && known.insert(text.to_owned());
        is_new && self.builds.is_empty()
    }
}

/// A number for whose errors are told apart.
pub(crate) fn new_owner() -> u64 {
    NEXT_OWNER.fetch_add(1, Ordering::Relaxed)
}

/// What is said from here on. Begun before a call of TensorRT's, at no cost; asked when it failed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Watch {
    since: u64,
    owner: u64,
}

impl Watch {
    pub fn begin(owner: u64) -> Self {
        Self { since: NUM_ERRORS.load(Ordering::Relaxed), owner }
    }

    /// Whether an error was reported to the owner: how calls without a result fail.
    pub fn has_failed(self) -> bool {
        NUM_ERRORS.load(Ordering::Relaxed) != self.since
            && Journal::lock()
                .errors
                .iter()
                .any(|entry| entry.number >= self.since && entry.owner == self.owner)
    }

    /// The error of `call`, with what was said; `facts` go before it.
    pub fn error(self, call: &'static str, facts: &str) -> TensorRtError {
        let mut told: Vec<(String, bool)> = Vec::new();
        let journal = Journal::lock();
        // The recorder and the log often say the same, one of them with more about where.
        for entry in journal.errors.iter().filter(|entry| entry.number >= self.since) {
            if entry.owner != self.owner && entry.owner != LOG {
                continue;
            }
            if let Some((_, known)) = told.iter_mut().find(|(known, _)| known.contains(&entry.text)) {
                *known |= entry.is_allocation;
                continue;
            }
            let mut is_allocation = entry.is_allocation;
            told.retain(|(known, was_allocation)| {
                let is_part = entry.text.contains(known.as_str());
                is_allocation |= is_part && *was_allocation;
                !is_part
            });
            told.push((entry.text.clone(), is_allocation));
        }
        drop(journal);
        // The last are what ended it: a build may have gone on after the others, as where a kernel was too large to be tried.
        let num_before = told.len().saturating_sub(MAX_TOLD);
        let told = told.split_off(num_before);
        let is_allocation = told.iter().any(|(_, is_allocation)| *is_allocation);
        let mut told: Vec<String> = told.into_iter().map(|(text, _)| text).collect();
        if num_before > 0 {
            told.insert(0, format!("after {num_before} more"));
        }
        if !facts.is_empty() {
            told.insert(0, facts.to_owned());
        }
        if told.is_empty() {
            told.push("it gave no reason".to_owned());
        }
        let reason = told.join("; ");
        if is_allocation {
            TensorRtError::OutOfMemory { call, reason }
        } else {
            TensorRtError::Failed { call, reason }
        }
    }
}

/// Keeps the warnings of a build until it is asked for them, and from the terminal: whoever builds shows them.
#[derive(Debug)]
pub(crate) struct Warnings {
    id: u64,
}

impl Warnings {
    pub fn begin() -> Self {
        let id = new_owner();
        Journal::lock().builds.push((id, Vec::new()));
        Self { id }
    }

    pub fn take(self) -> Vec<String> {
        self.end()
    }

    fn end(&self) -> Vec<String> {
        let mut journal = Journal::lock();
        let found = journal.builds.iter().position(|(id, _)| *id == self.id);
        found.map(|idx| journal.builds.swap_remove(idx).1).unwrap_or_default()
    }
}

impl Drop for Warnings {
    fn drop(&mut self) {
        self.end();
    }
}

/// TensorRT's log, from any of its threads.
pub(crate) extern "C" fn log(_user: *mut c_void, severity: i32, message: *const c_char) {
    // Nothing may unwind into TensorRT; a message lost is no harm.
    let _ = catch_unwind(AssertUnwindSafe(|| match severity {
        // Not shown: whoever called gets it in an error, or TensorRT went on without.
        ..=1 => {
            let text = plain(message);
            tracing::debug!(target: "tensorrt", "{text}");
            Journal::lock().note_error(LOG, tells_of_memory(&text), text);
        }
        2 => {
            let text = plain(message);
            if Journal::lock().note_warning(&text) {
                tracing::warn!(target: "tensorrt", "{text}");
            } else {
                tracing::debug!(target: "tensorrt", "{text}");
            }
        }
        3 if tracing::enabled!(target: "tensorrt", tracing::Level::DEBUG) => {
            tracing::debug!(target: "tensorrt", "{}", plain(message));
        }
        3 => {}
        _ if tracing::enabled!(target: "tensorrt", tracing::Level::TRACE) => {
            tracing::trace!(target: "tensorrt", "{}", plain(message));
        }
        _ => {}
    }));
}

/// An error recorder's report, from any of TensorRT's threads.
pub(crate) extern "C" fn report(owner: u64, code: i32, description: *const c_char) {
    let _ = catch_unwind(AssertUnwindSafe(|| {
        let text = plain(description);
        tracing::debug!(target: "tensorrt", code, "{text}");
        let is_allocation = code == FAILED_ALLOCATION || tells_of_memory(&text);
        Journal::lock().note_error(owner, is_allocation, text);
    }));
}

/// Whether a message is about memory that ran out: the log has no codes, and the recorder's is of the whole call.
fn tells_of_memory(text: &str) -> bool {
    let text = text.to_ascii_lowercase();
    ["out of memory", "outofmemory", "cudaerrormemoryallocation", "bad_alloc"]
        .iter()
        .any(|word| text.contains(word))
}

/// A message on one line, of a length that can be shown: it may quote names of the model's.
pub(crate) fn plain(message: *const c_char) -> String {
    if message.is_null() {
        return String::new();
    }
    // SAFETY: TensorRT's messages end with 0 and live for the call.
    let text = unsafe { CStr::from_ptr(message) }.to_string_lossy();
    let mut text: String =
        text.trim().chars().map(|char| if char.is_control() { ' ' } else { char }).collect();
    if text.len() > MAX_TEXT_BYTES {
        let end = (0..=MAX_TEXT_BYTES).rev().find(|&at| text.is_char_boundary(at));
        text.truncate(end.unwrap_or_default());
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use std::ffi::CString;

    use super::*;

    fn say(severity: i32, text: &str) {
        log(std::ptr::null_mut(), severity, CString::new(text).unwrap().as_ptr());
    }

    fn tell(owner: u64, code: i32, text: &str) {
        report(owner, code, CString::new(text).unwrap().as_ptr());
    }

    /// The journal is the process's: tests that say something to the log take turns.
    static TURN: Mutex<()> = Mutex::new(());

    #[test]
    fn an_error_has_what_was_said_since_once_and_in_its_longest_form() {
        let _turn = TURN.lock();
        let owner = new_owner();
        tell(owner, 4, "before");
        let watch = Watch::begin(owner);
        tell(owner, 4, "no kernel for node A");
        say(1, "[builder.cpp] no kernel for node A [build]");
        tell(new_owner(), 4, "another plan's");
        let error = watch.error("building", "model.onnx");
        assert_eq!(
            error.to_string(),
            "TensorRT: building failed: model.onnx; [builder.cpp] no kernel for node A [build]"
        );
    }

    #[test]
    fn memory_that_ran_out_is_an_error_of_its_own_by_code_and_by_words() {
        let _turn = TURN.lock();
        let owner = new_owner();
        let watch = Watch::begin(owner);
        tell(owner, FAILED_ALLOCATION, "requested 4096 bytes");
        say(1, "[allocator.cpp] requested 4096 bytes");
        assert!(matches!(watch.error("loading", ""), TensorRtError::OutOfMemory { .. }));
        let watch = Watch::begin(owner);
        say(1, "Error Code 2: OutOfMemory (Requested size was 4096 bytes.)");
        assert!(matches!(watch.error("loading", ""), TensorRtError::OutOfMemory { .. }));
        let watch = Watch::begin(owner);
        tell(owner, 3, "no such profile");
        assert!(matches!(watch.error("loading", ""), TensorRtError::Failed { .. }));
    }

    #[test]
    fn of_many_errors_the_last_are_told_and_say_whether_memory_ran_out() {
        let _turn = TURN.lock();
        let owner = new_owner();
        let watch = Watch::begin(owner);
        tell(owner, FAILED_ALLOCATION, "a kernel that was too large to be tried");
        for idx in 0..MAX_TOLD {
            tell(owner, 10, &format!("error {idx}"));
        }
        let error = watch.error("building", "");
        assert!(matches!(error, TensorRtError::Failed { .. }));
        let text = error.to_string();
        assert!(text.starts_with("TensorRT: building failed: after 1 more; error 0; error 1;"), "{text}");
    }

    #[test]
    fn silence_is_said_to_be_silence() {
        let _turn = TURN.lock();
        let watch = Watch::begin(new_owner());
        assert!(!watch.has_failed());
        assert_eq!(watch.error("loading", "").to_string(), "TensorRT: loading failed: it gave no reason");
    }

    #[test]
    fn a_call_without_a_result_has_failed_when_its_own_recorder_was_told() {
        let _turn = TURN.lock();
        let owner = new_owner();
        let watch = Watch::begin(owner);
        tell(new_owner(), 3, "another's");
        assert!(!watch.has_failed());
        tell(owner, 3, "too little scratch memory");
        assert!(watch.has_failed());
    }

    #[test]
    fn a_build_has_each_of_its_warnings_once() {
        let _turn = TURN.lock();
        say(2, "before");
        let warnings = Warnings::begin();
        for text in ["int64 is slow", "int64 is slow", "no\ttimings\n"] {
            say(2, text);
        }
        let expected = ["int64 is slow", "no timings"];
        assert_eq!(warnings.take(), expected);
        assert!(Journal::lock().builds.is_empty());
    }

    #[test]
    fn a_long_message_is_cut_between_two_characters() {
        let text = CString::new("ä".repeat(MAX_TEXT_BYTES)).unwrap();
        let text = plain(text.as_ptr());
        assert!(text.len() <= MAX_TEXT_BYTES + '…'.len_utf8(), "{}", text.len());
        assert!(text.ends_with('…'));
        assert_eq!(plain(std::ptr::null()), "");
    }
}
