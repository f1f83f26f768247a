//! Where another participant's readers listen, for what is sent past RustDDS.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use rustdds::{DomainParticipant, GUID};

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
