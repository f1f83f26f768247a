//! Where on the ROS 2 network this node is, and under which name.

use super::{Names, NodeName, Remap, RosError};

/// Highest domain whose ports still fit (7400 + 250 × 232 + 11).
pub const MAX_DOMAIN_ID: u16 = 232;

/// The node's place on the ROS 2 network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RosOptions {
    /// `ROS_DOMAIN_ID`, 0 to 232.
    pub domain_id: u16,
    /// Node name, `takt` by default.
    pub node_name: String,
    /// Namespace, `/` by default.
    pub namespace: String,
    /// Only processes on this machine.
    pub localhost_only: bool,
    /// What the environment says of that, where it has the last word.
    pub environment_range: EnvironmentRange,
    /// What carries the node.
    pub transport: TransportKind,
    /// Rules that give topics and services other names.
    pub remaps: Vec<Remap>,
    /// Length of an endpoint's identity in `ros_discovery_info`, which changed with the ROS release.
    pub gid_len: GidLen,
}

/// What carries the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TransportKind {
    /// The built-in DDS: nothing has to be installed.
    #[default]
    Dds,
    /// The robot's own ROS 2 (feature `r2r`).
    Rcl,
}

impl TransportKind {
    /// Their names in a configuration, the default first.
    pub const NAMES: &[&str] = &["dds", "rcl"];

    /// The transport called `name`, one of [`Self::NAMES`].
    #[must_use]
    pub fn named(name: &str) -> Self {
        if name == "rcl" { Self::Rcl } else { Self::Dds }
    }
}

/// What ROS 2's variables say of how far discovery reaches. rcl reads them itself, and knows more than
/// [`localhost_only`](RosOptions::localhost_only) holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum EnvironmentRange {
    /// Nothing, or something that was overridden.
    #[default]
    Unset,
    /// How far.
    Set,
    /// Nowhere: what the built-in DDS cannot do.
    Off,
}

/// Bytes of an endpoint's identity in `rmw_dds_common/Gid`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum GidLen {
    /// Iron, Jazzy, Kilted and later.
    #[default]
    Bytes16,
    /// Humble and before.
    Bytes24,
}

impl GidLen {
    /// Number of bytes.
    #[must_use]
    pub fn num_bytes(self) -> usize {
        match self {
            Self::Bytes16 => 16,
            Self::Bytes24 => 24,
        }
    }
}

impl Default for RosOptions {
    fn default() -> Self {
        Self {
            domain_id: 0,
            node_name: "takt".to_owned(),
            namespace: "/".to_owned(),
            localhost_only: false,
            environment_range: EnvironmentRange::Unset,
            transport: TransportKind::Dds,
            remaps: Vec::new(),
            gid_len: GidLen::Bytes16,
        }
    }
}

impl RosOptions {
    /// Reads what ROS 2's own environment variables say; `lookup` gives a variable's value.
    ///
    /// Honoured: `ROS_DOMAIN_ID`, `ROS_LOCALHOST_ONLY` (which wins), `ROS_AUTOMATIC_DISCOVERY_RANGE`, `ROS_DISTRO`.
    ///
    /// # Errors
    /// [`RosError::Option`] for a value ROS 2 does not know, or asks for what this transport cannot do.
    pub fn from_lookup(lookup: impl Fn(&str) -> Option<String>) -> Result<Self, RosError> {
        let set = |name: &str| lookup(name).filter(|value| !value.is_empty());
        let mut options = Self::default();
        if let Some(value) = set("ROS_DOMAIN_ID") {
            options.domain_id = parse_domain_id(&value)?;
        }
        if let Some(value) = set("ROS_AUTOMATIC_DISCOVERY_RANGE") {
            (options.localhost_only, options.environment_range) = parse_discovery_range(&value)?;
        }
        if let Some(value) = set("ROS_LOCALHOST_ONLY") {
            options.localhost_only = parse_localhost_only(&value)?;
            options.environment_range = EnvironmentRange::Set;
        }
        if set("ROS_DISTRO").is_some_and(|distro| ["foxy", "galactic", "humble"].contains(&distro.as_str())) {
            options.gid_len = GidLen::Bytes24;
        }
        Ok(options)
    }

    /// Variables that are set but that this transport cannot honour, each with what follows; to be logged once.
    #[must_use]
    pub fn unsupported(lookup: impl Fn(&str) -> Option<String>) -> Vec<&'static str> {
        UNSUPPORTED
            .iter()
            .filter(|(name, _)| lookup(name).is_some_and(|value| !value.is_empty()))
            .map(|(_, consequence)| *consequence)
            .collect()
    }

    /// What the node's names become.
    ///
    /// # Errors
    /// [`RosError::Name`] with the rule that is broken.
    pub fn names(&self) -> Result<Names, RosError> {
        Ok(Names::new(self.node()?, self.remaps.clone()))
    }

    /// The checked node name.
    ///
    /// # Errors
    /// [`RosError::Name`] with the rule that is broken.
    pub fn node(&self) -> Result<NodeName, RosError> {
        NodeName::new(&self.namespace, &self.node_name)
    }
}

