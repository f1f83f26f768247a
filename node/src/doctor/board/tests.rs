use std::{
    fs,
    path::{Path, PathBuf},
};

use super::*;
use crate::doctor::Level;

/// An Orin Nano as its board file wants it.
struct Board(tempfile::TempDir);

impl Board {
    fn well_set_up() -> Self {
        let board = Self(tempfile::tempdir().unwrap());
        let cpu = "sys/devices/system/cpu/cpu2/cpufreq";
        for (path, text) in [
            ("proc/device-tree/model", "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super\0"),
            ("proc/meminfo", "MemTotal:        7802000 kB\nMemFree: 1 kB\n"),
            (
                "proc/self/limits",
                "Max locked memory         unlimited            unlimited            bytes\nMax realtime priority     60                   60\n",
            ),
            ("proc/sys/kernel/sched_rt_runtime_us", "-1\n"),
            ("proc/sys/kernel/sched_rt_period_us", "1000000\n"),
            ("proc/sys/kernel/osrelease", "5.15.148-rt-tegra\n"),
            ("sys/kernel/realtime", "1\n"),
            ("sys/devices/system/cpu/online", "0-5\n"),
            ("sys/devices/system/cpu/isolated", "\n"),
            ("sys/fs/cgroup/system.slice/cpuset.cpus.effective", "0-1\n"),
            ("sys/fs/cgroup/user.slice/cpuset.cpus.effective", "0-1\n"),
            (&format!("{cpu}/scaling_governor"), "schedutil\n"),
            (&format!("{cpu}/scaling_min_freq"), "1344000\n"),
            (&format!("{cpu}/scaling_max_freq"), "1344000\n"),
            ("sys/class/devfreq/17000000.gpu/min_freq", "918000000\n"),
            ("sys/class/devfreq/17000000.gpu/max_freq", "918000000\n"),
            ("sys/kernel/debug/bpmp/debug/clk/emc/rate", "3199000000\n"),
            ("var/lib/nvpmodel/status", "pmode:0001 fmode:quiet\n"),
            (
                "etc/nvpmodel.conf",
                "# modes\n< POWER_MODEL ID=0 NAME=15W >\nCPU_ONLINE CORE_0 1\n< POWER_MODEL ID=1 NAME=25W >\n< POWER_MODEL ID=2 NAME=MAXN_SUPER >\n< PM_CONFIG DEFAULT=1 >\n",
            ),
        ] {
            board.put(path, text);
        }
        board
    }

