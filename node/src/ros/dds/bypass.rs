//! What is sent past RustDDS: with which socket, and where another participant's readers listen.

use std::collections::BTreeSet;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};

use rustdds::{DomainParticipant, GUID};

use crate::ros::{RosError, RosOptions};

/// A socket to send `what` with, for a participant that joined with `options`. It never waits: threads send that may not.
pub(super) fn socket(options: &RosOptions, what: &str) -> Result<UdpSocket, RosError> {
    let network = if options.localhost_only { Ipv4Addr::LOCALHOST } else { Ipv4Addr::UNSPECIFIED };
    let open = || -> io::Result<UdpSocket> {
        let socket = UdpSocket::bind((network, 0))?;
        socket.set_nonblocking(true)?;
        Ok(socket)
    };
    open().map_err(|error| RosError::Transport {
        what: format!("opening a socket for {what}"),
        reason: error.to_string(),
    })
}

/// IPv4 addresses of the readers that are `wanted`, by identity and topic; each once.
pub(super) fn addresses(
    participant: &DomainParticipant,
    wanted: impl Fn(GUID, &str) -> bool,
) -> BTreeSet<SocketAddr> {
    let readers = participant.discovered_readers();
    readers
        .iter()
        .filter(|reader| {
            wanted(reader.reader_proxy.remote_reader_guid, reader.subscription_topic_data.topic_name.as_str())
        })
        .flat_map(|reader| &reader.reader_proxy.unicast_locator_list)
        .filter(|locator| locator.is_udp())
        .map(|locator| SocketAddr::from(*locator))
        .filter(SocketAddr::is_ipv4)
        .collect()
}
