//! Memory and real-time limits.

use nix::sys::resource::{Resource, getrlimit};

use super::{Finding, field, read};
use crate::rt::{capabilities, memory::LockLimit};

const GIB: f64 = (1_u64 << 30) as f64;

pub(super) fn examine() -> Vec<Finding> {
    vec![memory(), realtime_priority(), locked_memory(), kernel()]
}

fn memory() -> Finding {
    let meminfo = read("/proc/meminfo").unwrap_or_default();
    let bytes = |name| Some(field(&meminfo, name)?.strip_suffix(" kB")?.parse::<u64>().ok()? * 1024);
    let (Some(total), Some(free)) = (bytes("MemTotal"), bytes("MemAvailable")) else {
        return Finding::note("memory", "unknown", "takt cannot tell whether an engine fits");
    };
    let limit =
        read("/sys/fs/cgroup/memory.max").and_then(|text| text.parse::<u64>().ok()).filter(|l| *l < total);
    let usable = limit.unwrap_or(total).min(free);
    let limited = limit.map(|l| format!(", limited to {:.1} GiB here", l as f64 / GIB)).unwrap_or_default();
    let found = format!("{:.1} GiB free of {:.1}{limited}", free as f64 / GIB, total as f64 / GIB);
    if usable < 1 << 30 {
        return Finding::note("memory", found, "only small engines fit (`takt inspect` says what one needs)");
    }
    Finding::good("memory", found)
}

fn realtime_priority() -> Finding {
    /// What board files ask for: below the control loop.
    const USUAL: u64 = 40;
    let allowed = getrlimit(Resource::RLIMIT_RTPRIO).map_or(0, |(soft, _)| soft);
    let status = read("/proc/self/status").unwrap_or_default();
    if allowed >= USUAL || capabilities::holds(&status, capabilities::SYS_NICE) {
        return Finding::good("real-time priority", "SCHED_FIFO is allowed");
    }
    if allowed > 0 {
        return Finding::note(
            "real-time priority",
            format!("SCHED_FIFO is allowed up to {allowed}"),
            format!(
                "board files ask for {USUAL}, which would be refused; raise the rtprio limit, or LimitRTPRIO= in the unit"
            ),
        );
    }
    Finding::note(
        "real-time priority",
        "SCHED_FIFO is not allowed",
        "other processes can delay an answer; set an rtprio limit in /etc/security/limits.d, or LimitRTPRIO= in the unit",
    )
}

fn locked_memory() -> Finding {
    match LockLimit::of_this_process() {
        LockLimit::None => Finding::good("locked memory", "unlimited"),
        LockLimit::Bytes(bytes) => Finding::note(
            "locked memory",
            format!("at most {} KiB", bytes / 1024),
            "`lock_memory` will be refused and a page fault can delay an answer; set memlock unlimited in /etc/security/limits.d, or \
             LimitMEMLOCK=infinity in the unit",
        ),
    }
}

fn kernel() -> Finding {
    let release = read("/proc/sys/kernel/osrelease").unwrap_or_else(|| "unknown".into());
    if read("/sys/kernel/realtime").as_deref() == Some("1") {
        return Finding::good("kernel", format!("{release}, PREEMPT_RT"));
    }
    Finding::note(
        "kernel",
        release,
        "not a PREEMPT_RT kernel: scheduling delays of a few milliseconds can occur under load",
    )
}
