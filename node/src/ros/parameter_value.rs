//! The value of a ROS 2 parameter.

use std::fmt;

use super::message;

/// A parameter's value, one variant for each type of `rcl_interfaces/msg/ParameterType`.
#[derive(Debug, Clone, Default, PartialEq)]
pub enum ParameterValue {
    /// No value.
    #[default]
    NotSet,
    /// `bool`.
    Bool(bool),
    /// `int64`.
    Integer(i64),
    /// `float64`.
    Double(f64),
    /// `string`.
    String(String),
    /// `byte[]`.
    ByteArray(Vec<u8>),
    /// `bool[]`.
    BoolArray(Vec<bool>),
    /// `int64[]`.
    IntegerArray(Vec<i64>),
    /// `float64[]`.
    DoubleArray(Vec<f64>),
    /// `string[]`.
    StringArray(Vec<String>),
}

/// Of a message; a type that does not exist is no value.
impl From<&message::ParameterValue> for ParameterValue {
    fn from(message: &message::ParameterValue) -> Self {
        let message = message.clone();
        match message.r#type {
            1 => Self::Bool(message.bool_value),
            2 => Self::Integer(message.integer_value),
            3 => Self::Double(message.double_value),
            4 => Self::String(message.string_value),
            5 => Self::ByteArray(message.byte_array_value.into_iter().map(|byte| byte.0).collect()),
            6 => Self::BoolArray(message.bool_array_value),
            7 => Self::IntegerArray(message.integer_array_value),
            8 => Self::DoubleArray(message.double_array_value),
            9 => Self::StringArray(message.string_array_value),
            _ => Self::NotSet,
        }
    }
}

impl From<&ParameterValue> for message::ParameterValue {
    fn from(value: &ParameterValue) -> Self {
        let mut message = Self { r#type: value.type_id(), ..Self::default() };
        match value.clone() {
            ParameterValue::NotSet => {}
            ParameterValue::Bool(value) => message.bool_value = value,
            ParameterValue::Integer(value) => message.integer_value = value,
            ParameterValue::Double(value) => message.double_value = value,
            ParameterValue::String(value) => message.string_value = value,
            ParameterValue::ByteArray(value) => {
                message.byte_array_value = value.into_iter().map(message::Byte).collect();
            }
            ParameterValue::BoolArray(value) => message.bool_array_value = value,
            ParameterValue::IntegerArray(value) => message.integer_array_value = value,
            ParameterValue::DoubleArray(value) => message.double_array_value = value,
            ParameterValue::StringArray(value) => message.string_array_value = value,
        }
        message
    }
}

impl ParameterValue {
    /// The constant of `rcl_interfaces/msg/ParameterType`.
    #[must_use]
    pub fn type_id(&self) -> u8 {
        match self {
            Self::NotSet => 0,
            Self::Bool(_) => 1,
            Self::Integer(_) => 2,
            Self::Double(_) => 3,
            Self::String(_) => 4,
            Self::ByteArray(_) => 5,
            Self::BoolArray(_) => 6,
            Self::IntegerArray(_) => 7,
            Self::DoubleArray(_) => 8,
            Self::StringArray(_) => 9,
        }
    }

    /// The type's name, as `ros2 param` writes it.
    #[must_use]
    pub fn type_name(&self) -> &'static str {
        match self {
            Self::NotSet => "not set",
            Self::Bool(_) => "boolean",
            Self::Integer(_) => "integer",
            Self::Double(_) => "double",
            Self::String(_) => "string",
            Self::ByteArray(_) => "byte array",
            Self::BoolArray(_) => "boolean array",
            Self::IntegerArray(_) => "integer array",
            Self::DoubleArray(_) => "double array",
            Self::StringArray(_) => "string array",
        }
    }

    /// Whether it is an array without elements. A command line or a parameter file cannot say of which type one is.
    #[must_use]
    pub fn is_empty_array(&self) -> bool {
        match self {
            Self::ByteArray(items) => items.is_empty(),
            Self::BoolArray(items) => items.is_empty(),
            Self::IntegerArray(items) => items.is_empty(),
            Self::DoubleArray(items) => items.is_empty(),
            Self::StringArray(items) => items.is_empty(),
            Self::NotSet | Self::Bool(_) | Self::Integer(_) | Self::Double(_) | Self::String(_) => false,
        }
    }
}

impl fmt::Display for ParameterValue {
    /// As it could be written after `-p name:=`: doubles with a point, strings in quotes.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotSet => f.write_str("not set"),
            Self::Bool(value) => write!(f, "{value}"),
            Self::Integer(value) => write!(f, "{value}"),
            Self::Double(value) => write!(f, "{value:?}"),
            Self::String(value) => write!(f, "{value:?}"),
            Self::ByteArray(items) => write!(f, "{items:?}"),
            Self::BoolArray(items) => write!(f, "{items:?}"),
            Self::IntegerArray(items) => write!(f, "{items:?}"),
            Self::DoubleArray(items) => write!(f, "{items:?}"),
            Self::StringArray(items) => write!(f, "{items:?}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_written_so_that_their_type_can_be_read_back() {
        for (value, text) in [
            (ParameterValue::Bool(true), "true"),
            (ParameterValue::Integer(-5), "-5"),
            (ParameterValue::Double(2.0), "2.0"),
            (ParameterValue::String("5".into()), "\"5\""),
            (ParameterValue::DoubleArray(vec![1.0, 0.5]), "[1.0, 0.5]"),
            (ParameterValue::StringArray(vec!["a".into()]), "[\"a\"]"),
        ] {
            assert_eq!(value.to_string(), text);
        }
    }

    #[test]
    fn types_have_the_numbers_of_rcl_interfaces() {
        let values = [
            ParameterValue::NotSet,
            ParameterValue::Bool(false),
            ParameterValue::Integer(0),
            ParameterValue::Double(0.0),
            ParameterValue::String(String::new()),
            ParameterValue::ByteArray(vec![]),
            ParameterValue::BoolArray(vec![]),
            ParameterValue::IntegerArray(vec![]),
            ParameterValue::DoubleArray(vec![]),
            ParameterValue::StringArray(vec![]),
        ];
        for (number, value) in (0..).zip(&values) {
            assert_eq!(value.type_id(), number, "{}", value.type_name());
            assert_eq!(value.is_empty_array(), number >= 5);
        }
    }
}
