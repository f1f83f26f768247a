//! What a build says of how far it is, brought to the caller's thread; and the caller's word to end it, brought to the build.

use std::{
    ffi::{c_char, c_void},
    ops::ControlFlow,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    ptr,
    sync::{
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
};

use super::BuildProgress;
use crate::{
    Result, TensorRtError,
    api::{Api, MonitorObject},
    journal::plain,
    object::Owned,
};

/// Of the building thread: twice what a program's first thread has, which is where TensorRT is used to be called. Rust's own have a quarter of that.
const STACK_BYTES: usize = 16 << 20;

/// What happened to a phase.
#[derive(Debug)]
enum Event {
    Start { phase: String, parent: Option<String>, total: usize },
    Step { phase: String, done: usize },
    Finish { phase: String },
}

/// The end of a build's that TensorRT's monitor, on any of its threads, tells.
#[derive(Debug)]
pub(super) struct Monitor<'a> {
    events: mpsc::Sender<Event>,
    is_cancelled: &'a AtomicBool,
}

impl Monitor<'_> {
    /// Whether the caller has ended it.
    pub fn is_cancelled(&self) -> bool {
        self.is_cancelled.load(Ordering::Relaxed)
    }

    /// A phase of ours.
    pub fn during<T>(&self, phase: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        self.tell(Event::Start { phase: phase.to_owned(), parent: None, total: 1 });
        let done = work();
        self.tell(Event::Finish { phase: phase.to_owned() });
        if self.is_cancelled() { Err(TensorRtError::Cancelled) } else { done }
    }

    /// For TensorRT, which tells it until it is destroyed: not after `self`.
    #[expect(unsafe_code, reason = "an object of the shim's")]
    pub fn object(&self, api: &Api) -> Result<Owned<MonitorObject>> {
        let user = ptr::from_ref(self).cast_mut().cast();
        // SAFETY: the callbacks take a `Monitor`, by shared reference, as this is; it outlives the object.
        let object =
            unsafe { Owned::new((api.monitor_create)(start, step, finish, user), api.monitor_destroy) };
        let reason = || "for a progress monitor".to_owned();
        object.ok_or_else(|| TensorRtError::OutOfMemory { call: "beginning", reason: reason() })
    }

    fn tell(&self, event: Event) {
        // Whoever listens has given up when this fails.
        let _ = self.events.send(event);
    }
}

/// Runs `work` on a thread of its own, and tells `progress` of it on this one.
pub(super) fn watched<T: Send>(
    progress: &mut dyn FnMut(BuildProgress<'_>) -> ControlFlow<()>,
    work: impl FnOnce(&Monitor<'_>) -> Result<T> + Send,
) -> Result<T> {
    let (events, told) = mpsc::channel();
    let is_cancelled = AtomicBool::new(false);
    thread::scope(|scope| {
        let monitor = Monitor { events, is_cancelled: &is_cancelled };
        // The monitor goes with the thread's work, and with it the channel's only sender: that is how the loop below ends.
        let thread = thread::Builder::new().name("tensorrt-build".into()).stack_size(STACK_BYTES);
        let thread = thread.spawn_scoped(scope, move || work(&monitor));
        let thread = thread.map_err(|error| TensorRtError::OutOfMemory {
            call: "beginning",
            reason: format!("for a thread: {error}"),
        })?;
        // Should `progress` panic, the build has to end before the panic can go on.
        let _cancel = CancelOnUnwind(&is_cancelled);
        let mut phases = Phases::default();
        for event in told {
            let is_over = phases.apply(event, progress).is_break();
            if is_over {
                is_cancelled.store(true, Ordering::Relaxed);
            }
        }
        thread.join().unwrap_or_else(|panic| resume_unwind(panic))
    })
}

struct CancelOnUnwind<'a>(&'a AtomicBool);

impl Drop for CancelOnUnwind<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.store(true, Ordering::Relaxed);
        }
    }
}

/// Phases that have begun and not ended, outermost first.
#[derive(Debug, Default)]
struct Phases(Vec<Phase>);

#[derive(Debug)]
struct Phase {
    name: String,
    parent: Option<String>,
    done: usize,
    total: usize,
}

impl Phases {
    fn apply(
        &mut self,
        event: Event,
        progress: &mut dyn FnMut(BuildProgress<'_>) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        let mut tell = |phase: &Phase| {
            let Phase { name, parent, done, total } = phase;
            progress(BuildProgress { phase: name, parent: parent.as_deref(), done: *done, total: *total })
        };
        // Names may come again once a phase has ended: the last of a name is meant.
        let last = |phases: &[Phase], name: &str| phases.iter().rposition(|phase| phase.name == name);
        match event {
            Event::Start { phase: name, parent, total } => {
                let phase = Phase { name, parent, done: 0, total };
                let told = tell(&phase);
                self.0.push(phase);
                told
            }
            Event::Step { phase, done } => {
                let Some(idx) = last(&self.0, &phase) else { return ControlFlow::Continue(()) };
                let phase = &mut self.0[idx];
                phase.done = done.min(phase.total);
                tell(phase)
            }
            Event::Finish { phase } => {
                let Some(idx) = last(&self.0, &phase) else { return ControlFlow::Continue(()) };
                let mut phase = self.0.remove(idx);
                phase.done = phase.total;
                tell(&phase)
            }
        }
    }
}

