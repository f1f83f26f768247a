//! Between configuration values and parameter messages.

use crate::config::Value;
use crate::config::schema::{Accepts, Key};
use crate::ros::message::{FloatingPointRange, IntegerRange, ParameterDescriptor, ParameterValue};

use super::Change;

/// Types of parameters, as `rcl_interfaces/msg/ParameterType` numbers them.
pub(super) mod kind {
    pub const NOT_SET: u8 = 0;
    pub const BOOL: u8 = 1;
    pub const INTEGER: u8 = 2;
    pub const DOUBLE: u8 = 3;
    pub const STRING: u8 = 4;
    pub const INTEGER_ARRAY: u8 = 7;
    pub const STRING_ARRAY: u8 = 9;

    pub fn name(kind: u8) -> &'static str {
        match kind {
            NOT_SET => "nothing",
            BOOL => "a bool",
            INTEGER => "an integer",
            DOUBLE => "a double",
            STRING => "a string",
            5 => "an array of bytes",
            6 => "an array of bools",
            INTEGER_ARRAY => "an array of integers",
            8 => "an array of doubles",
            STRING_ARRAY => "an array of strings",
            _ => "a value of an unknown type",
        }
    }
}

/// The parameter type of a key.
pub(super) fn kind_of(accepts: Accepts) -> u8 {
    match accepts {
        Accepts::Text | Accepts::Word(_) => kind::STRING,
        Accepts::Whole(..) => kind::INTEGER,
        Accepts::Number(..) => kind::DOUBLE,
        Accepts::Flag => kind::BOOL,
        Accepts::Wholes(_) => kind::INTEGER_ARRAY,
    }
}

/// A configuration value as a message.
pub(super) fn to_message(value: &Value) -> ParameterValue {
    let integer = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    let empty = ParameterValue::default();
    match value {
        Value::Text(text) => ParameterValue { r#type: kind::STRING, string_value: text.clone(), ..empty },
        Value::Whole(number) => {
            ParameterValue { r#type: kind::INTEGER, integer_value: integer(*number), ..empty }
        }
        Value::Number(number) => ParameterValue { r#type: kind::DOUBLE, double_value: *number, ..empty },
        Value::Flag(flag) => ParameterValue { r#type: kind::BOOL, bool_value: *flag, ..empty },
        Value::Wholes(numbers) => ParameterValue {
            r#type: kind::INTEGER_ARRAY,
            integer_array_value: numbers.iter().copied().map(integer).collect(),
            ..empty
        },
    }
}

/// The configuration value of a message for a key that accepts `accepts`.
///
/// # Errors
/// Which type was found and which is expected; that a number is negative.
pub(super) fn from_message(message: &ParameterValue, accepts: Accepts) -> Result<Value, String> {
    let whole =
        |number: i64| u64::try_from(number).map_err(|_| format!("{number} found, {accepts} expected"));
    match (message.r#type, kind_of(accepts)) {
        (kind::STRING, kind::STRING) => Ok(Value::Text(message.string_value.clone())),
        (kind::BOOL, kind::BOOL) => Ok(Value::Flag(message.bool_value)),
        (kind::INTEGER, kind::INTEGER) => whole(message.integer_value).map(Value::Whole),
        (kind::DOUBLE, kind::DOUBLE) => Ok(Value::Number(message.double_value)),
        // `ros2 param set N sampling.temperature 1` sends an integer.
        (kind::INTEGER, kind::DOUBLE) => Ok(Value::Number(message.integer_value as f64)),
        (kind::INTEGER_ARRAY, kind::INTEGER_ARRAY) => message
            .integer_array_value
            .iter()
            .map(|number| whole(*number))
            .collect::<Result<_, _>>()
            .map(Value::Wholes),
        (found, expected) => Err(format!("{} found, {} expected", kind::name(found), kind::name(expected))),
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
        name: format!("{}.{}", key.section, key.name),
        r#type: kind_of(key.accepts),
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
