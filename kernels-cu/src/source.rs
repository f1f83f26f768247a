//! The CUDA C++ files, as text inside the program, so that a board with the compiler's library can build them without a checkout.

use sha2::{Digest, Sha256};

use crate::Target;

/// One `.cu` file: the kernels of one concept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Source {
    /// The file's name without `.cu`.
    pub name: &'static str,
    /// CUDA C++17; `#include`s name [`HEADERS`] or headers of the CUDA runtime.
    pub text: &'static str,
}

/// A header shared by sources, by the name they include it with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// `common/….cuh`.
    pub name: &'static str,
    /// CUDA C++17.
    pub text: &'static str,
}

macro_rules! source {
    ($name:literal) => {
        Source { name: $name, text: include_str!(concat!("../cu/", $name, ".cu")) }
    };
}

macro_rules! header {
    ($name:literal) => {
        Header { name: $name, text: include_str!(concat!("../cu/", $name)) }
    };
}

/// Every source of a model's kernels. Each is compiled on its own; names of kernels are unique across them.
pub const SOURCES: &[Source] = &[
    source!("accept"),
    source!("attention_decode"),
    source!("attention_prefill"),
    source!("embed"),
    source!("kv_append"),
    source!("kv_compact"),
    source!("linear"),
    source!("linear_wide"),
    source!("logits"),
    source!("rms_norm"),
    source!("rope_kv"),
    source!("rows"),
];

/// Sources that only measurements use, so that no engine carries them.
pub const MEASURES: &[Source] = &[source!("bandwidth"), source!("perception")];

/// Sources that only tests launch, so that no engine carries them: single steps whose bits the kernels that fuse them are held against.
pub const REFERENCES: &[Source] = &[source!("swiglu")];

/// Sources that go wrong on purpose, for a check of what is done about it; no engine carries them.
pub const FAULTS: &[Source] = &[source!("faults")];

/// Every source there is.
pub fn all() -> impl Iterator<Item = &'static Source> {
    SOURCES.iter().chain(MEASURES).chain(REFERENCES).chain(FAULTS)
}

/// Every header of ours.
pub const HEADERS: &[Header] = &[
    header!("common/attention.cuh"),
    header!("common/attention_queries.cuh"),
    header!("common/attention_warp.cuh"),
    header!("common/kv.cuh"),
    header!("common/row_choice.cuh"),
    header!("common/swiglu.cuh"),
    header!("common/token_weight.cuh"),
    header!("common/types.cuh"),
    header!("common/warp.cuh"),
    header!("common/weights.cuh"),
];

/// The compiler's options that decide what comes out, besides the target. No fast mathematics: results are compared with the CPU's.
pub(crate) const OPTIONS: &[&str] = &["--std=c++17"];

/// The source of that name.
#[must_use]
pub fn find(name: &str) -> Option<&'static Source> {
    all().find(|source| source.name == name)
}

impl Source {
    /// The text with [`HEADERS`] in the place of their `#include`s, each once, so that the compiler needs no folder of ours. Its messages
    /// name the files and lines as they were.
    #[must_use]
    pub fn expanded(&self) -> String {
        let mut expansion = Expansion { text: String::new(), included: Vec::new() };
        expansion.add(&format!("{}.cu", self.name), self.text);
        expansion.text
    }

    /// SHA-256 over everything of ours that decides the cubin for `target`: the source with its headers, and the options.
    #[must_use]
    pub fn content_hash(&self, target: Target) -> [u8; 32] {
        let expanded = self.expanded();
        let mut hash = Sha256::new();
        for text in [target.name(), self.name, &expanded].into_iter().chain(OPTIONS.iter().copied()) {
            // Lengths go in too, so that no two lists of texts run together to the same bytes.
            hash.update(text.len().to_le_bytes());
            hash.update(text.as_bytes());
        }
        hash.finalize().into()
    }
}

/// A text being put together from files.
struct Expansion {
    text: String,
    included: Vec<&'static str>,
}

