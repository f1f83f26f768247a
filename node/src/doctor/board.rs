//! The machine against its board file: what is there, what the file's values were chosen for, what to do.

mod clocks;
mod realtime;

use std::path::Path;

use super::Finding;
use crate::board::{BoardFile, memory_bytes, model};

/// Names and values of what is compared, below a root so that a test can make them up.
struct Machine<'a> {
    root: &'a Path,
}

impl Machine<'_> {
    fn text(&self, path: impl AsRef<Path>) -> Option<String> {
        super::read(self.root.join(path))
    }

    fn number(&self, path: impl AsRef<Path>) -> Option<u64> {
        self.text(path)?.trim().parse().ok()
    }
}

/// Compares the machine whose system files lie below `root` with `file`.
#[must_use]
pub fn compare(file: &BoardFile, root: &Path) -> Vec<Finding> {
    let machine = Machine { root };
    let mut findings = vec![board(file, root)];
    findings.extend(memory(file, root));
    findings.extend(cores(file, &machine));
    findings.extend(clocks::compare(file, &machine));
    findings.extend(realtime::compare(file, &machine));
    findings
}

fn board(file: &BoardFile, root: &Path) -> Finding {
    let machine = model(root).unwrap_or_else(|| "no device tree".into());
    let found = format!("{} ({}): {machine}", file.name(), file.path.display());
    let engines = file.config.texts("board", "engines");
    let wanted = file.config.text("board", "model");
    if wanted.is_empty() || machine.to_lowercase().contains(&wanted.to_lowercase()) {
        let engines =
            if engines.is_empty() { String::new() } else { format!("; recommended: {}", engines.join(", ")) };
        return Finding::good("board", found + &engines);
    }
    let effect = format!(
        "the file is for machines whose device tree names {wanted:?}: its values may not fit; choose another with --board"
    );
    Finding::bad("board", found, effect)
}

fn memory(file: &BoardFile, root: &Path) -> Option<Finding> {
    const TOPIC: &str = "board memory";
    let config = &file.config;
    let expected_gib = config.whole("board", "memory_gib");
    if expected_gib == 0 {
        return None;
    }
    let Some(total) = memory_bytes(root) else {
        return Some(Finding::note(
            TOPIC,
            "unknown",
            format!("cannot be compared with the board's {expected_gib} GiB"),
        ));
    };
    let found_gib = total as f64 / (1_u64 << 30) as f64;
    let found = format!(
        "{found_gib:.1} GiB visible, {expected_gib} on the board; {} MiB for Takt, {} MiB left to others",
        config.whole("memory", "budget_mib"),
        config.whole("board", "reserve_mib"),
    );
    // Firmware and carve-outs keep some for themselves: 7.4 of 8 GiB are visible on an Orin Nano.
    let share = found_gib / expected_gib as f64;
    Some(if (0.85..1.02).contains(&share) {
        Finding::good(TOPIC, found)
    } else {
        Finding::bad(
            TOPIC,
            found,
            "another variant of the board: the memory budget and the recommended engines are not for it; copy the file and adapt `budget_mib`",
        )
    })
}

fn cores(file: &BoardFile, machine: &Machine<'_>) -> Option<Finding> {
    const TOPIC: &str = "worker cores";
    let wanted = file.config.realtime().cores;
    if wanted.is_empty() {
        return None;
    }
    let Some(online) = machine.text("sys/devices/system/cpu/online").map(|text| core_list(&text)) else {
        return Some(Finding::note(TOPIC, "unknown", format!("the file names {}", core_ranges(&wanted))));
    };
    let missing: Vec<usize> = wanted.iter().copied().filter(|core| !online.contains(core)).collect();
    let found = format!("{} of the online {}", core_ranges(&wanted), core_ranges(&online));
    Some(if missing.is_empty() {
        Finding::good(TOPIC, found)
    } else {
        let effect = format!(
            "{} not there: the worker may run on any core; a power mode can switch cores off (`sudo nvpmodel -q`)",
            core_ranges(&missing)
        );
        Finding::bad(TOPIC, found, effect)
    })
}

/// Cores of a kernel list as `0-3,7`; what does not parse is left out.
fn core_list(text: &str) -> Vec<usize> {
    /// More than any machine has: a list from a damaged file must not fill the memory.
    const MAX_CORES: usize = 4096;
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        (last < MAX_CORES).then_some(first..=last)
    };
    text.split(',').filter_map(range).flatten().collect()
}

/// Cores as `0-3,7`.
fn core_ranges(cores: &[usize]) -> String {
    let mut sorted = cores.to_vec();
    sorted.sort_unstable();
    sorted.dedup();
    let runs = sorted.chunk_by(|a, b| a + 1 == *b);
    let text = |run: &[usize]| match run {
        [one] => one.to_string(),
        [first, .., last] => format!("{first}-{last}"),
        [] => String::new(),
    };
    let texts: Vec<String> = runs.map(text).collect();
    if texts.is_empty() { "none".into() } else { texts.join(",") }
}

#[cfg(test)]
mod tests;
