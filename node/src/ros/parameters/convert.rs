//! Configuration keys as parameters.

use crate::config::Value;
use crate::config::ros_parameters::name_of;
use crate::config::schema::{Accepts, Key};
use crate::ros::ParameterValue;
use crate::ros::message::{FloatingPointRange, IntegerRange, ParameterDescriptor};

use super::Change;

/// The parameter type of a key, as `rcl_interfaces/msg/ParameterType` numbers them.
fn type_of(accepts: Accepts) -> u8 {
    let example = match accepts {
        Accepts::Text | Accepts::Word(_) => ParameterValue::String(String::new()),
        Accepts::Whole(..) => ParameterValue::Integer(0),
        Accepts::Number(..) => ParameterValue::Double(0.0),
        Accepts::Flag => ParameterValue::Bool(false),
        Accepts::Wholes(_) => ParameterValue::IntegerArray(Vec::new()),
        Accepts::Texts => ParameterValue::StringArray(Vec::new()),
    };
    example.type_id()
}

/// A configuration value as a parameter's.
pub(super) fn from_key(value: &Value) -> ParameterValue {
    let integer = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    match value {
        Value::Text(text) => ParameterValue::String(text.clone()),
        Value::Whole(number) => ParameterValue::Integer(integer(*number)),
        Value::Number(number) => ParameterValue::Double(*number),
        Value::Flag(flag) => ParameterValue::Bool(*flag),
        Value::Texts(texts) => ParameterValue::StringArray(texts.clone()),
        Value::Wholes(numbers) => {
            ParameterValue::IntegerArray(numbers.iter().copied().map(integer).collect())
        }
    }
}

/// What `ros2 param describe` shows of a key.
pub(super) fn describe(key: &Key) -> ParameterDescriptor {
    let change = Change::of(key.section, key.name);
    let mut constraints = Vec::new();
    if let Accepts::Word(_) | Accepts::Wholes(_) = key.accepts {
        constraints.push(key.accepts.to_string());
    }
    if change == Change::Unconfigured {
        constraints.push("changes only while the node is unconfigured".to_owned());
    }
    let integer = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    ParameterDescriptor {
        name: name_of(key),
        r#type: type_of(key.accepts),
        description: key.doc.to_owned(),
        additional_constraints: constraints.join("; "),
        read_only: change == Change::Never,
        dynamic_typing: false,
        floating_point_range: match key.accepts {
            Accepts::Number(from_value, to_value) => {
                Some(FloatingPointRange { from_value, to_value, step: 0.0 })
            }
            _ => None,
        },
        integer_range: match key.accepts {
            Accepts::Whole(least, most) => {
                Some(IntegerRange { from_value: integer(least), to_value: integer(most), step: 1 })
            }
            _ => None,
        },
    }
}