const UNSUPPORTED: [(&str, &str); 3] = [
    (
        "ROS_STATIC_PEERS",
        "ROS_STATIC_PEERS is ignored: the built-in DDS finds peers by multicast and on this machine",
    ),
    (
        "ROS_DISCOVERY_SERVER",
        "ROS_DISCOVERY_SERVER is ignored: the built-in DDS speaks simple discovery only",
    ),
    (
        "ROS_SECURITY_ENABLE",
        "ROS_SECURITY_ENABLE is ignored: the built-in DDS does not encrypt; nodes with security enforced will not see this one",
    ),
];

/// A domain id as `ROS_DOMAIN_ID` holds it.
///
/// # Errors
/// [`RosError::Option`] if it is not a number from 0 to 232.
pub fn parse_domain_id(value: &str) -> Result<u16, RosError> {
    value.trim().parse().ok().filter(|&id| id <= MAX_DOMAIN_ID).ok_or_else(|| RosError::Option {
        name: "ROS_DOMAIN_ID",
        value: value.to_owned(),
        expected: "a number from 0 to 232 is expected",
    })
}

/// Whether only this machine is reached.
fn parse_discovery_range(value: &str) -> Result<(bool, EnvironmentRange), RosError> {
    match value.to_ascii_uppercase().as_str() {
        "LOCALHOST" => Ok((true, EnvironmentRange::Set)),
        "SUBNET" | "SYSTEM_DEFAULT" | "NOT_SET" => Ok((false, EnvironmentRange::Set)),
        "OFF" => Ok((true, EnvironmentRange::Off)),
        _ => Err(RosError::Option {
            name: "ROS_AUTOMATIC_DISCOVERY_RANGE",
            value: value.to_owned(),
            expected: "LOCALHOST, SUBNET, OFF or SYSTEM_DEFAULT is expected",
        }),
    }
}

fn parse_localhost_only(value: &str) -> Result<bool, RosError> {
    match value {
        "0" => Ok(false),
        "1" => Ok(true),
        _ => Err(RosError::Option {
            name: "ROS_LOCALHOST_ONLY",
            value: value.to_owned(),
            expected: "0 or 1 is expected",
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<RosOptions, RosError> {
        RosOptions::from_lookup(|name| {
            variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn an_empty_environment_gives_the_defaults_of_ros() {
        assert_eq!(read(&[]).unwrap(), RosOptions::default());
        assert_eq!(
            read(&[("ROS_DOMAIN_ID", ""), ("ROS_LOCALHOST_ONLY", "")]).unwrap(),
            RosOptions::default()
        );
    }

    #[test]
    fn the_variables_ros_documents_are_honoured() {
        let options =
            read(&[("ROS_DOMAIN_ID", "42"), ("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")]).unwrap();
        assert_eq!((options.domain_id, options.localhost_only), (42, true));
        assert!(!read(&[("ROS_AUTOMATIC_DISCOVERY_RANGE", "SUBNET")]).unwrap().localhost_only);
        let both = [("ROS_AUTOMATIC_DISCOVERY_RANGE", "SUBNET"), ("ROS_LOCALHOST_ONLY", "1")];
        assert!(read(&both).unwrap().localhost_only);
        let off = read(&[("ROS_AUTOMATIC_DISCOVERY_RANGE", "off")]).unwrap();
        assert_eq!(off.environment_range, EnvironmentRange::Off);
        assert_eq!(read(&[("ROS_DISTRO", "humble")]).unwrap().gid_len, GidLen::Bytes24);
        assert_eq!(read(&[("ROS_DISTRO", "jazzy")]).unwrap().gid_len, GidLen::Bytes16);
    }

    #[test]
    fn wrong_values_name_the_variable_and_what_is_expected() {
        for (name, value) in [
            ("ROS_DOMAIN_ID", "233"),
            ("ROS_DOMAIN_ID", "-1"),
            ("ROS_DOMAIN_ID", "zero"),
            ("ROS_LOCALHOST_ONLY", "yes"),
            ("ROS_AUTOMATIC_DISCOVERY_RANGE", "PLANET"),
        ] {
            let error = read(&[(name, value)]).unwrap_err().to_string();
            assert!(error.starts_with(&format!("{name}={value:?}: ")), "{error}");
        }
    }

    #[test]
    fn what_cannot_be_honoured_is_said() {
        let said =
            RosOptions::unsupported(|name| (name == "ROS_STATIC_PEERS").then(|| "10.0.0.2".to_owned()));
        assert_eq!(said.len(), 1);
        assert!(said[0].contains("ROS_STATIC_PEERS is ignored"));
    }
}
