//! Checks of shapes and addresses. Each returns what it checked, or a [`LaunchError`] with what was found and expected.

use super::{DeviceAddress, LaunchError};

/// `found`, if it is not 0.
///
/// # Errors
/// [`LaunchError::Zero`].
pub fn non_zero(what: &'static str, found: usize) -> Result<usize, LaunchError> {
    if found == 0 { Err(LaunchError::Zero { what }) } else { Ok(found) }
}

/// `found`, if it is `expected`.
///
/// # Errors
/// [`LaunchError::Mismatch`].
pub fn equal(what: &'static str, found: usize, expected: usize) -> Result<usize, LaunchError> {
    if found == expected { Ok(found) } else { Err(LaunchError::Mismatch { what, found, expected }) }
}

/// `found`, if it is a multiple of `multiple`; 0 is.
///
/// # Errors
/// [`LaunchError::NotMultiple`].
pub fn multiple_of(what: &'static str, found: usize, multiple: usize) -> Result<usize, LaunchError> {
    if found.is_multiple_of(multiple) {
        Ok(found)
    } else {
        Err(LaunchError::NotMultiple { what, found, multiple })
    }
}

/// `found`, if it is at most `max`.
///
/// # Errors
/// [`LaunchError::TooLarge`].
pub fn at_most(what: &'static str, found: usize, max: usize) -> Result<usize, LaunchError> {
    if found <= max { Ok(found) } else { Err(LaunchError::TooLarge { what, found, max }) }
}

/// `address`, if it is not null and a multiple of `alignment` bytes.
///
/// # Errors
/// [`LaunchError::Misaligned`].
pub fn aligned(
    what: &'static str,
    address: DeviceAddress,
    alignment: u64,
) -> Result<DeviceAddress, LaunchError> {
    if address != DeviceAddress::NULL && address.0.is_multiple_of(alignment) {
        Ok(address)
    } else {
        Err(LaunchError::Misaligned { what, address, alignment })
    }
}

/// `found` as a kernel's `int`.
///
/// # Errors
/// [`LaunchError::TooLarge`].
pub fn to_i32(what: &'static str, found: usize) -> Result<i32, LaunchError> {
    i32::try_from(found).map_err(|_| LaunchError::TooLarge { what, found, max: 0x7fff_ffff })
}

/// `found` as a kernel's `unsigned`, or a side of a grid.
///
/// # Errors
/// [`LaunchError::TooLarge`].
pub fn to_u32(what: &'static str, found: usize) -> Result<u32, LaunchError> {
    u32::try_from(found).map_err(|_| LaunchError::TooLarge { what, found, max: 0xffff_ffff })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_found_and_expected_is_said() {
        assert_eq!(
            multiple_of("columns", 17, 16).unwrap_err().to_string(),
            "columns: 17, expected a multiple of 16"
        );
        assert_eq!(equal("rows", 3, 4).unwrap_err().to_string(), "rows: 3, expected 4");
        assert_eq!(at_most("tokens", 9, 8).unwrap_err().to_string(), "tokens: 9, expected at most 8");
        assert_eq!(non_zero("tokens", 0).unwrap_err().to_string(), "tokens: 0, expected at least 1");
        assert_eq!(
            aligned("weights", DeviceAddress(24), 16).unwrap_err().to_string(),
            "weights: address 0x18, expected a multiple of 16 bytes"
        );
        assert!(to_i32("tokens", 1 << 31).is_err());
        assert_eq!(to_u32("tokens", 1 << 31), Ok(1 << 31));
    }

    #[test]
    fn null_is_no_buffer() {
        assert!(aligned("weights", DeviceAddress::NULL, 16).is_err());
    }
}
