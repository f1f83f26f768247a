//! Perception as a second process: this program, started again, told over its standard input when to compute frames and saying over its standard
//! output what they took.
//!
//! ```text
//! → run 60 10000       frames on 60 beats a second for 10,000 ms
//! ← frames 600 0       how many there were, beats missed; then what each took, in nanoseconds, a line each
//! ```
//! When its input ends, because the first process wishes or has died, it ends within a frame.

use std::{
    io::{BufRead, BufReader, Read, Write},
    path::PathBuf,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, unbounded};
use takt_engine::{EngineError, backend::cuda::GpuOptions};

use super::{
    LOOK,
    chain::{Chain, Frames, MAX_LINKS},
};

/// What the second process says when it is ready.
const READY: &str = "ready";
/// How long it may take to end by itself.
const END_ALLOWANCE: Duration = Duration::from_secs(5);
/// Most frames it may say: a day's at 100 Hz.
pub const MAX_FRAMES: usize = 10_000_000;

/// How this program is started as the second process.
#[derive(Debug, Clone)]
pub struct Program {
    /// The program.
    pub path: PathBuf,
    /// Its arguments, before the number of links.
    pub args: Vec<String>,
}

/// The second process. Dropping it ends it.
#[derive(Debug)]
pub struct SecondProcess {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl SecondProcess {
    /// Starts it, with frames of `num_links` links, and waits until its device is open.
    ///
    /// # Errors
    /// [`EngineError::Backend`] when it cannot be started or ends at once; it says why on standard error.
    pub fn start(program: &Program, num_links: u32) -> Result<Self, EngineError> {
        let failed = |error: std::io::Error| {
            EngineError::Backend(format!("{} cannot be started: {error}", program.path.display()))
        };
        let mut command = Command::new(&program.path);
        command.args(&program.args).arg(num_links.to_string());
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().map_err(failed)?;
        let (input, output) = (child.stdin.take(), child.stdout.take());
        let Some(output) = output else { return Err(broken("has no output")) };
        let mut process = Self { child, input, output: BufReader::new(output) };
        match line(&mut process.output)?.as_str() {
            READY => Ok(process),
            other => Err(broken(&format!("said {other:?}, expected {READY:?}"))),
        }
    }

