//! What must hold of every kernel.

use std::{collections::BTreeMap, path::Path, process::Command};

use anyhow::{Context, bail};
use takt_kernels_cu::image::{Image, Kernel};

use super::{Built, sass};

/// Instructions that read or write local memory.
const LOCAL_MEMORY: [&str; 2] = ["LDL", "STL"];

/// What is wrong with the kernels of one cubin.
pub fn faults(built: &Built) -> Vec<String> {
    let target = built.image.target();
    let mut faults = Vec::new();
    for kernel in built.image.kernels() {
        let mut fault = |what: String| faults.push(format!("{} on {target}: {what}", kernel.name));
        if kernel.spills() {
            fault(format!("{} bytes of stack, {} of local memory", kernel.stack_bytes, kernel.local_bytes));
        }
        if kernel.max_threads.is_none() {
            fault("no __launch_bounds__".to_owned());
        }
        if kernel.shared_bytes > u64::from(target.max_shared_bytes() + target.reserved_shared_bytes()) {
            fault(format!("{} bytes of shared memory", kernel.shared_bytes));
        }
        match built.instructions.get(&kernel.name) {
            None => fault("no instructions found".to_owned()),
            Some(instructions) => {
                for opcode in instructions.keys().filter(|opcode| is_local_memory(opcode)) {
                    fault(format!("local memory: {opcode}"));
                }
            }
        }
    }
    faults
}

fn is_local_memory(opcode: &str) -> bool {
    let name = opcode.split('.').next().unwrap_or_default();
    LOCAL_MEMORY.contains(&name)
}

/// Kernels of one name in two sources: the driver layer finds them by name.
pub fn duplicate_names(built: &[Built]) -> Vec<String> {
    let mut sources: BTreeMap<&str, &str> = BTreeMap::new();
    let mut faults = Vec::new();
    for one in built {
        for kernel in one.image.kernels() {
            let first = *sources.entry(&kernel.name).or_insert(one.source.name);
            if first != one.source.name {
                faults.push(format!("{} is in {first}.cu and in {}.cu", kernel.name, one.source.name));
            }
        }
    }
    faults
}

/// Our reading of a cubin against NVIDIA's.
pub fn same_figures(tools: &Path, image: &Image) -> anyhow::Result<()> {
    let cuobjdump = tools.join("cuobjdump");
    let usage =
        sass::with_file(image, |file| sass::output(Command::new(cuobjdump).arg("-res-usage").arg(file)))?;
    let mut lines = usage.lines();
    while let Some(line) = lines.next() {
        let Some(name) = line.trim().strip_prefix("Function ") else { continue };
        let (name, figures) = (name.trim_end_matches(':'), lines.next().unwrap_or_default());
        let kernel = image.kernel(name).with_context(|| format!("{name} is not found in its cubin"))?;
        if !agrees(kernel, figures) {
            bail!("cuobjdump reads {figures:?} where we read {kernel:?}");
        }
    }
    Ok(())
}

/// Compares with a line like `REG:64 STACK:32 SHARED:0 LOCAL:0 CONSTANT[0]:372 …`.
fn agrees(kernel: &Kernel, figures: &str) -> bool {
    let ours = [
        ("REG:", u64::from(kernel.registers)),
        ("STACK:", u64::from(kernel.stack_bytes)),
        ("SHARED:", kernel.shared_bytes),
        ("LOCAL:", kernel.local_bytes),
    ];
    ours.iter().all(|(key, value)| {
        let found = figures.split_whitespace().find_map(|word| word.strip_prefix(key));
        found.and_then(|found| found.parse().ok()) == Some(*value)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn local_memory_is_told_from_other_instructions() {
        assert!(is_local_memory("STL.64") && is_local_memory("LDL") && is_local_memory("LDL.LU"));
        assert!(!is_local_memory("LDLM") && !is_local_memory("LDG.E.128") && !is_local_memory(""));
    }
}
