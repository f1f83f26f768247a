//! Whether ROS 2 nodes can find each other: multicast on the machine's interfaces, and loopback.

use super::{Finding, read};

/// `IFF_UP` and `IFF_MULTICAST` of Linux's `if.h`.
const UP: u32 = 0x1;
const MULTICAST: u32 = 0x1000;

pub(super) fn examine() -> Vec<Finding> {
    let mut names: Vec<String> = std::fs::read_dir("/sys/class/net")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect();
    names.sort();
    let flags = |name: &str| {
        let text = read(format!("/sys/class/net/{name}/flags"))?;
        u32::from_str_radix(text.strip_prefix("0x")?, 16).ok()
    };
    let up: Vec<(&str, u32)> = names
        .iter()
        .filter_map(|name| Some((name.as_str(), flags(name)?)))
        .filter(|(_, flags)| flags & UP != 0)
        .collect();
    vec![loopback(&up), subnet(&up)]
}

fn loopback(up: &[(&str, u32)]) -> Finding {
    match up.iter().find(|(name, _)| *name == "lo") {
        Some((_, flags)) if flags & MULTICAST != 0 => Finding::good("loopback", "up, with multicast"),
        // RustDDS and CycloneDDS also try unicast to the first participants of a host, so this is no fault.
        Some(_) => Finding::good(
            "loopback",
            "up, without multicast (the usual case: nodes on this machine are found by unicast)",
        ),
        None => Finding::bad(
            "loopback",
            "down",
            "nodes on this machine cannot find each other: `ip link set lo up`",
        ),
    }
}

fn subnet(up: &[(&str, u32)]) -> Finding {
    let capable: Vec<&str> = up
        .iter()
        .filter(|(name, flags)| *name != "lo" && flags & MULTICAST != 0)
        .map(|(name, _)| *name)
        .collect();
    if capable.is_empty() {
        return Finding::note(
            "network",
            "no interface with multicast",
            "only nodes on this machine are found",
        );
    }
    Finding::good("network", format!("multicast on {}", capable.join(", ")))
}