    fn put(&self, path: &str, text: &str) {
        let path = self.0.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn findings(&self) -> Vec<Finding> {
        compare(&shipped("orin-nano-8gb"), self.0.path())
    }

    fn finding(&self, topic: &str) -> Finding {
        self.findings().into_iter().find(|finding| finding.topic == topic).unwrap()
    }

    fn told(&self, topic: &str, level: Level, parts: &[&str]) {
        let finding = self.finding(topic);
        let text = format!("{} | {}", finding.found, finding.effect);
        assert_eq!(finding.level, level, "{text}");
        for part in parts {
            assert!(text.contains(part), "{part:?} not in {text}");
        }
    }
}

fn shipped(name: &str) -> BoardFile {
    let folder: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("../jetson-configs");
    BoardFile::read(&folder.join(name).with_extension("toml")).unwrap()
}

#[test]
fn a_board_set_up_as_its_file_wants_has_nothing_to_do() {
    let findings = Board::well_set_up().findings();
    let topics: Vec<&str> = findings.iter().map(|finding| finding.topic).collect();
    let expected = [
        "board",
        "board memory",
        "worker cores",
        "power mode",
        "cpu clock",
        "gpu clock",
        "memory clock",
        "real-time limits",
        "real-time throttling",
        "board kernel",
        "isolated cores",
    ];
    assert_eq!(topics, expected);
    for finding in findings {
        assert_eq!((finding.level, finding.effect.as_str()), (Level::Good, ""), "{finding:?}");
    }
}

#[test]
fn another_power_mode_is_told_with_the_command_that_mends_it() {
    let board = Board::well_set_up();
    board.put("var/lib/nvpmodel/status", "pmode:0000 fmode:quiet\n");
    board.told(
        "power mode",
        Level::Note,
        &["15W (mode 0)", "25W is expected: `sudo nvpmodel -m 1`", "takt calibrate"],
    );
    board.put("etc/nvpmodel.conf", "< POWER_MODEL ID=0 NAME=15W >\n< POWER_MODEL ID=1 NAME=7W >\n");
    board.told("power mode", Level::Note, &["lacks (it has 15W, 7W)", "board file"]);
    board.put("etc/nvpmodel.conf", "");
    board.put("var/lib/nvpmodel/status", "soup");
    board.told("power mode", Level::Note, &["unknown", "25W is expected"]);
}

#[test]
fn clocks_that_are_lower_or_not_held_are_told() {
    let board = Board::well_set_up();
    board.put("sys/devices/system/cpu/cpu2/cpufreq/scaling_min_freq", "729600\n");
    board.told("cpu clock", Level::Note, &["730 to 1344 MHz", "jetson_clocks"]);
    board.put("sys/devices/system/cpu/cpu2/cpufreq/scaling_governor", "performance\n");
    board.told("cpu clock", Level::Good, &["held at 1344 MHz"]);
    board.put("sys/class/devfreq/17000000.gpu/max_freq", "612000000\n");
    board.put("sys/class/devfreq/17000000.gpu/min_freq", "306000000\n");
    board.told("gpu clock", Level::Note, &["306 to 612 MHz", "918 MHz are expected"]);
    board.put("sys/kernel/debug/bpmp/debug/clk/emc/rate", "2133000000\n");
    board.told("memory clock", Level::Note, &["2133 MHz", "3199 MHz are expected"]);
    fs::remove_file(board.0.path().join("sys/kernel/debug/bpmp/debug/clk/emc/rate")).unwrap();
    board.told("memory clock", Level::Note, &["not readable", "sudo takt doctor"]);
}

#[test]
fn cores_that_are_off_and_memory_of_another_variant_are_faults() {
    let board = Board::well_set_up();
    board.put("sys/devices/system/cpu/online", "0-3\n");
    board.told("worker cores", Level::Bad, &["2-5 of the online 0-3", "4-5 not there"]);
    board.put("proc/meminfo", "MemTotal:        3900000 kB\n");
    board.told("board memory", Level::Bad, &["3.7 GiB visible, 8 on the board", "budget_mib"]);
    board.put("proc/device-tree/model", "NVIDIA Jetson AGX Thor Developer Kit\0");
    board.told("board", Level::Bad, &["Thor", "\"Orin Nano\"", "--board"]);
}

#[test]
fn what_real_time_lacks_is_told_with_what_gives_it() {
    let board = Board::well_set_up();
    board.put(
        "proc/self/limits",
        "Max locked memory         8388608              8388608              bytes\nMax realtime priority     0                    0\n",
    );
    board.told(
        "real-time limits",
        Level::Note,
        &["rtprio 0, memlock 8388608", "rtprio 40, memlock unlimited", "takt.service"],
    );
    board.put("proc/self/status", "Name:\ttakt\nCapEff:\t000001ffffffffff\n");
    board.told("real-time limits", Level::Good, &["rtprio 0"]);
    board.put("proc/sys/kernel/sched_rt_runtime_us", "950000\n");
    board.told("real-time throttling", Level::Note, &["stopped for 50 ms", "sched_rt_runtime_us=-1"]);
    board.put("sys/kernel/realtime", "0\n");
    board.told("board kernel", Level::Note, &["PREEMPT_RT is recommended"]);
    board.put("sys/fs/cgroup/user.slice/cpuset.cpus.effective", "0-5\n");
    board.told(
        "isolated cores",
        Level::Note,
        &["other work may run on the worker's cores 2-5", "AllowedCPUs"],
    );
    board.put("sys/devices/system/cpu/isolated", "2-5\n");
    board.told("isolated cores", Level::Note, &["2-5 by isolcpus", "load balancing"]);
}

#[test]
fn on_a_machine_that_tells_nothing_every_finding_says_so_and_none_fails() {
    let root = tempfile::tempdir().unwrap();
    for file in ["host", "thor-128gb", "agx-orin-64gb"] {
        for finding in compare(&shipped(file), root.path()) {
            assert!(!finding.found.is_empty(), "{finding:?}");
            assert_eq!(finding.level == Level::Good, finding.effect.is_empty(), "{finding:?}");
        }
    }
    assert_eq!(compare(&shipped("host"), root.path()).len(), 1);
}

#[test]
fn core_lists_are_read_and_written_as_the_kernel_does() {
    assert_eq!(core_list("0-3,7, 9-9"), [0, 1, 2, 3, 7, 9]);
    assert_eq!(core_list("3-1,x,0-99999999999,-"), Vec::<usize>::new());
    assert_eq!(core_ranges(&[5, 4, 7, 4]), "4-5,7");
    assert_eq!(core_ranges(&[]), "none");
}
