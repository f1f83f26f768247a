//! The ports of a participant (RTPS 2.3, 9.6.1.1), and which participant numbers are of use.
//!
//! RustDDS 0.15.1 takes the first number whose port for discovery is free. If that number's port for user data is not, it hears
//! user data on any other port and says so of its readers, but its writers go on naming the port it does not have. No
//! acknowledgement ever reaches them: a sample that got lost is not sent again, and a volatile writer never tells its readers
//! which samples were not for them, so that they wait for those for good and hand over nothing behind them. On Linux the ports
//! of domains 102 to 214 are among those that the kernel gives to any program that asks for none in particular.

use std::io;
use std::net::{Ipv4Addr, UdpSocket};

/// Numbers that RustDDS tries.
const MAX_PARTICIPANTS: u16 = 120;

/// Where a participant hears of others.
fn discovery_port(domain_id: u16, participant_id: u16) -> io::Result<u16> {
    port(domain_id, 10 + 2 * u32::from(participant_id))
}

/// Where a participant hears user data.
pub(super) fn user_traffic_port(domain_id: u16, participant_id: u16) -> io::Result<u16> {
    port(domain_id, 11 + 2 * u32::from(participant_id))
}

fn port(domain_id: u16, offset: u32) -> io::Result<u16> {
    let port = 7400 + 250 * u32::from(domain_id) + offset;
    u16::try_from(port).map_err(|_| io::Error::other(format!("no port {port}")))
}

/// Takes the discovery ports of the numbers that are of no use, up to the first one that is: while they are held, RustDDS
/// passes them over.
///
/// # Errors
/// A number without ports.
pub(super) fn hold_useless(domain_id: u16) -> io::Result<Vec<UdpSocket>> {
    let mut useless = Vec::new();
    for participant_id in 0..MAX_PARTICIPANTS {
        let Ok(discovery) = listen(discovery_port(domain_id, participant_id)?) else { continue };
        // Given back before the discovery port is, so that nobody who has the one finds the other taken by us.
        if listen(user_traffic_port(domain_id, participant_id)?).is_ok() {
            break;
        }
        useless.push(discovery);
    }
    Ok(useless)
}

/// As RustDDS does, whatever networks it is to use.
fn listen(port: u16) -> io::Result<UdpSocket> {
    UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_those_of_the_specification() {
        assert_eq!(discovery_port(0, 0).unwrap(), 7410);
        assert_eq!(user_traffic_port(0, 0).unwrap(), 7411);
        assert_eq!(user_traffic_port(7, 3).unwrap(), 9167);
        assert!(user_traffic_port(232, 119).is_err());
    }

    #[test]
    fn a_number_is_passed_over_while_somebody_has_its_port_for_user_data() {
        // The suites use 1 to 230.
        let domain_id = 231;
        assert!(hold_useless(domain_id).unwrap().is_empty());
        let taken = [0, 2].map(|number| listen(user_traffic_port(domain_id, number).unwrap()).unwrap());
        let discovery = listen(discovery_port(domain_id, 1).unwrap()).unwrap();
        let useless = hold_useless(domain_id).unwrap();
        let ports: Vec<u16> = useless.iter().map(|socket| socket.local_addr().unwrap().port()).collect();
        assert_eq!(ports, [0, 2].map(|number| discovery_port(domain_id, number).unwrap()));
        drop((useless, taken, discovery));
        assert!(hold_useless(domain_id).unwrap().is_empty());
    }
}
