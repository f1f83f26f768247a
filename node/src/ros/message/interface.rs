//! What a ROS 2 interface is here: a Rust structure with the fields of its `.msg` file, in their order.
//!
//! [`message!`] makes one from its fields; everything else (bytes, names, the type's hash) follows from those. The files in
//! `launch/takt_msgs` are the truth for our own interfaces, ROS 2's published hashes for all others: tests compare.

use crate::ros::cdr::{CdrError, CdrReader, CdrWriter};
use crate::ros::message::type_hash::Descriptions;
use crate::ros::name::TypeName;

/// A value as it stands in a message.
pub trait Field: Sized {
    /// Fewest bytes it takes, so that a count that lies is found before anything is allocated.
    const MIN_LEN: usize;

    /// As a `.msg` file names the type.
    fn type_name() -> String;

    /// Adds the fields of every structure that it is made of.
    fn describe(_descriptions: &mut Descriptions) {}

    /// Appends the value.
    ///
    /// # Errors
    /// [`CdrError::TooLong`] over 32 bits.
    fn write(&self, writer: &mut CdrWriter) -> Result<(), CdrError>;

    /// Reads a value.
    ///
    /// # Errors
    /// [`CdrError`] for anything that is not one.
    fn read(reader: &mut CdrReader<'_>) -> Result<Self, CdrError>;
}

/// A whole interface, or one half of a service's.
pub trait Message: Field {
    /// Its name.
    const TYPE: TypeName;

    /// `(type, name)` of every field, in order.
    fn fields() -> Vec<(String, &'static str)>;

    /// As a message, with its encapsulation header.
    ///
    /// # Errors
    /// [`CdrError::TooLong`] over 32 bits.
    fn encode(&self) -> Result<Vec<u8>, CdrError> {
        let mut writer = CdrWriter::default();
        self.write(&mut writer)?;
        Ok(writer.finish())
    }

    /// From a message.
    ///
    /// # Errors
    /// [`CdrError`] for anything that is not one.
    fn decode(message: &[u8]) -> Result<Self, CdrError> {
        Self::read(&mut CdrReader::new(message)?)
    }
}

macro_rules! primitive {
    ($($ty:ty, $name:literal, $method:ident;)*) => {$(
        impl Field for $ty {
            const MIN_LEN: usize = size_of::<Self>();

            fn type_name() -> String {
                $name.to_owned()
            }

            fn write(&self, writer: &mut CdrWriter) -> Result<(), CdrError> {
                writer.$method(*self);
                Ok(())
            }

            fn read(reader: &mut CdrReader<'_>) -> Result<Self, CdrError> {
                reader.$method()
            }
        }
    )*};
}

primitive! {
    bool, "bool", bool;
    u8, "uint8", u8;
    i8, "int8", i8;
    i32, "int32", i32;
    u32, "uint32", u32;
    i64, "int64", i64;
    u64, "uint64", u64;
    f32, "float32", f32;
    f64, "float64", f64;
}

impl Field for String {
    /// Its length; some writers send no final zero with an empty one.
    const MIN_LEN: usize = 4;

    fn type_name() -> String {
        "string".to_owned()
    }

    fn write(&self, writer: &mut CdrWriter) -> Result<(), CdrError> {
        writer.string(self)
    }

    fn read(reader: &mut CdrReader<'_>) -> Result<Self, CdrError> {
        reader.string().map(str::to_owned)
    }
}

impl<T: Field> Field for Vec<T> {
    const MIN_LEN: usize = 4;

    fn type_name() -> String {
        format!("{}[]", T::type_name())
    }

    fn describe(descriptions: &mut Descriptions) {
        T::describe(descriptions);
    }

    fn write(&self, writer: &mut CdrWriter) -> Result<(), CdrError> {
        writer.count(self.len())?;
        self.iter().try_for_each(|element| element.write(writer))
    }

    fn read(reader: &mut CdrReader<'_>) -> Result<Self, CdrError> {
        let count = reader.count(T::MIN_LEN)?;
        (0..count).map(|_| T::read(reader)).collect()
    }
}

/// A sequence of at most one: ROS 2's way to leave a field out.
impl<T: Field> Field for Option<T> {
    const MIN_LEN: usize = 4;

