//! What the kernel lets this process do beyond its limits.

/// Locking memory without a limit.
pub const IPC_LOCK: u32 = 14;
/// Any scheduling policy and priority.
pub const SYS_NICE: u32 = 23;

/// Whether capability `bit` is in effect by proc(5)'s `status` of a process.
#[must_use]
pub fn holds(status: &str, bit: u32) -> bool {
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).is_some_and(|set| set >> bit & 1 == 1)
}

/// Whether a process of `uid_map`, as proc(5) has it, is in the user namespace of the machine. In another, as in a container without
/// root, capabilities do not lift limits.
#[must_use]
pub fn is_of_the_machine(uid_map: &str) -> bool {
    uid_map.split_whitespace().eq(["0", "0", "4294967295"])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_capability_is_a_bit_of_the_effective_set() {
        let status = "Name:\ttakt\nCapPrm:\t000001ffffffffff\nCapEff:\t0000000000004000\n";
        assert!(holds(status, IPC_LOCK) && !holds(status, SYS_NICE));
        for unreadable in ["", "CapEff:\tsoup\n", "CapPrm:\t000001ffffffffff\n"] {
            assert!(!holds(unreadable, IPC_LOCK), "{unreadable}");
        }
    }

    #[test]
    fn only_the_machines_own_namespace_maps_every_user_to_itself() {
        assert!(is_of_the_machine("         0          0 4294967295\n"));
        assert!(!is_of_the_machine("         0       1000          1\n"));
        assert!(!is_of_the_machine("0 1000 1\n1 100000 65536\n") && !is_of_the_machine(""));
    }
}
