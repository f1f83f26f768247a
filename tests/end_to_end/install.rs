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
    let link = fs::read_link(machine.path("usr/local/bin/takt")).unwrap();
    assert_eq!(link, Path::new("/opt/takt/bin/takt"));
    let again = machine.install(&["--isolate"]);
    assert!(
        !again.contains("  write ") && !again.contains("  make ") && !again.contains("  link "),
        "{again}"
    );
}

#[test]
fn what_people_edited_stays_and_uninstalling_leaves_settings_and_engines() {
    let machine = Machine::new("NVIDIA Jetson AGX Orin Developer Kit", 31_400_000, "0-7\n");
    assert!(machine.install(&[]).contains("(agx-orin-32gb.toml)"));
    let edited = machine.text("etc/takt/board.toml").replace("cores = [4, 5, 6, 7]", "cores = [6, 7]");
    machine.put("etc/takt/board.toml", &edited);
    machine.put("var/lib/takt/engines/mine/engine.json", "{}");
    let told = machine.install(&[]);
    assert!(told.contains("keep /etc/takt/board.toml, which was edited"), "{told}");
    assert_eq!(machine.text("etc/takt/board.toml"), edited);
    assert!(machine.path("etc/takt/board.toml.new").exists());
    assert!(machine.text("etc/systemd/system/takt.service.d/10-board.conf").contains("CPUAffinity=5 6 7\n"));
    assert!(machine.run(&["--uninstall"]).status.success());
    let left: Vec<PathBuf> = machine.files();
    assert!(
        left.iter()
            .all(|path| !path.starts_with(machine.path("opt"))
                && !path.starts_with(machine.path("etc/systemd")))
    );
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
