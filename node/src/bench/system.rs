//! What the operating system and the board tell of power.

use std::{
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

/// Mean power between two readings of the processor's energy counter (RAPL) or of a power sensor.
#[derive(Debug)]
pub struct PowerMeter {
    source: Source,
}

#[derive(Debug)]
enum Source {
    /// Counter in microjoules, its range, the first reading and when it was taken.
    Energy { counter: PathBuf, range_uj: u64, first_uj: u64, since: Instant },
    /// Sensors in microwatts; boards with INA3221 list one a rail.
    Sensors(Vec<PathBuf>),
}

impl PowerMeter {
    /// Starts measuring; `None` where neither counter nor sensor is readable.
    #[must_use]
    pub fn start() -> Option<Self> {
        let folder = PathBuf::from("/sys/class/powercap/intel-rapl:0");
        if let (Some(first_uj), Some(range_uj)) =
            (number(&folder.join("energy_uj")), number(&folder.join("max_energy_range_uj")))
        {
            let counter = folder.join("energy_uj");
            return Some(Self {
                source: Source::Energy { counter, range_uj, first_uj, since: Instant::now() },
            });
        }
        let sensors: Vec<PathBuf> = fs::read_dir("/sys/class/hwmon")
            .ok()?
            .filter_map(|entry| Some(entry.ok()?.path().join("power1_input")))
            .filter(|path| number(path).is_some())
            .collect();
        (!sensors.is_empty()).then_some(Self { source: Source::Sensors(sensors) })
    }

    /// Watts since the start (energy counter) or now (sensors).
    #[must_use]
    pub fn watts(&self) -> Option<f64> {
        match &self.source {
            Source::Energy { counter, range_uj, first_uj, since } => {
                let now_uj = number(counter)?;
                let used_uj =
                    if now_uj >= *first_uj { now_uj - first_uj } else { now_uj + range_uj - first_uj };
                let time = since.elapsed();
                (time > Duration::ZERO).then(|| used_uj as f64 / 1e6 / time.as_secs_f64())
            }
            Source::Sensors(sensors) => {
                let sum_uw: u64 = sensors.iter().filter_map(number).sum();
                Some(sum_uw as f64 / 1e6)
            }
        }
    }
}

fn number(path: &PathBuf) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}
