//! What a service manager is told (`sd_notify(3)`): ready, what goes on, still alive, stopping. Without one nothing is sent.

use std::{
    io,
    os::{
        linux::net::SocketAddrExt as _,
        unix::net::{SocketAddr, UnixDatagram},
    },
    time::Duration,
};

/// The service manager that started this process, or nobody.
#[derive(Debug)]
pub struct Service {
    manager: Option<(UnixDatagram, SocketAddr)>,
    watchdog: Option<Duration>,
}

impl Service {
    /// Whoever `NOTIFY_SOCKET` names; `lookup` gives an environment variable's value, `pid` is this process.
    #[must_use]
    pub fn from_lookup(lookup: impl Fn(&str) -> Option<String>, pid: u32) -> Self {
        let manager = lookup("NOTIFY_SOCKET").filter(|name| !name.is_empty()).and_then(|name| {
            connect(&name)
                .map_err(|error| {
                    tracing::warn!("NOTIFY_SOCKET={name:?}: {error}; nobody is told when the node is ready")
                })
                .ok()
        });
        // Set for one process only: a child that inherits the variables must not feed its parent's watchdog.
        let is_ours = lookup("WATCHDOG_PID").is_none_or(|text| text.parse() == Ok(pid));
        let watchdog = lookup("WATCHDOG_USEC")
            .and_then(|text| text.parse().ok())
            .filter(|micros| is_ours && *micros > 0)
            .map(Duration::from_micros);
        Self { manager, watchdog }
    }

    /// How often [`Self::keep_alive`] must come at least; `None` when nobody watches.
    #[must_use]
    pub fn watchdog(&self) -> Option<Duration> {
        self.watchdog.filter(|_| self.manager.is_some())
    }

    /// The node answers from now on; `status` is shown by `systemctl status`.
    pub fn ready(&self, status: &str) {
        self.send(&format!("READY=1\nSTATUS={}", one_line(status)));
    }

    /// What goes on, for `systemctl status`.
    pub fn status(&self, status: &str) {
        self.send(&format!("STATUS={}", one_line(status)));
    }

    /// Whoever watches is to wait for another period.
    pub fn keep_alive(&self) {
        if self.watchdog.is_some() {
            self.send("WATCHDOG=1");
        }
    }

    /// The node ends by itself or because it was told to.
    pub fn stopping(&self) {
        self.send("STOPPING=1");
    }

    fn send(&self, state: &str) {
        let Some((socket, address)) = &self.manager else { return };
        if let Err(error) = socket.send_to_addr(state.as_bytes(), address) {
            tracing::debug!("the service manager was not told {state:?}: {error}");
        }
    }
}

/// `name` is a path, or begins with `@` for a name in the kernel's own space.
fn connect(name: &str) -> io::Result<(UnixDatagram, SocketAddr)> {
    let address = match name.strip_prefix('@') {
        Some(abstract_name) => SocketAddr::from_abstract_name(abstract_name)?,
        None => SocketAddr::from_pathname(name)?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?; // a manager that does not read must not hold the node up
    Ok((socket, address))
}

/// A line break would begin another assignment.
fn one_line(status: &str) -> String {
    status.replace(['\n', '\r'], " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(socket: &str, more: &[(&str, &str)]) -> Service {
        let lookup = |name: &str| {
            let found = more.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
            if name == "NOTIFY_SOCKET" { Some(socket.to_owned()) } else { found }
        };
        Service::from_lookup(lookup, 42)
    }

    fn receive(manager: &UnixDatagram) -> String {
        let mut buffer = [0; 256];
        let len = manager.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..len].to_vec()).unwrap()
    }

    #[test]
    fn a_manager_is_told_in_the_words_of_sd_notify() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        let service =
            service(path.to_str().unwrap(), &[("WATCHDOG_USEC", "10000000"), ("WATCHDOG_PID", "42")]);
        assert_eq!(service.watchdog(), Some(Duration::from_secs(10)));
        service.ready("answers\nREADY=0");
        service.status("opening the engine");
        service.keep_alive();
        service.stopping();
        let told: Vec<String> = (0..4).map(|_| receive(&manager)).collect();
        assert_eq!(
            told,
            ["READY=1\nSTATUS=answers READY=0", "STATUS=opening the engine", "WATCHDOG=1", "STOPPING=1"]
        );
    }

    #[test]
    fn a_name_in_the_kernels_own_space_is_reached() {
        let name = format!("takt-test-{}", std::process::id());
        let manager = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        service(&format!("@{name}"), &[]).ready("");
        assert_eq!(receive(&manager), "READY=1\nSTATUS=");
    }

    #[test]
    fn another_process_s_watchdog_is_not_fed_and_without_a_manager_nothing_happens() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        manager.set_nonblocking(true).unwrap();
        let other = service(path.to_str().unwrap(), &[("WATCHDOG_USEC", "10000000"), ("WATCHDOG_PID", "7")]);
        other.keep_alive();
        assert_eq!(other.watchdog(), None);
        assert!(manager.recv(&mut [0; 16]).is_err());
        let nobody = Service::from_lookup(|name| (name == "WATCHDOG_USEC").then(|| "1000".into()), 42);
        nobody.ready("unheard");
        nobody.keep_alive();
        assert_eq!(nobody.watchdog(), None);
        service("/nowhere/at/all", &[]).ready("unheard");
    }
}
