//! As much of the ELF-64 format (System V ABI, chapters 4 and 5) as a cubin needs. Every offset of a file is checked before it is used.

use super::ImageError;

/// `e_machine` of CUDA.
const EM_CUDA: u16 = 190;
/// Section without bytes in the file: `SHT_NOBITS`.
const NO_BITS: u32 = 8;
const HEADER_LEN: usize = 64;
const SECTION_LEN: usize = 64;
const SYMBOL_LEN: usize = 24;
/// Low half of `st_info`: a function.
const FUNCTION: u8 = 2;

/// A section of the file.
pub(super) struct Section<'a> {
    pub name: &'a str,
    /// Its size in memory.
    pub size: u64,
    /// Empty for sections without bytes in the file.
    pub bytes: &'a [u8],
}

/// The file's header and its sections.
pub(super) struct Elf<'a> {
    /// 7: CUDA 12 and older; 8: CUDA 13.
    pub abi_version: u8,
    pub flags: u32,
    pub sections: Vec<Section<'a>>,
}

impl<'a> Elf<'a> {
    pub(super) fn parse(file: &'a [u8]) -> Result<Self, ImageError> {
        let header = bytes_at(file, 0, HEADER_LEN, "header")?;
        if !header.starts_with(b"\x7fELF\x02\x01") {
            return Err(ImageError::NotCubin { reason: "no 64-bit little-endian ELF file" });
        }
        if u16_at(header, 18)? != EM_CUDA {
            return Err(ImageError::NotCubin { reason: "an ELF file of another machine" });
        }
        let table = to_usize(u64_at(header, 40)?, "section table")?;
        let (num_sections, names_idx) = (u16_at(header, 60)?, u16_at(header, 62)?);
        let mut sections = Vec::with_capacity(usize::from(num_sections));
        for idx in 0..usize::from(num_sections) {
            sections.push(RawSection::read(file, table, idx)?);
        }
        let names =
            sections.get(usize::from(names_idx)).ok_or(ImageError::Truncated { what: "section names" })?;
        let names = names.bytes;
        let named = |section: &RawSection<'a>| {
            let name = text_at(names, section.name)?;
            Ok(Section { name, size: section.size, bytes: section.bytes })
        };
        let sections = sections.iter().map(named).collect::<Result<_, _>>()?;
        Ok(Self { abi_version: header[8], flags: u32_at(header, 48)?, sections })
    }

    pub(super) fn section(&self, name: &str) -> Option<&Section<'a>> {
        self.sections.iter().find(|section| section.name == name)
    }

    /// Names of symbols that are functions, by their index; `None` for other symbols.
    pub(super) fn functions(&self) -> Result<Vec<Option<&'a str>>, ImageError> {
        let missing = |what| ImageError::Truncated { what };
        let symbols = self.section(".symtab").ok_or(missing("symbol table"))?.bytes;
        let names = self.section(".strtab").ok_or(missing("symbol names"))?.bytes;
        let function = |symbol: &[u8]| {
            let is_function = symbol[4] & 0xf == FUNCTION;
            is_function.then(|| text_at(names, u32_at(symbol, 0)?)).transpose()
        };
        symbols.chunks_exact(SYMBOL_LEN).map(function).collect()
    }
}

struct RawSection<'a> {
    name: u32,
    size: u64,
    bytes: &'a [u8],
}

impl<'a> RawSection<'a> {
    fn read(file: &'a [u8], table: usize, idx: usize) -> Result<Self, ImageError> {
        let what = "section table";
        let start = table.checked_add(idx * SECTION_LEN).ok_or(ImageError::Truncated { what })?;
        let header = bytes_at(file, start, SECTION_LEN, what)?;
        let size = u64_at(header, 32)?;
        let bytes = if u32_at(header, 4)? == NO_BITS {
            &[]
        } else {
            let offset = to_usize(u64_at(header, 24)?, "section")?;
            bytes_at(file, offset, to_usize(size, "section")?, "section")?
        };
        Ok(Self { name: u32_at(header, 0)?, size, bytes })
    }
}

/// `bytes[offset..offset + len]`.
pub(super) fn bytes_at<'a>(
    bytes: &'a [u8],
    offset: usize,
    len: usize,
    what: &'static str,
) -> Result<&'a [u8], ImageError> {
    let end = offset.checked_add(len).ok_or(ImageError::Truncated { what })?;
    bytes.get(offset..end).ok_or(ImageError::Truncated { what })
}

fn array_at<const LEN: usize>(bytes: &[u8], offset: usize) -> Result<[u8; LEN], ImageError> {
    let found = bytes_at(bytes, offset, LEN, "number")?;
    found.try_into().map_err(|_| ImageError::Truncated { what: "number" })
}

pub(super) fn u16_at(bytes: &[u8], offset: usize) -> Result<u16, ImageError> {
    array_at(bytes, offset).map(u16::from_le_bytes)
}

pub(super) fn u32_at(bytes: &[u8], offset: usize) -> Result<u32, ImageError> {
    array_at(bytes, offset).map(u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], offset: usize) -> Result<u64, ImageError> {
    array_at(bytes, offset).map(u64::from_le_bytes)
}

fn to_usize(value: u64, what: &'static str) -> Result<usize, ImageError> {
    usize::try_from(value).map_err(|_| ImageError::Truncated { what })
}

/// The NUL-terminated text at `offset` of a table of names.
fn text_at(names: &[u8], offset: u32) -> Result<&str, ImageError> {
    let what = "name";
    let rest = names.get(to_usize(offset.into(), what)?..).ok_or(ImageError::Truncated { what })?;
    let end = rest.iter().position(|&byte| byte == 0).ok_or(ImageError::Truncated { what })?;
    std::str::from_utf8(&rest[..end]).map_err(|_| ImageError::NotCubin { reason: "a name that is no text" })
}
