//! The instructions of a cubin, as `nvdisasm` reads them.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{self, Command},
    sync::atomic::{AtomicU64, Ordering},
};

use anyhow::{Context, bail};
use takt_kernels_cu::image::Image;

/// How often each instruction stands in each kernel: kernel → opcode with its modifiers (`LDG.E.128`) → number.
pub type Instructions = BTreeMap<String, BTreeMap<String, usize>>;

/// Disassembles `image` with the `nvdisasm` of the folder `tools`.
pub fn disassemble(tools: &Path, image: &Image) -> anyhow::Result<Instructions> {
    let text = with_file(image, |cubin| output(Command::new(tools.join("nvdisasm")).arg("-c").arg(cubin)))?;
    Ok(parse(&text))
}

/// Runs `task` with the cubin in a file.
pub fn with_file<R>(image: &Image, task: impl FnOnce(&Path) -> anyhow::Result<R>) -> anyhow::Result<R> {
    let path = temporary_path();
    fs::write(&path, image.bytes()).with_context(|| path.display().to_string())?;
    let result = task(&path);
    // A file of some kilobytes in the folder for temporary files.
    drop(fs::remove_file(&path));
    result
}

fn temporary_path() -> PathBuf {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let unique = COUNTER.fetch_add(1, Ordering::Relaxed);
    std::env::temp_dir().join(format!("takt-{}-{unique}.cubin", process::id()))
}

/// What a command writes to its standard output.
pub fn output(command: &mut Command) -> anyhow::Result<String> {
    let name = command.get_program().display().to_string();
    let output = command.output().with_context(|| name.clone())?;
    if !output.status.success() {
        bail!("{name}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Reads `nvdisasm -c`: a section `.text.<kernel>`, then lines `/*0010*/ @!P0 LDG.E.128 R4, … ;`.
fn parse(text: &str) -> Instructions {
    let mut instructions = Instructions::new();
    let mut kernel = None;
    for line in text.lines() {
        if let Some(section) = line.trim().strip_prefix(".section\t") {
            let name = section.split(',').next().unwrap_or_default();
            kernel = name.strip_prefix(".text.").map(str::to_owned);
        } else if let (Some(kernel), Some(opcode)) = (&kernel, opcode(line)) {
            *instructions.entry(kernel.clone()).or_default().entry(opcode.to_owned()).or_default() += 1;
        }
    }
    instructions
}

fn opcode(line: &str) -> Option<&str> {
    let (_, instruction) = line.trim().strip_prefix("/*")?.split_once("*/")?;
    let words = instruction.trim_start_matches(['{', ' ', '\t']).split_whitespace();
    let opcode = words.into_iter().find(|word| !word.starts_with('@'))?;
    let opcode = opcode.trim_end_matches([';', ',']);
    opcode.starts_with(|first: char| first.is_ascii_uppercase()).then_some(opcode)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opcodes_are_counted_by_kernel() {
        let text = "
	.section	.text.twice,\"ax\",@progbits
	.sectioninfo	@\"SHI_REGISTERS=64\"
        .global         twice
.text.twice:
        /*0000*/                   LDC R1, c[0x0][0x37c] ;
        /*0010*/              @!P0 LDG.E.128 R4, desc[UR4][R2.64] ;
        /*0020*/                   LDG.E.128 R8, desc[UR4][R2.64+0x10] ;
        /*0030*/                   EXIT ;
.L_x_0:
	.section	.nv.info,\"\"
        /*0000*/ 	.byte	0x04, 0x2f
	.section	.text.other,\"ax\",@progbits
        /*0000*/              @P0 EXIT ;";
        let found = parse(text);
        assert_eq!(found.len(), 2);
        assert_eq!(found["twice"]["LDG.E.128"], 2);
        assert_eq!(found["twice"]["LDC"], 1);
        assert_eq!(found["other"], BTreeMap::from([("EXIT".to_owned(), 1)]));
    }
}
