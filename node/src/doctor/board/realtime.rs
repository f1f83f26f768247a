//! What the board file's real-time settings need of the system.

use super::{BoardFile, Finding, Machine, core_list, core_ranges};
use crate::{config::RealtimeSettings, rt::capabilities};

pub(super) fn compare(file: &BoardFile, machine: &Machine<'_>) -> Vec<Finding> {
    let settings = file.config.realtime();
    let mut findings = Vec::new();
    if settings.fifo_priority.is_some() || settings.lock_memory {
        findings.push(limits(&settings, machine));
    }
    if settings.fifo_priority.is_some() {
        findings.extend([throttling(machine), kernel(machine)]);
        findings.extend(priority(&settings));
        if !settings.cores.is_empty() {
            findings.push(isolation(&settings.cores, machine));
        }
    }
    findings
}

/// Limits of this process: of a shell another thing than of the service, which has its own.
fn limits(settings: &RealtimeSettings, machine: &Machine<'_>) -> Finding {
    const TOPIC: &str = "real-time limits";
    let Some(text) = machine.text("proc/self/limits") else {
        return Finding::note(
            TOPIC,
            "unknown",
            "whether the board file's settings will be granted shows when the node starts",
        );
    };
    let soft = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next());
    let (rtprio, memlock) = (soft("Max realtime priority"), soft("Max locked memory"));
    let status = machine.text("proc/self/status").unwrap_or_default();
    let holds = |bit| capabilities::holds(&status, bit);
    let priority = settings.fifo_priority.unwrap_or(0);
    let may_fifo = holds(capabilities::SYS_NICE)
        || rtprio.is_some_and(|most| {
            most == "unlimited" || most.parse::<u64>().is_ok_and(|most| most >= priority.into())
        });
    let is_of_the_machine =
        machine.text("proc/self/uid_map").is_none_or(|map| capabilities::is_of_the_machine(&map));
    let may_lock = !settings.lock_memory
        || memlock == Some("unlimited")
        || holds(capabilities::IPC_LOCK) && is_of_the_machine;
    let found =
        format!("rtprio {}, memlock {} here", rtprio.unwrap_or("unknown"), memlock.unwrap_or("unknown"));
    if may_fifo && may_lock {
        return Finding::good(TOPIC, found);
    }
    let wanted = if settings.lock_memory { ", memlock unlimited" } else { "" };
    Finding::note(
        TOPIC,
        found,
        format!(
            "the board file asks for rtprio {priority}{wanted}: takt.service has both, a shell gets them by 99-takt-limits.conf and the group takt; \
             what is refused is logged when the node starts"
        ),
    )
}

/// Whether the worker stays below the control loop.
fn priority(settings: &RealtimeSettings) -> Option<Finding> {
    let caution = crate::rt::cautions(settings).pop()?;
    Some(Finding::bad("worker priority", settings.fifo_priority.unwrap_or(0).to_string(), caution))
}

/// The kernel's emergency brake for real-time threads, which a computing worker meets after 0.95 s.
fn throttling(machine: &Machine<'_>) -> Finding {
    const TOPIC: &str = "real-time throttling";
    let number = |name: &str| machine.text(format!("proc/sys/kernel/{name}"))?.trim().parse::<i64>().ok();
    match (number("sched_rt_runtime_us"), number("sched_rt_period_us")) {
        (Some(runtime), _) if runtime < 0 => Finding::good(TOPIC, "off"),
        (Some(runtime), Some(period)) if runtime >= period => Finding::good(TOPIC, "off"),
        (Some(runtime), Some(period)) => Finding::note(
            TOPIC,
            format!("{runtime} of {period} µs"),
            format!(
                "a worker that computes longer is stopped for {} ms, whatever its deadlines: `sysctl -w kernel.sched_rt_runtime_us=-1`",
                (period - runtime) / 1000
            ),
        ),
        _ => Finding::note(
            TOPIC,
            "unknown",
            "a worker that computes for a second may be stopped by the kernel",
        ),
    }
}

fn kernel(machine: &Machine<'_>) -> Finding {
    const TOPIC: &str = "board kernel";
    let release = machine.text("proc/sys/kernel/osrelease").unwrap_or_else(|| "unknown".into());
    if machine.text("sys/kernel/realtime").as_deref() == Some("1") {
        return Finding::good(TOPIC, format!("{release}, PREEMPT_RT"));
    }
    let effect = "PREEMPT_RT is recommended for this board: without it an answer can come milliseconds late under load (docs/deployment.md)";
    Finding::note(TOPIC, release, effect)
}

/// Whether other work is kept off the worker's cores: by the kernel's command line, or by cpusets of the system's slices.
fn isolation(cores: &[usize], machine: &Machine<'_>) -> Finding {
    const TOPIC: &str = "isolated cores";
    let isolated = core_list(&machine.text("sys/devices/system/cpu/isolated").unwrap_or_default());
    if cores.iter().all(|core| isolated.contains(core)) {
        let found = format!("{} by isolcpus", core_ranges(cores));
        if cores.len() == 1 {
            return Finding::good(TOPIC, found);
        }
        let effect = "isolcpus takes load balancing away, so that threads of the worker may share one core while others idle: prefer AllowedCPUs= of \
                      the system's slices (docs/deployment.md)";
        return Finding::note(TOPIC, found, effect);
    }
    let slices = ["system.slice", "user.slice"];
    let allowed = slices.map(|slice| machine.text(format!("sys/fs/cgroup/{slice}/cpuset.cpus.effective")));
    let is_free = |core: &usize| {
        allowed
            .iter()
            .all(|list| list.as_ref().is_some_and(|list| !list.is_empty() && !core_list(list).contains(core)))
    };
    if cores.iter().all(is_free) {
        return Finding::good(
            TOPIC,
            format!("{} by cpusets of {}", core_ranges(cores), slices.join(" and ")),
        );
    }
    let effect = format!(
        "other work may run on the worker's cores {}: it shares their caches and delays sections; keep it off with AllowedCPUs= of the system's \
         slices (docs/deployment.md)",
        core_ranges(cores)
    );
    Finding::note(TOPIC, core_ranges(&isolated), effect)
}