/// Calls `work` with the monitor that `user` is; nothing unwinds into TensorRT.
fn with_monitor<T>(user: *mut c_void, otherwise: T, work: impl FnOnce(&Monitor<'_>) -> T) -> T {
    // SAFETY: `Monitor::object` gave it, and it lives as long as the object that calls.
    #[expect(unsafe_code, reason = "the user's pointer of a callback")]
    let monitor = unsafe { &*user.cast::<Monitor<'_>>() };
    catch_unwind(AssertUnwindSafe(|| work(monitor))).unwrap_or(otherwise)
}

extern "C" fn start(user: *mut c_void, phase: *const c_char, parent: *const c_char, num_steps: i32) {
    with_monitor(user, (), |monitor| {
        let parent = (!parent.is_null()).then(|| plain(parent)).filter(|parent| !parent.is_empty());
        let total = usize::try_from(num_steps).unwrap_or_default();
        monitor.tell(Event::Start { phase: plain(phase), parent, total });
    });
}

extern "C" fn step(user: *mut c_void, phase: *const c_char, step: i32) -> i32 {
    with_monitor(user, 1, |monitor| {
        let done = usize::try_from(step).unwrap_or_default().saturating_add(1);
        monitor.tell(Event::Step { phase: plain(phase), done });
        i32::from(!monitor.is_cancelled())
    })
}

extern "C" fn finish(user: *mut c_void, phase: *const c_char) {
    with_monitor(user, (), |monitor| monitor.tell(Event::Finish { phase: plain(phase) }));
}

#[cfg(test)]
mod tests {
    use std::ffi::CString;

    use super::*;

    /// What TensorRT does: phases within phases, from its own threads.
    fn build(monitor: &Monitor<'_>) -> Result<bool> {
        let user = ptr::from_ref(monitor).cast_mut().cast();
        let name = |text: &str| CString::new(text).unwrap();
        let (outer, inner) = (name("Building Engine"), name("Timing\nKernels"));
        start(user, outer.as_ptr(), ptr::null(), 1);
        start(user, inner.as_ptr(), outer.as_ptr(), 3);
        let goes_on = (0..3).all(|idx| step(user, inner.as_ptr(), idx) == 1);
        finish(user, inner.as_ptr());
        let goes_on = goes_on && step(user, outer.as_ptr(), 0) == 1;
        finish(user, outer.as_ptr());
        if monitor.is_cancelled() { Err(TensorRtError::Cancelled) } else { Ok(goes_on) }
    }

    #[test]
    fn phases_nest_and_are_told_on_the_callers_thread() {
        let mut told = Vec::new();
        let caller = thread::current().id();
        let done = watched(
            &mut |progress| {
                assert_eq!(thread::current().id(), caller);
                let BuildProgress { phase, parent, done, total } = progress;
                told.push(format!("{}/{phase} {done}/{total}", parent.unwrap_or_default()));
                ControlFlow::Continue(())
            },
            build,
        );
        assert!(done.unwrap());
        assert_eq!(
            told,
            [
                "/Building Engine 0/1",
                "Building Engine/Timing Kernels 0/3",
                "Building Engine/Timing Kernels 1/3",
                "Building Engine/Timing Kernels 2/3",
                "Building Engine/Timing Kernels 3/3",
                "Building Engine/Timing Kernels 3/3",
                "/Building Engine 1/1",
                "/Building Engine 1/1",
            ]
        );
    }

    #[test]
    fn a_break_ends_the_build_at_one_of_its_next_steps() {
        let done = watched(&mut |_| ControlFlow::Break(()), |monitor| {
            // The caller hears of the start on another thread: as long as it takes.
            let user = ptr::from_ref(monitor).cast_mut().cast();
            let phase = CString::new("Building Engine").unwrap();
            start(user, phase.as_ptr(), ptr::null(), i32::MAX);
            let ended = (0..i32::MAX).find(|&idx| step(user, phase.as_ptr(), idx) == 0);
            assert!(ended.is_some());
            if monitor.is_cancelled() { Err(TensorRtError::Cancelled) } else { Ok(()) }
        });
        assert!(matches!(done, Err(TensorRtError::Cancelled)));
    }

    #[test]
    fn a_phase_of_ours_ends_in_cancelled_when_it_was() {
        let phase = |progress: &mut dyn FnMut(BuildProgress<'_>) -> ControlFlow<()>| {
            watched(progress, |monitor| {
                monitor.during("reading", || {
                    while !monitor.is_cancelled() {
                        thread::yield_now();
                    }
                    Ok(())
                })
            })
        };
        assert!(matches!(phase(&mut |_| ControlFlow::Break(())), Err(TensorRtError::Cancelled)));
    }

    #[test]
    #[should_panic(expected = "the caller's")]
    fn a_panic_of_the_callers_ends_the_build_and_goes_on() {
        let _ = watched(&mut |_| panic!("the caller's"), |monitor| {
            monitor.during("reading", || {
                while !monitor.is_cancelled() {
                    thread::yield_now();
                }
                Ok(())
            })
        });
    }
}
