//! `takt serve` under a service manager, on board files, within a memory budget.

use std::{
    io::{ErrorKind, Read as _},
    os::unix::net::UnixDatagram,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use super::harness::*;

fn board_file(name: &str) -> String {
    fixture("../../jetson-configs").join(name).display().to_string()
}

/// The next notification.
fn told(manager: &UnixDatagram) -> String {
    let mut buffer = [0; 512];
    loop {
        match manager.recv(&mut buffer) {
            Ok(len) => return String::from_utf8_lossy(&buffer[..len]).into_owned(),
            // A wait with a limit ends with any signal.
            Err(error) => assert_eq!(error.kind(), ErrorKind::Interrupted, "{error}"),
        }
    }
}

#[test]
fn a_service_manager_hears_that_the_node_is_ready_lives_and_stops() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let mut command =
        on_loopback(&["serve", "--engine", engine(), "--ros-args", "-r", "__node:=service_test"]);
    command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "10000000").env_remove("WATCHDOG_PID");
    let mut node = Node(
        command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn().unwrap(),
    );
    let hear = || told(&manager);
    assert!(hear().starts_with("STATUS=opening "));
    let ready = hear();
    assert!(ready.starts_with("READY=1\nSTATUS=/service_test is active"), "{ready}");
    assert_eq!([hear(), hear()], ["WATCHDOG=1", "WATCHDOG=1"]);
    let pid = i32::try_from(node.0.id()).unwrap();
    // As by a service manager that ends a group of processes, and by the launch file in it.
    for signal in [nix::sys::signal::Signal::SIGTERM, nix::sys::signal::Signal::SIGINT] {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal).unwrap();
    }
    while hear() != "STOPPING=1" {}
    assert!(node.0.wait().unwrap().success());
}

#[test]
fn a_node_that_is_told_to_end_while_it_opens_its_engine_ends_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let engine = copy_of(Path::new(engine()));
    let dir = engine.path().to_str().unwrap();
    let config = folder.path().join("robot.toml");
    std::fs::write(&config, "[engine]\nthreads = 1\nlanes = 1\nmax_context = 16\n").unwrap();
    let config = config.to_str().unwrap();
    let table = succeed_json(["calibrate", dir, "--config", config, "--samples", "10", "--json"]);
    // A cost table that can be read only once somebody writes it: the engine is never open.
    let table = table["path"].as_str().unwrap();
    std::fs::remove_file(table).unwrap();
    assert!(Command::new("mkfifo").arg(table).status().unwrap().success());
    let path = folder.path().join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    for is_opening_for_sure in [false, true] {
        let args = ["serve", "--engine", dir, "--config", config, "--ros-args", "-r", "__node:=opening_test"];
        let child = on_loopback(&args)
            .env("NOTIFY_SOCKET", &path)
            .env_remove("WATCHDOG_USEC")
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut node = Node(child);
        assert!(told(&manager).starts_with("STATUS=opening "));
        // Returns once the other end is opened for reading.
        let _writer = is_opening_for_sure.then(|| std::fs::File::options().write(true).open(table).unwrap());
        let pid = nix::unistd::Pid::from_raw(i32::try_from(node.0.id()).unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        assert_eq!(told(&manager), "STOPPING=1");
        let mut log = String::new();
        node.0.stderr.take().unwrap().read_to_string(&mut log).unwrap();
        assert!(node.0.wait().unwrap().success(), "{log}");
        assert!(log.contains("stopped; 0 open requests"), "{log}");
    }
}

#[test]
fn costs_are_not_measured_on_other_cores_than_the_nodes() {
    let folder = copy_of(Path::new(engine()));
    let config = folder.path().join("robot.toml");
    let config = config.to_str().unwrap();
    let dir = folder.path().to_str().unwrap();
    // One that is there beside one that is not would be measured on the first alone.
    for cores in ["[1023]", "[0, 1023]"] {
        std::fs::write(config, format!("[realtime]\ncores = {cores}\n")).unwrap();
        let words = [cores, "nothing was measured", "--slice=takt.slice", "[realtime]"];
        fail(["calibrate", dir, "--config", config, "--samples", "10"], 1, &words);
        assert!(!folder.path().join("costs").exists());
    }
}

#[test]
fn every_board_file_is_a_configuration_and_an_engine_over_its_budget_is_refused() {
    for name in ["thor-128gb", "agx-orin-64gb", "agx-orin-32gb", "orin-nx-16gb", "orin-nano-8gb", "host"] {
        let printed = succeed(["serve", "--config", &board_file(&format!("{name}.toml")), "--print-config"]);
        assert!(printed.contains("budget_mib"), "{printed}");
    }
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("tight.toml");
    std::fs::write(&config, "[memory]\nbudget_mib = 1\n").unwrap();
    let args = ["serve", "--engine", engine(), "--config", config.to_str().unwrap()];
    let output = on_loopback(&args).args(["--ros-args", "-r", "__node:=budget_test"]).output().unwrap();
    let message = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert!(message.contains("the memory budget is 1.0 MiB"), "{message}");
}

#[test]
fn doctor_compares_this_machine_with_the_board_file_it_is_given() {
    let path = board_file("orin-nano-8gb.toml");
    let found = succeed_json(["doctor", "--board", &path, "--json"]);
    assert_eq!(found["board"], path.as_str());
    let topics: Vec<&str> =
        found["findings"].as_array().unwrap().iter().filter_map(|f| f["topic"].as_str()).collect();
    for topic in ["board", "board memory", "power mode", "memory clock", "isolated cores"] {
        assert!(topics.contains(&topic), "{topics:?}");
    }
    fail(["doctor", "--board", "no-such.toml"], 1, &["no-such.toml"]);
}
