//! The attributes of `.nv.info` sections: what the assembler tells the driver about each kernel.
//!
//! An attribute is a format byte, a code byte and two bytes that are the value itself or, in the format `SVAL`, the length of the
//! value behind them. The format is not documented; codes and layouts are as `cuobjdump -elf` names them, and the tests compare
//! what is read here with `cuobjdump -res-usage`.

use super::{
    ImageError,
    elf::{bytes_at, u16_at, u32_at},
};

/// Format byte of an attribute with a value of its own length.
const SVAL: u8 = 4;

/// Attributes of all functions, each with the function's symbol (`.nv.info`).
const FRAME_SIZE: u8 = 0x11;
const MIN_STACK_SIZE: u8 = 0x12;
const REG_COUNT: u8 = 0x2f;

/// Attributes of one kernel (`.nv.info.<kernel>`).
const MAX_THREADS: u8 = 0x05;
const PARAMETER: u8 = 0x17;

/// One attribute of one function, named by its symbol's index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FunctionInfo {
    Registers { symbol: usize, count: u32 },
    Stack { symbol: usize, bytes: u32 },
}

/// What launching a kernel needs to agree with.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct KernelInfo {
    pub max_threads: Option<u32>,
    /// In the order of the parameters.
    pub parameter_bytes: Vec<u32>,
}

/// Reads `.nv.info`.
pub(super) fn functions(section: &[u8]) -> Result<Vec<FunctionInfo>, ImageError> {
    let mut found = Vec::new();
    for (code, value) in attributes(section)? {
        let pair = || Ok((symbol_of(u32_at(value, 0)?), u32_at(value, 4)?));
        match code {
            REG_COUNT => {
                let (symbol, count) = pair()?;
                found.push(FunctionInfo::Registers { symbol, count });
            }
            FRAME_SIZE | MIN_STACK_SIZE => {
                let (symbol, bytes) = pair()?;
                found.push(FunctionInfo::Stack { symbol, bytes });
            }
            _ => {}
        }
    }
    Ok(found)
}

/// Reads `.nv.info.<kernel>`.
pub(super) fn kernel(section: &[u8]) -> Result<KernelInfo, ImageError> {
    let mut max_threads = None;
    let mut parameters = Vec::new();
    for (code, value) in attributes(section)? {
        match code {
            MAX_THREADS => {
                let sides = [u32_at(value, 0)?, u32_at(value, 4)?, u32_at(value, 8)?];
                max_threads = Some(sides.into_iter().fold(1, u32::saturating_mul));
            }
            // Index, ordinal, offset; the size stands above 18 bits of alignment and memory space.
            PARAMETER => parameters.push((u16_at(value, 4)?, u32_at(value, 8)? >> 18)),
            _ => {}
        }
    }
    parameters.sort_unstable();
    Ok(KernelInfo { max_threads, parameter_bytes: parameters.into_iter().map(|(_, bytes)| bytes).collect() })
}

/// The attributes with a value of their own length: code and value.
fn attributes(mut section: &[u8]) -> Result<Vec<(u8, &[u8])>, ImageError> {
    let what = "attributes";
    let mut found = Vec::new();
    while !section.is_empty() {
        let head = bytes_at(section, 0, 4, what)?;
        let len = if head[0] == SVAL { usize::from(u16_at(head, 2)?) } else { 0 };
        if head[0] == SVAL {
            found.push((head[1], bytes_at(section, 4, len, what)?));
        }
        section = &section[4 + len..];
    }
    Ok(found)
}

fn symbol_of(index: u32) -> usize {
    usize::try_from(index).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_come_in_order_whatever_order_they_are_written_in() {
        let parameter = |ordinal: u8, size: u8| {
            [4, PARAMETER, 12, 0, 0, 0, 0, 0, ordinal, 0, 0, 0, 0, 0xf0, size << 2, 0]
        };
        let section = [parameter(2, 4), parameter(0, 8), parameter(1, 2)].concat();
        assert_eq!(kernel(&section).unwrap().parameter_bytes, [8, 2, 4]);
    }

    #[test]
    fn an_attribute_that_ends_early_is_an_error() {
        let whole = [4, REG_COUNT, 8, 0, 1, 0, 0, 0, 40, 0, 0, 0];
        assert_eq!(functions(&whole).unwrap(), [FunctionInfo::Registers { symbol: 1, count: 40 }]);
        for len in 1..whole.len() {
            assert!(functions(&whole[..len]).is_err(), "{len}");
        }
        assert!(functions(&[4, REG_COUNT, 4, 0, 1, 0, 0, 0]).is_err());
    }
}
