//! Cubins that a device of the emulator loads as those of the compiler: the names of kernels, and nothing to run. It runs its own.

use std::path::{Path, PathBuf};

use takt_engine::backend::tensorrt::kernel_sources;
use takt_kernels_cu::{Target, cache::Cache, compiler::CompilerVersion, image::Image};

/// The kernels beside a plan.
const KERNELS: [&str; 6] =
    ["accept_trees", "kv_append", "kv_compact", "kv_snapshot", "logits_slices", "logits_combine"];
/// `e_machine` of CUDA.
const EM_CUDA: u16 = 190;
const HEADER_LEN: usize = 64;
/// Bytes of a section's entry.
const SECTION_LEN: usize = 64;

/// An ELF file with the names of [`KERNELS`] among its sections', and two empty tables that a cubin always has.
fn cubin(target: Target) -> Vec<u8> {
    let mut names = b"\0.symtab\0.strtab\0".to_vec();
    KERNELS.iter().for_each(|name| names.extend_from_slice(format!(".text.{name}\0").as_bytes()));
    let table = HEADER_LEN + names.len();
    let mut file = vec![0; HEADER_LEN];
    file[..9].copy_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1, 1, 0x33, 8]);
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    put(18, &EM_CUDA.to_le_bytes());
    put(40, &(table as u64).to_le_bytes());
    put(48, &(target.sm() << 8).to_le_bytes());
    put(58, &(SECTION_LEN as u16).to_le_bytes());
    put(60, &3_u16.to_le_bytes());
    put(62, &0_u16.to_le_bytes());
    file.extend_from_slice(&names);
    // The names themselves, then `.symtab` and `.strtab`, by where their names begin.
    for (name, offset, len) in [(0_u32, HEADER_LEN, names.len()), (1, 0, 0), (9, 0, 0)] {
        let mut section = [0; SECTION_LEN];
        section[..4].copy_from_slice(&name.to_le_bytes());
        section[4..8].copy_from_slice(&3_u32.to_le_bytes());
        section[24..32].copy_from_slice(&(offset as u64).to_le_bytes());
        section[32..40].copy_from_slice(&(len as u64).to_le_bytes());
        file.extend_from_slice(&section);
    }
    file
}

/// A folder with what `takt build --for` would compile.
pub fn folder(target: Target) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("nothing-to-run");
    let (cache, version) = (Cache::new(&folder), CompilerVersion { major: 13, minor: 0, library_bytes: 1 });
    for source in kernel_sources() {
        cache.store(&source, version, &Image::parse(cubin(target), target).unwrap()).unwrap();
    }
    folder
}
