//! Power mode and clocks: what every measured cost depends on.

use super::{BoardFile, Finding, Machine};
use crate::board::gpu_clock_folder;

/// Clocks come in steps, and tables round them: 816 MHz in one of NVIDIA's tables is 828.75 in another.
const TOLERANCE: f64 = 0.03;

pub(super) fn compare(file: &BoardFile, machine: &Machine<'_>) -> Vec<Finding> {
    let expected = |name| file.config.whole("board", name);
    let worker_core = file.config.realtime().cores.first().copied().unwrap_or(0);
    let mut findings = Vec::from_iter(power_mode(file, machine));
    if expected("cpu_mhz") > 0 {
        findings.push(cpu(machine, worker_core, expected("cpu_mhz")));
    }
    if expected("gpu_mhz") > 0 {
        findings.push(gpu(machine, expected("gpu_mhz")));
    }
    if expected("emc_mhz") > 0 {
        findings.push(emc(machine, expected("emc_mhz")));
    }
    findings
}

/// nvpmodel keeps the mode's number in a file of its own; `/etc/nvpmodel.conf` gives it a name.
fn power_mode(file: &BoardFile, machine: &Machine<'_>) -> Option<Finding> {
    const TOPIC: &str = "power mode";
    let wanted = Some(file.config.text("board", "power_mode")).filter(|name| !name.is_empty())?;
    let status = machine.text("var/lib/nvpmodel/status");
    let Some(id) = status.as_deref().and_then(mode_id) else {
        let effect =
            format!("{wanted} is expected; this machine's nvpmodel does not say which mode it runs in");
        return Some(Finding::note(TOPIC, "unknown", effect));
    };
    let known = modes(&machine.text("etc/nvpmodel.conf").unwrap_or_default());
    let name = known.iter().find(|(known_id, _)| *known_id == id);
    let name = name.map_or_else(|| format!("mode {id}"), |(_, name)| name.clone());
    if name == wanted {
        return Some(Finding::good(TOPIC, format!("{name} (mode {id})")));
    }
    let effect = match known.iter().find(|(_, name)| name == wanted) {
        Some((wanted_id, _)) => {
            format!("{wanted} is expected: `sudo nvpmodel -m {wanted_id}`, then `takt calibrate`")
        }
        None => {
            let names: Vec<&str> = known.iter().map(|(_, name)| name.as_str()).collect();
            let names = if names.is_empty() { "no modes".to_owned() } else { names.join(", ") };
            format!(
                "{wanted} is expected, which this system's nvpmodel lacks (it has {names}): flash the board's configuration that has it, or write \
                 another mode and its clocks into the board file"
            )
        }
    };
    Some(Finding::note(TOPIC, format!("{name} (mode {id})"), effect))
}

/// The number in `pmode:0002 fmode:quiet`.
fn mode_id(status: &str) -> Option<u64> {
    let digits: String =
        status.split("pmode:").nth(1)?.trim_start().chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

/// Numbers and names in lines as `< POWER_MODEL ID=2 NAME=MAXN_SUPER >`.
fn modes(conf: &str) -> Vec<(u64, String)> {
    let field = |line: &str, name: &str| {
        let word = line.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
        word.map(|word| word.trim_end_matches('>').to_owned())
    };
    conf.lines()
        .filter(|line| line.trim_start().starts_with('<') && line.contains("POWER_MODEL"))
        .filter_map(|line| Some((field(line, "ID")?.parse().ok()?, field(line, "NAME")?)))
        .collect()
}

/// A clock's bounds in MHz.
struct Bounds {
    least: f64,
    most: f64,
}

fn cpu(machine: &Machine<'_>, core: usize, expected: u64) -> Finding {
    let folder = format!("sys/devices/system/cpu/cpu{core}/cpufreq");
    let mhz = |name| Some(machine.number(format!("{folder}/{name}"))? as f64 / 1e3);
    let bounds = mhz("scaling_max_freq").map(|most| {
        let holds = machine.text(format!("{folder}/scaling_governor")).as_deref() == Some("performance");
        Bounds { least: if holds { most } else { mhz("scaling_min_freq").unwrap_or(0.0) }, most }
    });
    rate("cpu clock", bounds, expected)
}

fn gpu(machine: &Machine<'_>, expected: u64) -> Finding {
    let bounds = gpu_clock_folder(machine.root).and_then(|folder| {
        let mhz = |name| Some(machine.number(folder.join(name))? as f64 / 1e6);
        Some(Bounds { least: mhz("min_freq").unwrap_or(0.0), most: mhz("max_freq")? })
    });
    rate("gpu clock", bounds, expected)
}

/// The memory controller's clock, of which the kernel tells root only.
fn emc(machine: &Machine<'_>, expected: u64) -> Finding {
    const TOPIC: &str = "memory clock";
    let Some(hertz) = machine.number("sys/kernel/debug/bpmp/debug/clk/emc/rate") else {
        let effect = format!(
            "{expected} MHz are expected; the kernel tells root only: `sudo takt doctor`. At half this clock every answer takes twice as long"
        );
        return Finding::note(TOPIC, "not readable", effect);
    };
    let now = hertz as f64 / 1e6;
    if (now / expected as f64 - 1.0).abs() <= TOLERANCE {
        return Finding::good(TOPIC, format!("{now:.0} MHz"));
    }
    let effect = format!(
        "{expected} MHz are expected: memory bandwidth bounds every step; `sudo jetson_clocks` holds it at the power mode's highest"
    );
    Finding::note(TOPIC, format!("{now:.0} MHz"), effect)
}

fn rate(topic: &'static str, bounds: Option<Bounds>, expected: u64) -> Finding {
    let Some(Bounds { least, most }) = bounds else {
        return Finding::note(
            topic,
            "unknown",
            format!("{expected} MHz are expected; this machine does not tell"),
        );
    };
    let is_held = most - least <= most * TOLERANCE;
    let found =
        if is_held { format!("held at {most:.0} MHz") } else { format!("{least:.0} to {most:.0} MHz") };
    if (most / expected as f64 - 1.0).abs() > TOLERANCE {
        let effect = format!(
            "{expected} MHz are expected in the board file's power mode: costs differ from those of other machines of this kind; \
             `sudo nvpmodel -q` tells the mode"
        );
        return Finding::note(topic, found, effect);
    }
    if is_held {
        return Finding::good(topic, found);
    }
    Finding::note(
        topic,
        found,
        "it changes with the load, and promises with it: `sudo jetson_clocks`, then `takt calibrate`",
    )
}