    /// Its process number.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Frames at `hz` for `length`. When `cancelled` meanwhile, the process is told to end, and those so far are returned, or that it ended.
    ///
    /// # Errors
    /// [`EngineError::Backend`] when it has ended.
    pub fn run(&mut self, hz: u32, length: Duration, cancelled: &AtomicBool) -> Result<Frames, EngineError> {
        let Self { input: slot, output, .. } = self;
        let Some(input) = slot else { return Err(broken("was ended")) };
        let told = writeln!(input, "run {hz} {}", length.as_millis()).and_then(|()| input.flush());
        told.map_err(|error| broken(&format!("hears nothing any more ({error})")))?;
        let is_answered = AtomicBool::new(false);
        thread::scope(|scope| {
            // The answer is waited for without a time limit: somebody else looks at the flag, and ends the input.
            let watch = scope.spawn(|| {
                while !is_answered.load(Ordering::Relaxed) {
                    if cancelled.load(Ordering::Relaxed) {
                        slot.take();
                        return;
                    }
                    thread::park_timeout(LOOK);
                }
            });
            let found = answer(output);
            is_answered.store(true, Ordering::Relaxed);
            watch.thread().unpark();
            found
        })
    }
}

/// What it says to `run`.
fn answer(output: &mut impl BufRead) -> Result<Frames, EngineError> {
    let head = line(output)?;
    let (num_frames, num_missed) =
        parse_head(&head).ok_or_else(|| broken(&format!("said {head:?}, expected frames N MISSED")))?;
    let mut times = Vec::with_capacity(num_frames);
    for _ in 0..num_frames {
        let line = line(output)?;
        let ns = line.parse().map_err(|_| broken(&format!("said {line:?}, expected nanoseconds")))?;
        times.push(Duration::from_nanos(ns));
    }
    Ok(Frames { times, num_missed })
}

fn line(output: &mut impl BufRead) -> Result<String, EngineError> {
    let mut line = String::new();
    match output.read_line(&mut line) {
        Ok(0) => Err(broken("ended; it said why on standard error")),
        Ok(_) => Ok(line.trim_end().to_owned()),
        Err(error) => Err(broken(&format!("cannot be heard: {error}"))),
    }
}

fn parse_head(line: &str) -> Option<(usize, usize)> {
    let mut words = line.strip_prefix("frames ")?.split(' ');
    let (frames, missed) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
    (frames <= MAX_FRAMES && words.next().is_none()).then_some((frames, missed))
}

fn broken(fact: &str) -> EngineError {
    EngineError::Backend(format!("the second process {fact}"))
}

impl Drop for SecondProcess {
    fn drop(&mut self) {
        self.input.take(); // its end
        let started = Instant::now();
        while started.elapsed() < END_ALLOWANCE {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            thread::sleep(Duration::from_millis(5));
        }
        // It hangs, with the device perhaps.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The second process itself: computes frames of `num_links` links as `input` says, until it ends.
///
/// # Errors
/// [`EngineError::Unsupported`] without a device, [`EngineError::Input`] for a line that is none, [`EngineError::Backend`] when the device
/// fails.
pub fn serve(
    gpu: &GpuOptions,
    num_links: u32,
    input: impl Read + Send + 'static,
    output: &mut dyn Write,
) -> Result<(), EngineError> {
    if !(1..=MAX_LINKS).contains(&num_links) {
        return Err(EngineError::Input(format!("{num_links} links, expected 1..={MAX_LINKS}")));
    }
    let mut chain = Chain::open(gpu)?.with_links(num_links);
    let has_ended = Arc::new(AtomicBool::new(false));
    let lines = lines(input, Arc::clone(&has_ended));
    // Whoever does not listen any more has ended, too.
    let said = |result: std::io::Result<()>| result.is_ok();
    if !said(writeln!(output, "{READY}").and_then(|()| output.flush())) {
        return Ok(());
    }
    for line in lines {
        let (hz, length) = parse_run(&line)
            .ok_or_else(|| EngineError::Input(format!("{line:?}, expected run HZ MILLISECONDS")))?;
        let frames = chain.run(hz, length, &has_ended)?;
        let mut text = format!("frames {} {}\n", frames.times.len(), frames.num_missed);
        frames.times.iter().for_each(|time| text += &format!("{}\n", time.as_nanos()));
        if !said(output.write_all(text.as_bytes()).and_then(|()| output.flush())) {
            return Ok(());
        }
    }
    Ok(())
}

fn parse_run(line: &str) -> Option<(u32, Duration)> {
    let mut words = line.strip_prefix("run ")?.split(' ');
    let (hz, ms) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
    (words.next().is_none() && (1..=10_000).contains(&hz)).then_some((hz, Duration::from_millis(ms)))
}

/// Lines of `input`, read on a thread of its own so that its end is noticed while frames are computed.
fn lines(input: impl Read + Send + 'static, has_ended: Arc<AtomicBool>) -> Receiver<String> {
    let (sender, receiver) = unbounded();
    thread::spawn(move || {
        for line in BufReader::new(input).lines() {
            let Ok(line) = line else { break };
            if sender.send(line).is_err() {
                break;
            }
        }
        has_ended.store(true, Ordering::Relaxed);
    });
    receiver
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_understood_and_nothing_else() {
        assert_eq!(parse_run("run 60 2500"), Some((60, Duration::from_millis(2500))));
        assert_eq!(parse_head("frames 12 3"), Some((12, 3)));
        for wrong in ["run 0 5", "run 60", "run 60 5 5", "walk 60 5", "run -1 5", "", "run 60 x"] {
            assert_eq!(parse_run(wrong), None, "{wrong:?}");
        }
        for wrong in ["frames", "frames 1", "frames 1 2 3", "frames 99999999999 0", "Frames 1 2"] {
            assert_eq!(parse_head(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn the_end_of_the_input_is_noticed_while_nobody_reads_it() {
        let has_ended = Arc::new(AtomicBool::new(false));
        let lines = lines(&b"run 1 2\nrun 3 4"[..], Arc::clone(&has_ended));
        assert_eq!(lines.iter().collect::<Vec<_>>(), ["run 1 2", "run 3 4"]);
        assert!(has_ended.load(Ordering::Relaxed));
    }

    #[test]
    fn a_process_that_is_waited_for_is_ended_when_nobody_wants_its_answer() {
        // It answers when its input ends, and not before.
        let script = "echo ready; read run; cat >/dev/null; echo frames 1 0; echo 5";
        let program = Program { path: "sh".into(), args: vec!["-c".into(), script.into()] };
        let mut process = SecondProcess::start(&program, 1).unwrap();
        let cancelled = AtomicBool::new(false);
        let frames = thread::scope(|scope| {
            let running = scope.spawn(|| process.run(30, Duration::from_secs(3600), &cancelled));
            cancelled.store(true, Ordering::Relaxed);
            running.join().unwrap()
        });
        assert_eq!(frames.unwrap().times, [Duration::from_nanos(5)]);
        let error = process.run(30, Duration::from_secs(1), &cancelled).unwrap_err().to_string();
        assert!(error.contains("was ended"), "{error}");
    }

    #[test]
    fn a_program_that_is_none_or_says_something_else_is_told_of() {
        let program = |path: &str, args: &[&str]| Program {
            path: path.into(),
            args: args.iter().map(|&arg| arg.to_owned()).collect(),
        };
        let error = SecondProcess::start(&program("/no/such/program", &[]), 1).unwrap_err().to_string();
        assert!(error.contains("/no/such/program cannot be started"), "{error}");
        let error = SecondProcess::start(&program("echo", &["hello"]), 7).unwrap_err().to_string();
        assert!(error.contains("\"hello 7\""), "{error}");
        let error = SecondProcess::start(&program("true", &[]), 1).unwrap_err().to_string();
        assert!(error.contains("ended"), "{error}");
    }
}
