//! `launch/install.sh` in a folder that plays the machine: nothing outside of it changes.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use super::harness::{fixture, stderr};

/// A machine's files.
struct Machine(tempfile::TempDir);

impl Machine {
    fn new(model: &str, mem_kib: u64, cores: &str) -> Self {
        let machine = Self(tempfile::tempdir().unwrap());
        machine.put("proc/device-tree/model", &format!("{model}\0"));
        machine.put("proc/meminfo", &format!("MemTotal:       {mem_kib} kB\n"));
        machine.put("sys/devices/system/cpu/possible", cores);
        machine.put("takt-binary", "#!/bin/sh\n");
        machine
    }

    fn path(&self, path: &str) -> PathBuf {
        self.0.path().join(path)
    }

    fn put(&self, path: &str, text: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn text(&self, path: &str) -> String {
        fs::read_to_string(self.path(path)).unwrap()
    }

    fn run(&self, args: &[&str]) -> Output {
        let script = fixture("../../launch/install.sh");
        let root = ["--root", self.0.path().to_str().unwrap()];
        Command::new("bash").arg(script).args(root).args(args).output().unwrap()
    }

    fn install(&self, args: &[&str]) -> String {
        let binary = self.path("takt-binary");
        let args = [&["--binary", binary.to_str().unwrap()], args].concat();
        let output = self.run(&args);
        assert!(output.status.success(), "{}", stderr(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Run once more, without the binary.
    fn again(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert!(output.status.success(), "{}", stderr(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    fn files(&self) -> Vec<PathBuf> {
        fn walk(folder: &Path, into: &mut Vec<PathBuf>) {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() && !path.is_symlink() { walk(&path, into) } else { into.push(path) }
            }
        }
        let mut files = Vec::new();
        walk(self.0.path(), &mut files);
        files.sort();
        files
    }
}

fn orin_nano() -> Machine {
    Machine::new("NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super", 7_802_000, "0-5\n")
}

#[test]
fn it_sets_the_board_up_and_a_second_run_changes_nothing() {
    let machine = orin_nano();
    let before = machine.files();
    assert!(machine.install(&["--dry-run", "--isolate"]).contains("would write /etc/takt/board.toml"));
    assert_eq!(machine.files(), before, "a dry run changes nothing");
    let told = machine.install(&["--isolate"]);
    assert!(told.starts_with("Takt on Jetson Orin Nano 8 GB (orin-nano-8gb.toml)"), "{told}");
    assert!(machine.text("etc/takt/board.toml").contains("model = \"Orin Nano\""));
    assert!(
        machine.text("etc/systemd/system/takt.service").contains("\nExecStart=/opt/takt/bin/takt serve ")
    );
    assert!(
        machine.text("etc/systemd/system/takt.service.d/10-board.conf").contains("CPUAffinity=1 2 3 4 5\n")
    );
    for (unit, section) in [("system.slice", "[Slice]"), ("user.slice", "[Slice]"), ("init.scope", "[Scope]")]
    {
        let text = machine.text(&format!("etc/systemd/system/{unit}.d/50-takt-cores.conf"));
        assert!(text.ends_with(&format!("{section}\nAllowedCPUs=0 1\n")), "{text}");
    }
    let environment = machine.text("etc/takt/takt.env");
    let set: Vec<&str> =
        environment.lines().filter(|line| !line.starts_with('#') && !line.is_empty()).collect();
    assert_eq!(
        set,
        ["TAKT_ENGINE=/var/lib/takt/engine", "TAKT_ARGS="],
        "nothing that would win over the board file"
    );
    let link = fs::read_link(machine.path("usr/local/bin/takt")).unwrap();
    assert_eq!(link, Path::new("/opt/takt/bin/takt"));
    for again in [machine.install(&["--isolate"]), machine.again(&[])] {
        assert!(
            !again.contains("  write ") && !again.contains("  make ") && !again.contains("  link "),
            "{again}"
        );
    }
}

#[test]
fn documents_that_are_pointed_to_are_there() {
    let machine = orin_nano();
    machine.install(&[]);
    let unit = machine.text("etc/systemd/system/takt.service");
    let guide = unit.lines().find_map(|line| line.strip_prefix("Documentation=file:/")).unwrap();
    assert!(machine.text(guide).starts_with("# Deployment"));
    assert!(machine.text("opt/takt/doc/ros2.md").starts_with("# The node on ROS 2"));
    assert!(machine.text("opt/takt/jetson-configs/README.md").starts_with("# Board files"));
}

#[test]
fn cores_are_read_however_they_are_written_or_refused() {
    let machine = orin_nano();
    for (cores, affinity) in [
        ("cores = [4,5]", "3 4 5"),
        ("  cores=[ 4 , 5 ]  # two", "3 4 5"),
        ("cores = [\n  4, # the second cluster\n  5,\n]", "3 4 5"),
        ("\tcores\t=\t[0]", "0 0"),
    ] {
        machine.put("mine.toml", &format!("# cores = [1] once\n[realtime]\n{cores}\nlock_memory = true\n"));
        machine.install(&["--board", machine.path("mine.toml").to_str().unwrap()]);
        let drop_in = machine.text("etc/systemd/system/takt.service.d/10-board.conf");
        assert!(drop_in.ends_with(&format!("\nCPUAffinity={affinity}\n")), "{cores}: {drop_in}");
    }
    let before = machine.files();
    for (cores, words) in [
        ("cores = \"4-5\"", "cannot read `cores`"),
        ("cores = [0x4]", "cannot read `cores`"),
        ("cores = [4, 5", "cannot read `cores`"),
        ("cores = [4, 6]", "names core 6; this machine has 0 1 2 3 4 5"),
        ("cores = [45]", "names core 45"),
    ] {
        machine.put("mine.toml", &format!("[realtime]\n{cores}\n"));
        let output = machine.run(&["--board", machine.path("mine.toml").to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(1), "{cores}");
        assert!(stderr(&output).contains(words), "{cores}: {}", stderr(&output));
        assert_eq!(machine.files(), before, "{cores}");
    }
}

#[test]
fn a_board_that_is_named_replaces_the_file_and_stays_chosen() {
    let machine =
        Machine::new("NVIDIA Jetson Orin NX Engineering Reference Developer Kit", 15_900_000, "0-7\n");
    let board = || machine.text("etc/takt/board.toml");
    machine.install(&["--isolate"]);
    let told = machine.again(&["--board", "orin-nano-8gb"]);
    assert!(told.starts_with("Takt on Jetson Orin Nano 8 GB (orin-nano-8gb.toml)"), "{told}");
    assert!(board().contains("model = \"Orin Nano\"") && !told.contains("edited"), "{told}");
    let user = || machine.text("etc/systemd/system/user.slice.d/50-takt-cores.conf");
    assert!(user().ends_with("AllowedCPUs=0 1 6 7\n"), "of the cores of now: {}", user());
    machine.again(&[]);
    assert!(board().contains("model = \"Orin Nano\""), "not the device tree's");

    let mine = format!("{}# mine\n", board());
    machine.put("etc/takt/board.toml", &mine);
    let told = machine.again(&["--board", "orin-nx-16gb"]);
    assert!(told.contains("keep the edited /etc/takt/board.toml as board.toml.old"), "{told}");
    assert_eq!(machine.text("etc/takt/board.toml.old"), mine);
    assert!(board().contains("model = \"Orin NX\"") && user().ends_with("AllowedCPUs=0 1 2 3\n"));

    machine.put("etc/takt/board.toml", &board().replace("cores = [4, 5, 6, 7]", "cores = []"));
    machine.again(&[]);
    assert!(!machine.path("etc/systemd/system/user.slice.d").exists(), "no core is Takt's");
}

#[test]
fn a_file_that_nobody_edited_follows_an_upgrade() {
    let machine = orin_nano();
    let mine = machine.path("mine.toml");
    machine.put("mine.toml", "[board]\nname = \"Rover\"\n");
    machine.install(&["--board", mine.to_str().unwrap()]);
    machine.put("mine.toml", "[board]\nname = \"Rover 2\"\n");
    let told = machine.again(&[]);
    assert!(told.contains("write /etc/takt/board.toml\n") && !told.contains("edited"), "{told}");
    assert_eq!(machine.text("etc/takt/board.toml"), machine.text("mine.toml"));
    machine.put("etc/takt/board.toml", "[board]\nname = \"Edited\"\n");
    machine.put("mine.toml", "[board]\nname = \"Rover 3\"\n");
    let told = machine.again(&[]);
    assert!(told.starts_with("Takt on Edited (board.toml)"), "{told}");
    assert!(told.contains("keep /etc/takt/board.toml, which was edited"), "{told}");
    assert_eq!(machine.text("etc/takt/board.toml.new"), machine.text("mine.toml"));
    fs::remove_file(mine).unwrap();
    assert!(machine.again(&[]).contains("keep /etc/takt/board.toml: "));
    assert_eq!(machine.text("etc/takt/board.toml"), "[board]\nname = \"Edited\"\n");
}

#[test]
fn a_package_after_a_binary_is_not_hidden_by_it() {
    let machine = orin_nano();
    machine.install(&[]);
    let wanted = machine.path("etc/systemd/system/multi-user.target.wants/takt.service");
    fs::create_dir_all(wanted.parent().unwrap()).unwrap();
    std::os::unix::fs::symlink("/etc/systemd/system/takt.service", &wanted).unwrap();
    machine.put("usr/bin/takt", "#!/bin/sh\n");
    machine.put("usr/lib/systemd/system/takt.service", "[Service]\nExecStart=/usr/bin/takt serve\n");
    let told = machine.again(&[]);
    assert!(told.contains("keep /usr/bin/takt, of the package"), "{told}");
    for path in
        ["etc/systemd/system/takt.service", "etc/systemd/system/takt.slice", "usr/local/bin/takt", "opt/takt"]
    {
        assert!(!machine.path(path).exists() && !machine.path(path).is_symlink(), "{path}: {told}");
    }
    assert_eq!(fs::read_link(wanted).unwrap(), Path::new("/usr/lib/systemd/system/takt.service"));
    assert!(machine.path("etc/systemd/system/takt.service.d/10-board.conf").exists());

    let own = "[Service]\nExecStart=/usr/bin/takt serve --lanes 1\n";
    machine.put("etc/systemd/system/takt.service", own);
    machine.again(&[]);
    assert_eq!(machine.text("etc/systemd/system/takt.service"), own, "an administrator's own");
}

#[test]
fn what_people_edited_stays_and_uninstalling_leaves_settings_and_engines() {
    let machine = Machine::new("NVIDIA Jetson AGX Orin Developer Kit", 31_400_000, "0-7\n");
    assert!(machine.install(&[]).contains("(agx-orin-32gb.toml)"));
    let edited = machine.text("etc/takt/board.toml").replace("cores = [4, 5, 6, 7]", "cores = [6, 7]");
    machine.put("etc/takt/board.toml", &edited);
    machine.put("var/lib/takt/engines/mine/engine.json", "{}");
    machine.put("etc/systemd/system/takt.service.d/override.conf", "[Service]\nNice=-5\n");
    let told = machine.install(&[]);
    assert!(told.contains("keep /etc/takt/board.toml, which was edited"), "{told}");
    assert_eq!(machine.text("etc/takt/board.toml"), edited);
    assert!(machine.path("etc/takt/board.toml.new").exists());
    assert!(machine.text("etc/systemd/system/takt.service.d/10-board.conf").contains("CPUAffinity=5 6 7\n"));
    assert!(machine.run(&["--uninstall"]).status.success());
    let left: Vec<PathBuf> = machine.files();
    let override_conf = machine.path("etc/systemd/system/takt.service.d/override.conf");
    assert!(left.contains(&override_conf), "`systemctl edit` wrote it");
    assert!(left.iter().all(|path| {
        !path.starts_with(machine.path("opt"))
            && (!path.starts_with(machine.path("etc/systemd")) || *path == override_conf)
    }));
    assert!(
        machine.path("var/lib/takt/engines/mine/engine.json").exists()
            && machine.path("etc/takt/takt.env").exists()
    );
    assert!(machine.run(&["--uninstall", "--purge"]).status.success());
    assert!(!machine.path("var/lib/takt").exists() && !machine.path("etc/takt").exists());
}

#[test]
fn what_it_cannot_do_is_refused_before_anything_changes() {
    let machine = Machine::new("A laptop", 16_000_000, "0-3\n");
    let before = machine.files();
    for (args, code, words) in [
        (&["--board", "orin-nana"][..], 1, "no such file; there are: agx-orin-32gb"),
        (&[], 1, "give the binary with --binary"),
        (&["--binary", "/no/such"], 1, "no such file"),
        (&["--purge"], 1, "--uninstall"),
        (&["--bord", "x"], 2, "unknown option --bord"),
        (&["--board"], 2, "needs a value"),
    ] {
        let output = machine.run(args);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {}", stderr(&output));
        assert!(stderr(&output).contains(words), "{args:?}: {}", stderr(&output));
    }
    assert_eq!(machine.files(), before);
    assert!(machine.install(&[]).contains("(host.toml)"));
    assert!(!machine.path("etc/systemd/system/takt.service.d").exists(), "host.toml names no cores");
}
