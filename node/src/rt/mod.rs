//! Real-time settings of the worker thread: scheduling policy, cores, resident memory.
//!
//! [`apply`] asks the kernel, [`InForce`] reads from the kernel what it granted, [`memory`] keeps page faults away from requests. A refused
//! setting never stops the worker: it is told once, in words, and stays on `/diagnostics`.
#![expect(unsafe_code, reason = "sched_setscheduler and mallopt have no safe wrapper in nix")]

pub mod capabilities;
mod in_force;
pub mod memory;
mod told;

use nix::{
    errno::Errno,
    libc,
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    unistd::Pid,
};

use crate::config::RealtimeSettings;

pub use in_force::InForce;
pub use told::Told;

/// Priority of `ros2_control`'s update thread unless it is told otherwise, and of the kernel's interrupt threads.
pub const CONTROL_LOOP_PRIORITY: u8 = 50;

/// Applies `settings` to the calling thread and to the threads it will start; memory locking concerns the whole process.
/// Returns what was refused, each with its effect.
#[must_use]
pub fn apply(settings: &RealtimeSettings) -> Vec<String> {
    let mut refused = Vec::new();
    if !settings.cores.is_empty()
        && let Err(refusal) = pin(&settings.cores)
    {
        refused.push(format!("{refusal}; {}", refusal.effect));
    }
    if let Some(priority) = settings.fifo_priority
        && let Err(errno) = set_fifo(priority)
    {
        refused.push(format!(
            "SCHED_FIFO priority {priority}: {errno}; other processes can delay an answer (grant CAP_SYS_NICE or an rtprio limit)"
        ));
    }
    if settings.lock_memory
        && let Err(reason) = memory::lock_all()
    {
        refused.push(format!(
            "lock_memory: {reason}; a page fault can delay an answer (LimitMEMLOCK=infinity in the unit, memlock unlimited in a shell's limits, or \
             CAP_IPC_LOCK)"
        ));
    }
    memory::touch_stack();
    refused
}

/// What the kernel grants and the robot may regret.
#[must_use]
pub fn cautions(settings: &RealtimeSettings) -> Vec<String> {
    let priority = settings.fifo_priority.filter(|priority| *priority >= CONTROL_LOOP_PRIORITY);
    let caution = |priority| {
        format!(
            "SCHED_FIFO priority {priority} is not below the {CONTROL_LOOP_PRIORITY} of ros2_control's update thread and of the kernel's interrupt \
             threads: a section of the model can delay the control loop by its whole length; choose less, as 40"
        )
    };
    priority.map(caution).into_iter().collect()
}

/// Gives the calling thread SCHED_FIFO with `priority`.
///
/// # Errors
/// What the kernel says: `EPERM` without the right to.
pub fn set_fifo(priority: u8) -> Result<(), Errno> {
    let param = libc::sched_param { sched_priority: i32::from(priority) };
    // SAFETY: pid 0 is the calling thread; `param` is initialised and outlives the call, which only reads it.
    let status = unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const param) };
    Errno::result(status).map(drop)
}

/// Cores that were asked for and not granted, or not all.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cores {cores:?}: {reason}")]
pub struct CoresRefused {
    cores: Vec<usize>,
    reason: String,
    effect: &'static str,
}

/// Keeps the calling thread, and those it will start, on `cores`. The kernel passes over cores that are not there as long as one is: what it
/// granted is compared with what was asked.
///
/// # Errors
/// [`CoresRefused`]; of several cores those that are there are in use.
pub fn pin(cores: &[usize]) -> Result<(), CoresRefused> {
    const ANY: &str = "the worker may run on any core";
    let refused = |reason: String, effect| CoresRefused { cores: cores.to_vec(), reason, effect };
    let mut set = CpuSet::new();
    for &core in cores {
        set.set(core)
            .map_err(|_| refused(format!("core {core} is beyond what the kernel's set holds"), ANY))?;
    }
    let this_thread = Pid::from_raw(0);
    let none = |errno: Errno| format!("{errno}: none of them is there, or granted to this process");
    sched_setaffinity(this_thread, &set).map_err(|errno| refused(none(errno), ANY))?;
    let granted = sched_getaffinity(this_thread)
        .map_err(|errno| refused(format!("{errno} when asked back"), "the worker may run on other cores"))?;
    let missing: Vec<usize> =
        cores.iter().copied().filter(|core| !granted.is_set(*core).unwrap_or(false)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(refused(
        format!("{missing:?} not there, or not granted to this process"),
        "the worker has the others",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In a thread of its own: affinity stays with the thread.
    fn refused_of(cores: Vec<usize>) -> Vec<String> {
        let settings = RealtimeSettings { cores, ..RealtimeSettings::default() };
        std::thread::spawn(move || apply(&settings)).join().unwrap()
    }

    #[test]
    fn nothing_asked_is_nothing_refused() {
        assert_eq!(apply(&RealtimeSettings::default()), Vec::<String>::new());
    }

    #[test]
    fn a_core_that_does_not_exist_is_reported_and_does_not_stop_the_thread() {
        for core in [1000, 100_000] {
            let refused = refused_of(vec![core]);
            assert_eq!(refused.len(), 1);
            assert!(refused[0].contains(&core.to_string()) && refused[0].contains("any core"), "{refused:?}");
        }
    }

    #[test]
    fn a_missing_core_is_reported_though_others_are_there() {
        let granted = sched_getaffinity(Pid::from_raw(0)).unwrap();
        let own = (0..CpuSet::count()).find(|core| granted.is_set(*core).unwrap()).unwrap();
        assert_eq!(refused_of(vec![own]), Vec::<String>::new());
        let refused = refused_of(vec![own, 1000]);
        assert!(refused[0].contains("[1000] not there") && refused[0].contains("the others"), "{refused:?}");
    }

    #[test]
    fn a_priority_that_reaches_the_control_loops_is_cautioned_against() {
        let of = |fifo_priority| cautions(&RealtimeSettings { fifo_priority, ..RealtimeSettings::default() });
        assert!(of(None).is_empty() && of(Some(49)).is_empty());
        for priority in [50, 99] {
            let told = of(Some(priority));
            assert!(
                told.len() == 1
                    && told[0].contains("ros2_control")
                    && told[0].contains(&priority.to_string())
            );
        }
    }
}
