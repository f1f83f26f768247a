//! What measured costs hold for: another processor, clock, thread count or engine has other costs.

use std::{fmt::Write as _, path::Path};

use sha2::{Digest as _, Sha256};
use takt_engine::backend::{Backend, Capabilities};

/// Everything costs depend on, as names and values; clocks and power mode where the system tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceKey {
    facts: Vec<(String, String)>,
}

impl DeviceKey {
    /// The key of `backend` on this machine as it is set up now.
    #[must_use]
    pub fn of(backend: &dyn Backend) -> Self {
        Self::new(backend.capabilities(), Path::new("/"))
    }

    /// [`Self::of`] with the system's files below `root`.
    #[must_use]
    pub fn new(facts: &Capabilities, root: &Path) -> Self {
        let mut all: Vec<(String, String)> = [
            ("backend", facts.backend.to_owned()),
            ("device", facts.device.clone()),
            ("kernels", facts.kernels.clone()),
            ("threads", facts.num_threads.to_string()),
            ("kv", facts.kv.to_string()),
            ("weight_bytes_per_step", facts.weight_bytes_per_step.to_string()),
            ("lanes", facts.num_lanes.to_string()),
            ("lane_capacity", facts.lane_capacity.to_string()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into();
        all.extend(machine_facts(root));
        Self { facts: all }
    }

    /// The facts, for the file and for people.
    #[must_use]
    pub fn facts(&self) -> &[(String, String)] {
        &self.facts
    }

    /// What is different in `now`, in words; `None` when it is the same device, set up the same.
    #[must_use]
    pub fn change_to(&self, now: &Self) -> Option<String> {
        let value = |key: &Self, name: &str| {
            let fact = key.facts.iter().find(|(known, _)| known == name);
            fact.map_or_else(|| "unknown".to_owned(), |(_, value)| value.clone())
        };
        let (name, _) =
            self.facts.iter().chain(&now.facts).find(|(name, _)| value(self, name) != value(now, name))?;
        Some(format!(
            "the device changed: {name} was {} when costs were measured and is {} now; measuring again when idle",
            value(self, name),
            value(now, name)
        ))
    }

    /// A short name for the file.
    #[must_use]
    pub fn file_stem(&self) -> String {
        let mut hash = Sha256::new();
        for (name, value) in &self.facts {
            hash.update(format!("{name}={value}\n"));
        }
        hash.finalize().iter().take(6).fold("cpu-".to_owned(), |mut name, byte| {
            let _ = write!(name, "{byte:02x}");
            name
        })
    }
}

/// Clocks and power mode: what changes on a machine that stays the same.
fn machine_facts(root: &Path) -> Vec<(String, String)> {
    let files = [
        ("governor", "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        ("cpu_max_khz", "sys/devices/system/cpu/cpu0/cpufreq/scaling_max_freq"),
        ("turbo_off", "sys/devices/system/cpu/intel_pstate/no_turbo"),
        ("power_mode", "var/lib/nvpmodel/status"), // Jetson
    ];
    let read = |path: &str| {
        let text = std::fs::read_to_string(root.join(path)).ok()?;
        Some(text.trim().chars().take(80).collect::<String>()).filter(|text| !text.is_empty())
    };
    files.iter().filter_map(|(name, path)| Some(((*name).to_owned(), read(path)?))).collect()
}

#[cfg(test)]
mod tests {
    use takt_engine::kv::KvKind;

    use super::*;

    #[test]
    fn another_thread_count_or_clock_is_another_key_and_the_same_machine_the_same() {
        let root = tempfile::tempdir().unwrap();
        let facts = |num_threads| Capabilities {
            backend: "cpu",
            device: "a processor".into(),
            kernels: "avx2".into(),
            num_lanes: 4,
            lane_capacity: 512,
            max_step_tokens: 68,
            max_logits_rows: 68,
            num_threads,
            multiprocessors: None,
            kv: KvKind::Bf16,
            weight_bytes_per_step: 1000,
            kv_bytes: 1,
        };
        let stem = |num_threads| DeviceKey::new(&facts(num_threads), root.path()).file_stem();
        let before = stem(2);
        assert_eq!(stem(2), before);
        assert_ne!(stem(4), before);
        let folder = root.path().join("sys/devices/system/cpu/cpu0/cpufreq");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("scaling_governor"), "powersave\n").unwrap();
        assert_ne!(stem(2), before);
        let key = DeviceKey::new(&facts(2), root.path());
        assert!(key.facts().contains(&("governor".into(), "powersave".into())));
        std::fs::write(folder.join("scaling_governor"), "performance\n").unwrap();
        let now = DeviceKey::new(&facts(2), root.path());
        let change = key.change_to(&now).unwrap();
        assert!(
            change.contains("governor was powersave when costs were measured and is performance now"),
            "{change}"
        );
        assert_eq!(now.change_to(&now), None);
    }
}
