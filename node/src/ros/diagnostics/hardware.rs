//! Temperatures, clocks and memory, as far as the kernel tells them.

use std::path::{Path, PathBuf};

use crate::board::gpu_clock_folder;
use crate::rt::InForce;
use crate::worker::THREAD_NAME;

/// Temperature from which on a board is about to slow itself down.
const HOT_C: f64 = 85.0;

/// What the kernel says of the machine.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Hardware {
    /// Thermal zones by name, in degrees Celsius.
    pub temperatures: Vec<(String, f64)>,
    /// Current clock of the first core that the worker runs on, or of the first there is.
    pub cpu_mhz: Option<u64>,
    /// Current clock of the GPU, where there is one that tells.
    pub gpu_mhz: Option<u64>,
    /// Memory of this process.
    pub resident_mib: Option<u64>,
    /// Memory the system could still give.
    pub available_mib: Option<u64>,
    /// How the worker's thread runs, while there is one.
    pub worker: Option<InForce>,
}

impl Hardware {
    /// Reads below `root`, `/` outside tests; what cannot be read is left out.
    pub fn read(root: &Path) -> Self {
        let text = |path: &Path| std::fs::read_to_string(root.join(path)).ok();
        let number = |path: PathBuf| text(&path)?.trim().parse::<u64>().ok();
        let kib = |path: &str, name: &str| {
            let text = text(Path::new(path))?;
            let line = text.lines().find_map(|line| line.strip_prefix(name))?;
            line.trim_start_matches(':').trim().strip_suffix(" kB")?.parse::<u64>().ok()
        };
        let worker = InForce::read(&root.join("proc/self"), THREAD_NAME);
        let core = worker.as_ref().and_then(InForce::first_core).unwrap_or(0);
        let gpu_hz = gpu_clock_folder(root).and_then(|folder| number(folder.join("cur_freq")));
        Self {
            temperatures: temperatures(root),
            cpu_mhz: number(format!("sys/devices/system/cpu/cpu{core}/cpufreq/scaling_cur_freq").into())
                .map(|khz| khz / 1000),
            gpu_mhz: gpu_hz.map(|hz| hz / 1_000_000),
            resident_mib: kib("proc/self/status", "VmRSS").map(|kib| kib / 1024),
            available_mib: kib("proc/meminfo", "MemAvailable").map(|kib| kib / 1024),
            worker,
        }
    }

    /// The hottest zone, if it is too hot.
    pub fn too_hot(&self) -> Option<&(String, f64)> {
        let hottest = self.temperatures.iter().max_by(|a, b| a.1.total_cmp(&b.1))?;
        (hottest.1 >= HOT_C).then_some(hottest)
    }
}

fn temperatures(root: &Path) -> Vec<(String, f64)> {
    let Ok(zones) = std::fs::read_dir(root.join("sys/class/thermal")) else { return Vec::new() };
    let mut found: Vec<(String, f64)> = zones
        .flatten()
        .filter_map(|zone| {
            let name = std::fs::read_to_string(zone.path().join("type")).ok()?;
            // Zones that are switched off say nothing, or nonsense.
            let milli = std::fs::read_to_string(zone.path().join("temp")).ok()?.trim().parse::<i32>().ok()?;
            let celsius = f64::from(milli) / 1e3;
            (-40.0..150.0).contains(&celsius).then(|| (name.trim().to_owned(), celsius))
        })
        .collect();
    found.sort_by(|a, b| a.0.cmp(&b.0));
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_says_is_read_and_what_it_does_not_is_left_out() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        assert_eq!(Hardware::read(root.path()), Hardware::default());
        write("sys/class/thermal/thermal_zone0/type", "cpu-thermal\n");
        write("sys/class/thermal/thermal_zone0/temp", "51500\n");
        write("sys/class/thermal/thermal_zone1/type", "gpu-thermal\n");
        write("sys/class/thermal/thermal_zone1/temp", "90000\n");
        write("sys/class/thermal/thermal_zone2/type", "off\n");
        write("sys/class/thermal/thermal_zone2/temp", "-256000\n");
        write("sys/class/devfreq/gpu-gpc-0/cur_freq", "1300500000\n");
        write("proc/self/task/7/comm", &format!("{THREAD_NAME}\n"));
        // Policy and page faults are not what is tested here.
        write("proc/self/task/7/stat", &format!("7 ({THREAD_NAME}) S{}\n", " 0".repeat(49)));
        write("proc/self/status", "VmRSS: 3072 kB\n");
        write("proc/self/task/7/status", "Cpus_allowed_list:\t4-7\n");
        write("sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq", "800000\n");
        write("sys/devices/system/cpu/cpu4/cpufreq/scaling_cur_freq", "2200000\n");
        write("proc/meminfo", "MemTotal: 100 kB\nMemAvailable:   2048 kB\n");
        let hardware = Hardware::read(root.path());
        let zones = [("cpu-thermal".to_owned(), 51.5), ("gpu-thermal".to_owned(), 90.0)];
        assert_eq!(hardware.temperatures, zones);
        assert_eq!(hardware.too_hot(), Some(&zones[1]));
        assert_eq!(
            (hardware.gpu_mhz, hardware.available_mib, hardware.cpu_mhz),
            (Some(1300), Some(2), Some(2200))
        );
    }
}