    fn type_name() -> String {
        format!("{}[<=1]", T::type_name())
    }

    fn describe(descriptions: &mut Descriptions) {
        T::describe(descriptions);
    }

    fn write(&self, writer: &mut CdrWriter) -> Result<(), CdrError> {
        writer.count(usize::from(self.is_some()))?;
        self.iter().try_for_each(|element| element.write(writer))
    }

    fn read(reader: &mut CdrReader<'_>) -> Result<Self, CdrError> {
        match reader.count(T::MIN_LEN)? {
            0 => Ok(None),
            1 => T::read(reader).map(Some),
            count => Err(CdrError::TooMany { count, limit: 1 }),
        }
    }
}

impl<const N: usize> Field for [u8; N] {
    const MIN_LEN: usize = N;

    fn type_name() -> String {
        format!("uint8[{N}]")
    }

    fn write(&self, writer: &mut CdrWriter) -> Result<(), CdrError> {
        writer.bytes(self);
        Ok(())
    }

    fn read(reader: &mut CdrReader<'_>) -> Result<Self, CdrError> {
        let mut bytes = [0; N];
        bytes.copy_from_slice(reader.bytes(N)?);
        Ok(bytes)
    }
}

/// The least that the fields take together; a structure without fields is one byte on the wire.
pub(in crate::ros) const fn min_len(fields: &[usize]) -> usize {
    let (mut sum, mut i) = (0, 0);
    while i < fields.len() {
        sum += fields[i];
        i += 1;
    }
    if fields.is_empty() { 1 } else { sum }
}

/// Makes a structure and its [`Message`] from `.msg`-like fields:
/// `message! { /// Doc. pub struct Name = "package/msg/Name" { /// Doc. pub field: Type, … } }`.
macro_rules! message {
    ($(
        $(#[$meta:meta])*
        pub struct $name:ident = $package:literal $kind:ident $ros_name:literal {
            $( $(#[$field_meta:meta])* pub $field:ident: $ty:ty, )*
        }
    )*) => {$(
        $(#[$meta])*
        #[derive(Debug, Clone, PartialEq, Default)]
        pub struct $name {
            $( $(#[$field_meta])* pub $field: $ty, )*
        }

        impl $crate::ros::message::interface::Field for $name {
            const MIN_LEN: usize = $crate::ros::message::interface::min_len(
                &[$( <$ty as $crate::ros::message::interface::Field>::MIN_LEN ),*],
            );

            fn type_name() -> String {
                <Self as $crate::ros::message::interface::Message>::TYPE.to_string()
            }

            fn describe(descriptions: &mut $crate::ros::message::type_hash::Descriptions) {
                descriptions.insert(
                    <Self as $crate::ros::message::interface::Field>::type_name(),
                    <Self as $crate::ros::message::interface::Message>::fields(),
                );
                $( <$ty as $crate::ros::message::interface::Field>::describe(descriptions); )*
            }

            fn write(
                &self,
                writer: &mut $crate::ros::cdr::CdrWriter,
            ) -> Result<(), $crate::ros::cdr::CdrError> {
                // Nothing to write is written as one byte: C++ has no empty structures.
                if <Self as $crate::ros::message::interface::Message>::fields().is_empty() {
                    writer.u8(0);
                }
                $( $crate::ros::message::interface::Field::write(&self.$field, writer)?; )*
                Ok(())
            }

            fn read(
                reader: &mut $crate::ros::cdr::CdrReader<'_>,
            ) -> Result<Self, $crate::ros::cdr::CdrError> {
                if <Self as $crate::ros::message::interface::Message>::fields().is_empty() {
                    reader.u8()?;
                }
                Ok(Self { $( $field: $crate::ros::message::interface::Field::read(reader)?, )* })
            }
        }

        impl $crate::ros::message::interface::Message for $name {
            const TYPE: $crate::ros::name::TypeName = $crate::ros::name::TypeName {
                package: $package,
                kind: $crate::ros::name::Kind::$kind,
                name: $ros_name,
            };

            fn fields() -> Vec<(String, &'static str)> {
                vec![$( (
                    <$ty as $crate::ros::message::interface::Field>::type_name(),
                    stringify!($field).trim_start_matches("r#"),
                ), )*]
            }
        }
    )*};
}

pub(in crate::ros) use message;
