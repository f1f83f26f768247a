//! `ros_discovery_info`: which nodes a participant holds, so that `ros2 node list` can name them.
//!
//! `rmw_dds_common/msg/ParticipantEntitiesInfo`: the participant's identity, then for each node its namespace, name, and
//! the identities of its readers and writers.

use super::cdr::{CdrError, CdrReader, CdrWriter};
use super::options::GidLen;
use super::{NodeName, TypeName};

/// DDS topic, without a ROS prefix.
pub const TOPIC: &str = "ros_discovery_info";
/// Its type.
pub const TYPE: TypeName = TypeName::msg("rmw_dds_common", "ParticipantEntitiesInfo");

/// Identity of a participant or an endpoint: 12 bytes of the participant, 4 of the endpoint.
pub type Guid = [u8; 16];

/// One node of a participant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeEntities {
    /// Namespace and name as the peer sent them.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Readers, as identities.
    pub readers: Vec<Guid>,
    /// Writers, as identities.
    pub writers: Vec<Guid>,
}

impl NodeEntities {
    /// A node that claims its name but offers nothing yet.
    #[must_use]
    pub fn claim(node: &NodeName) -> Self {
        Self {
            namespace: node.namespace().to_owned(),
            name: node.name().to_owned(),
            readers: Vec::new(),
            writers: Vec::new(),
        }
    }

    /// Whether this is `node`.
    #[must_use]
    pub fn is_named(&self, node: &NodeName) -> bool {
        self.namespace == node.namespace() && self.name == node.name()
    }

    /// A node without endpoints only claims its name: no ROS 2 node that is up has none.
    #[must_use]
    pub fn is_claim(&self) -> bool {
        self.readers.is_empty() && self.writers.is_empty()
    }
}

/// A participant and its nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParticipantEntities {
    /// The participant.
    pub participant: Guid,
    /// Its nodes.
    pub nodes: Vec<NodeEntities>,
}

impl ParticipantEntities {
    /// As a message.
    ///
    /// # Errors
    /// [`CdrError::TooLong`] over 32 bits.
    pub fn encode(&self, gid_len: GidLen) -> Result<Vec<u8>, CdrError> {
        let mut writer = CdrWriter::default();
        write_gid(&mut writer, self.participant, gid_len);
        writer.count(self.nodes.len())?;
        for node in &self.nodes {
            writer.string(&node.namespace)?;
            writer.string(&node.name)?;
            for gids in [&node.readers, &node.writers] {
                writer.count(gids.len())?;
                gids.iter().for_each(|gid| write_gid(&mut writer, *gid, gid_len));
            }
        }
        Ok(writer.finish())
    }

    /// From a message; the length of an identity depends on the sender's ROS release and is tried out.
    ///
    /// # Errors
    /// [`CdrError`] if it is a message of neither.
    pub fn decode(message: &[u8]) -> Result<Self, CdrError> {
        Self::decode_with(message, GidLen::Bytes16).or_else(|_| Self::decode_with(message, GidLen::Bytes24))
    }

    fn decode_with(message: &[u8], gid_len: GidLen) -> Result<Self, CdrError> {
        let mut reader = CdrReader::new(message)?;
        let participant = read_gid(&mut reader, gid_len)?;
        // A node takes at least two strings and two counts.
        let num_nodes = reader.count(16)?;
        let nodes = (0..num_nodes).map(|_| read_node(&mut reader, gid_len)).collect::<Result<_, _>>()?;
        // Senders pad a payload to 4 bytes at most; more means that the identities are longer.
        if reader.num_left() >= 4 {
            return Err(CdrError::Trailing(reader.num_left()));
        }
        Ok(Self { participant, nodes })
    }
}

fn read_node(reader: &mut CdrReader<'_>, gid_len: GidLen) -> Result<NodeEntities, CdrError> {
    Ok(NodeEntities {
        namespace: reader.string()?.to_owned(),
        name: reader.string()?.to_owned(),
        readers: read_gids(reader, gid_len)?,
        writers: read_gids(reader, gid_len)?,
    })
}

fn read_gids(reader: &mut CdrReader<'_>, gid_len: GidLen) -> Result<Vec<Guid>, CdrError> {
    let count = reader.count(gid_len.num_bytes())?;
    (0..count).map(|_| read_gid(reader, gid_len)).collect()
}

fn read_gid(reader: &mut CdrReader<'_>, gid_len: GidLen) -> Result<Guid, CdrError> {
    let bytes = reader.bytes(gid_len.num_bytes())?;
    let mut gid = [0; 16];
    gid.copy_from_slice(&bytes[..16]);
    Ok(gid)
}

fn write_gid(writer: &mut CdrWriter, gid: Guid, gid_len: GidLen) {
    writer.bytes(&gid);
    writer.bytes(&[0; 8][..gid_len.num_bytes() - gid.len()]);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entities(num_nodes: u8) -> ParticipantEntities {
        let nodes = (0..num_nodes).map(|i| NodeEntities {
            namespace: "/".to_owned(),
            name: format!("node{i}"),
            readers: vec![[i; 16]; usize::from(i)],
            writers: vec![[i + 1; 16]; 2],
        });
        ParticipantEntities { participant: [9; 16], nodes: nodes.collect() }
    }

    #[test]
    fn both_lengths_of_identities_are_read_back() {
        for gid_len in [GidLen::Bytes16, GidLen::Bytes24] {
            for num_nodes in 0..4 {
                let sent = entities(num_nodes);
                let message = sent.encode(gid_len).unwrap();
                assert_eq!(ParticipantEntities::decode(&message).unwrap(), sent, "{gid_len:?} {num_nodes}");
            }
        }
    }

    #[test]
    fn truncated_messages_are_errors() {
        let message = entities(3).encode(GidLen::Bytes16).unwrap();
        for len in 0..message.len() {
            let _ = ParticipantEntities::decode(&message[..len]);
        }
        assert!(ParticipantEntities::decode(&message[..message.len() - 1]).is_err());
    }

    #[test]
    fn a_claim_is_a_node_without_endpoints() {
        let node = NodeName::new("/robot", "takt").unwrap();
        let claim = NodeEntities::claim(&node);
        assert!(claim.is_claim() && claim.is_named(&node));
        assert!(!claim.is_named(&NodeName::new("/", "takt").unwrap()));
        assert!(!entities(1).nodes[0].is_claim());
    }
}
