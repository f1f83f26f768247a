//! The hash that ROS 2 knows a type by since Iron: RIHS01, the SHA-256 of its description as JSON (REP-2016).

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};

use sha2::{Digest, Sha256};

use super::interface::Message;

/// Fields of each structure by its name.
pub type Descriptions = BTreeMap<String, Vec<(String, &'static str)>>;

/// `RIHS01_` and 64 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TypeHash([u8; 32]);

impl TypeHash {
    /// The hash of `M`.
    #[must_use]
    pub fn of<M: Message>() -> Self {
        let mut descriptions = Descriptions::new();
        M::describe(&mut descriptions);
        let root = M::TYPE.to_string();
        let own = descriptions.remove(&root).unwrap_or_default();
        let others: Vec<String> =
            descriptions.iter().map(|(name, fields)| description(name, fields)).collect();
        let json = format!(
            "{{\"type_description\": {}, \"referenced_type_descriptions\": [{}]}}",
            description(&root, &own),
            others.join(", ")
        );
        Self(Sha256::digest(json).into())
    }
}

impl fmt::Display for TypeHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RIHS01_")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

fn description(name: &str, fields: &[(String, &'static str)]) -> String {
    // What C++ and the wire have in place of an empty structure.
    let placeholder = [("uint8".to_owned(), "structure_needs_at_least_one_member")];
    let fields = if fields.is_empty() { &placeholder } else { fields };
    let mut json = format!("{{\"type_name\": \"{name}\", \"fields\": [");
    for (i, (ty, name)) in fields.iter().enumerate() {
        let separator = if i == 0 { "" } else { ", " };
        let FieldType { id, capacity, nested } = FieldType::parse(ty);
        // Writing to a string cannot fail.
        let _ = write!(
            json,
            "{separator}{{\"name\": \"{name}\", \"type\": {{\"type_id\": {id}, \"capacity\": {capacity}, \
             \"string_capacity\": 0, \"nested_type_name\": \"{nested}\"}}}}"
        );
    }
    json + "]}"
}

/// `type_description_interfaces/msg/FieldType`.
struct FieldType<'a> {
    id: u8,
    capacity: u32,
    nested: &'a str,
}

impl<'a> FieldType<'a> {
    /// From a type as a `.msg` file names it: `uint8[16]`, `string[]`, `takt_msgs/msg/Sampling[<=1]`.
    fn parse(ty: &'a str) -> Self {
        const ARRAY: u8 = 48;
        const BOUNDED_SEQUENCE: u8 = 96;
        const SEQUENCE: u8 = 144;
        let (element, length) = match ty.split_once('[') {
            Some((element, length)) => (element, Some(length.trim_end_matches(']'))),
            None => (ty, None),
        };
        let (family, capacity) = match length {
            None => (0, 0),
            Some("") => (SEQUENCE, 0),
            Some(length) => match length.strip_prefix("<=") {
                Some(bound) => (BOUNDED_SEQUENCE, bound.parse().unwrap_or(0)),
                None => (ARRAY, length.parse().unwrap_or(0)),
            },
        };
        let primitive = match element {
            "int8" => 2,
            "uint8" => 3,
            "int32" => 6,
            "uint32" => 7,
            "int64" => 8,
            "uint64" => 9,
            "float32" => 10,
            "float64" => 11,
            "bool" => 15,
            "byte" => 16,
            "string" => 17,
            _ => return Self { id: family + 1, capacity, nested: element },
        };
        Self { id: family + primitive, capacity, nested: "" }
    }
}

#[cfg(test)]
mod tests {
    use super::super::*;

    #[test]
    fn the_hash_of_a_string_is_the_one_every_ros_2_since_iron_prints() {
        let hash = TypeHash::of::<Text>().to_string();
        assert_eq!(hash, "RIHS01_df668c740482bbd48fb39d76a70dfd4bd59db1288021743503259e948f6b1a18");
    }
}