impl Expansion {
    fn add(&mut self, file: &str, text: &str) {
        self.continue_at(file, 1);
        for (number, line) in (1..).zip(text.lines()) {
            match included_header(file, line) {
                Some(header) if self.included.contains(&header.name) => self.text.push('\n'),
                Some(header) => {
                    self.included.push(header.name);
                    self.add(header.name, header.text);
                    self.continue_at(file, number + 1);
                }
                // Each comes once here; in the one text that is compiled it would be a warning.
                None if line.trim() == "#pragma once" => self.text.push('\n'),
                None => {
                    self.text.push_str(line);
                    self.text.push('\n');
                }
            }
        }
    }

    fn continue_at(&mut self, file: &str, line: usize) {
        self.text.push_str(&format!("#line {line} \"{file}\"\n"));
    }
}

/// The header that `line` of `file` includes, by its name from `cu/` or from the file's own folder; `None` for headers not ours, which
/// are left to the compiler.
fn included_header(file: &str, line: &str) -> Option<&'static Header> {
    let quoted = line.trim_start().strip_prefix("#include")?.trim_start().strip_prefix('"')?;
    let (name, _) = quoted.split_once('"')?;
    let beside =
        file.rsplit_once('/').map_or_else(|| name.to_owned(), |(folder, _)| format!("{folder}/{name}"));
    HEADERS.iter().find(|header| header.name == name || header.name == beside)
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fs, path::Path};

    use super::*;

    /// Names of `.cu` or `.cuh` files in a folder of `cu/`.
    fn files(folder: &str, extension: &str) -> BTreeSet<String> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
        let entries = fs::read_dir(folder).unwrap();
        let paths = entries.map(|entry| entry.unwrap().path());
        let chosen = paths.filter(|path| path.extension().is_some_and(|found| found == extension));
        chosen.map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn every_file_of_the_folder_is_embedded() {
        let sources: BTreeSet<_> = all().map(|source| source.name.to_owned()).collect();
        assert_eq!(sources, files("cu", "cu"));
        let headers: BTreeSet<_> = HEADERS.iter().map(|header| header.name.to_owned()).collect();
        let on_disk = files("cu/common", "cuh");
        assert_eq!(headers, on_disk.iter().map(|name| format!("common/{name}.cuh")).collect());
    }

    #[test]
    fn no_include_of_ours_is_left_to_the_compiler() {
        for source in all() {
            let expanded = source.expanded();
            let left = expanded.lines().find(|line| line.trim_start().starts_with("#include \""));
            assert_eq!(left, None, "in {}", source.name);
        }
    }

    #[test]
    fn a_header_comes_once_and_lines_keep_their_numbers() {
        let text =
            "#include \"common/types.cuh\"\n#include \"common/types.cuh\"\nint x;\n#include <cuda_bf16.h>\n";
        let expanded = Source { name: "a", text }.expanded();
        assert!(expanded.starts_with("#line 1 \"a.cu\"\n#line 1 \"common/types.cuh\"\n"), "{expanded}");
        assert!(expanded.ends_with("#line 2 \"a.cu\"\n\nint x;\n#include <cuda_bf16.h>\n"), "{expanded}");
        assert_eq!(expanded.matches("#line 1 \"common/types.cuh\"").count(), 1);
    }

    #[test]
    fn a_header_is_found_beside_the_one_that_includes_it() {
        let found = |file, line| included_header(file, line).map(|header| header.name);
        assert_eq!(found("common/warp.cuh", "#include \"types.cuh\""), Some("common/types.cuh"));
        assert_eq!(
            found("common/warp.cuh", " #include \"common/types.cuh\" // all"),
            Some("common/types.cuh")
        );
        assert_eq!(found("linear.cu", "#include \"types.cuh\""), None);
        assert_eq!(found("linear.cu", "#include <cuda_bf16.h>"), None);
        assert_eq!(found("linear.cu", "int include;"), None);
    }

    #[test]
    fn the_hash_changes_with_text_name_and_target() {
        let source = Source { name: "a", text: "bc" };
        let hash = source.content_hash(Target::Orin);
        assert_eq!(hash, source.content_hash(Target::Orin));
        assert_ne!(hash, source.content_hash(Target::Thor));
        assert_ne!(hash, Source { name: "ab", text: "c" }.content_hash(Target::Orin));
        assert_ne!(hash, Source { name: "a", text: "bd" }.content_hash(Target::Orin));
    }
}
