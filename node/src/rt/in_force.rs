//! Which real-time settings the kernel granted, as it tells them of a running process.

use std::{fs, path::Path};

use serde::Serialize;

/// How a process's worker thread runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct InForce {
    /// `SCHED_FIFO 40`, `SCHED_OTHER`.
    pub policy: String,
    /// Cores as the kernel lists them: `0-3,7`.
    pub cores: String,
    /// Memory of the process that is locked.
    pub locked_kib: u64,
    /// Page faults of the thread so far, without and with a read from the disk.
    pub page_faults: u64,
}

impl InForce {
    /// The first of its cores.
    #[must_use]
    pub fn first_core(&self) -> Option<usize> {
        self.cores.split(['-', ',']).next()?.parse().ok()
    }

    /// Of the first thread called `thread` of the process below `process`, as `/proc/self`; `None` where there is none, or no such file.
    #[must_use]
    pub fn read(process: &Path, thread: &str) -> Option<Self> {
        let tasks = fs::read_dir(process.join("task")).ok()?;
        let is_wanted = |task: &fs::DirEntry| {
            fs::read_to_string(task.path().join("comm")).is_ok_and(|name| name.trim_end() == thread)
        };
        let task = tasks.flatten().find(is_wanted)?.path();
        let stat = fs::read_to_string(task.join("stat")).ok()?;
        let (policy, page_faults) = parse_stat(&stat)?;
        let task_status = fs::read_to_string(task.join("status")).ok()?;
        let process_status = fs::read_to_string(process.join("status")).ok()?;
        let locked = field(&process_status, "VmLck:").and_then(|text| text.strip_suffix(" kB"));
        Some(Self {
            policy,
            cores: field(&task_status, "Cpus_allowed_list:").unwrap_or("unknown").to_owned(),
            locked_kib: locked.and_then(|kib| kib.trim().parse().ok()).unwrap_or(0),
            page_faults,
        })
    }
}

fn field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim)
}

/// Policy and page faults of proc(5)'s `stat`. The thread's name in it may hold anything, parentheses and blanks too.
fn parse_stat(stat: &str) -> Option<(String, u64)> {
    let (_, rest) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    // proc(5) counts from 1, and `rest` begins with its third.
    let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
    let (minor, major, priority, policy) = (number(10)?, number(12)?, number(40)?, number(41)?);
    let policy = match policy {
        0 => "SCHED_OTHER".to_owned(),
        1 => format!("SCHED_FIFO {priority}"),
        2 => format!("SCHED_RR {priority}"),
        3 => "SCHED_BATCH".to_owned(),
        5 => "SCHED_IDLE".to_owned(),
        6 => "SCHED_DEADLINE".to_owned(),
        other => format!("policy {other}"),
    };
    Some((policy, minor + major))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policy_cores_and_locked_memory_are_read_whatever_the_thread_is_called() {
        let root = tempfile::tempdir().unwrap();
        let put = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let stat = |name: &str, tail: &str| {
            let middle = "S 1 2 3 4 5 6 70 8 9 10".to_owned() + &" 0".repeat(26);
            format!("17 ({name}) {middle} {tail} 0 0\n")
        };
        put("status", "Name:\ttakt\nVmLck:\t  34567 kB\n");
        put("task/16/comm", "takt\n");
        put("task/16/stat", &stat("takt", "0 0"));
        put("task/17/comm", "takt) worker\n");
        put("task/17/stat", &stat("takt) worker", "40 1"));
        put("task/17/status", "Cpus_allowed:\t3\nCpus_allowed_list:\t4-7\n");
        let found = InForce::read(root.path(), "takt) worker").unwrap();
        let expected = InForce {
            policy: "SCHED_FIFO 40".into(),
            cores: "4-7".into(),
            locked_kib: 34567,
            page_faults: 79,
        };
        assert_eq!(found, expected);
        assert_eq!(InForce::read(root.path(), "nobody"), None);
        assert_eq!(InForce::read(&root.path().join("none"), "takt"), None);
    }

    #[test]
    fn this_process_runs_somehow() {
        let name = "takt-in-force";
        let read = || InForce::read(Path::new("/proc/self"), name);
        let found = std::thread::Builder::new().name(name.into()).spawn(read).unwrap().join().unwrap();
        assert!(found.is_some_and(|found| found.policy.starts_with("SCHED_") && !found.cores.is_empty()));
    }
}
