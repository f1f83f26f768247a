//! Real-time settings of the worker thread: scheduling policy, cores, resident memory.
#![expect(unsafe_code, reason = "sched_setscheduler has no safe wrapper in nix")]

use nix::{
    errno::Errno,
    libc,
    sched::{CpuSet, sched_setaffinity},
    sys::mman::{MlockAllFlags, mlockall},
    unistd::Pid,
};

use crate::config::RealtimeSettings;

/// Applies `settings` to the calling thread and to the threads it will start; memory locking concerns the whole process.
/// Returns what was refused, each with its effect: a refused setting never stops the worker.
#[must_use]
pub fn apply(settings: &RealtimeSettings) -> Vec<String> {
    let mut refused = Vec::new();
    if !settings.cores.is_empty()
        && let Err(reason) = pin(&settings.cores)
    {
        refused.push(format!("cores {:?}: {reason}; the worker may run on any core", settings.cores));
    }
    if let Some(priority) = settings.fifo_priority
        && let Err(errno) = set_fifo(priority)
    {
        refused.push(format!(
            "SCHED_FIFO priority {priority}: {errno}; other processes can delay an answer (grant CAP_SYS_NICE or an rtprio limit)"
        ));
    }
    if settings.lock_memory
        && let Err(errno) = mlockall(MlockAllFlags::MCL_CURRENT | MlockAllFlags::MCL_FUTURE)
    {
        refused.push(format!(
            "lock_memory: {errno}; a page fault can delay an answer (grant CAP_IPC_LOCK or raise the memlock limit)"
        ));
    }
    refused
}

fn pin(cores: &[usize]) -> Result<(), String> {
    let mut set = CpuSet::new();
    for &core in cores {
        set.set(core).map_err(|_| format!("core {core} is beyond what the kernel's set holds"))?;
    }
    sched_setaffinity(Pid::from_raw(0), &set).map_err(|errno| errno.to_string())
}

fn set_fifo(priority: u8) -> Result<(), Errno> {
    let param = libc::sched_param { sched_priority: i32::from(priority) };
    // SAFETY: pid 0 is the calling thread; `param` is initialised and outlives the call, which only reads it.
    let status = unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const param) };
    Errno::result(status).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_asked_is_nothing_refused() {
        assert_eq!(apply(&RealtimeSettings::default()), Vec::<String>::new());
    }

    #[test]
    fn a_core_that_does_not_exist_is_reported_and_does_not_stop_the_thread() {
        // In a thread of its own: affinity stays with the thread.
        let refused = std::thread::spawn(|| {
            apply(&RealtimeSettings { cores: vec![100_000], ..RealtimeSettings::default() })
        })
        .join()
        .unwrap();
        assert_eq!(refused.len(), 1);
        assert!(refused[0].contains("100000"), "{refused:?}");
    }
}
