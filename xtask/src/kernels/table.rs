//! The kernels with what they take on each target, as a table.

use std::collections::{BTreeMap, BTreeSet};

use takt_kernels_cu::{Target, image::Kernel};

use super::Built;

/// Prints registers a thread and shared memory a block, of each kernel on each target.
pub fn print(built: &[Built]) {
    let targets: BTreeSet<Target> = built.iter().map(|one| one.image.target()).collect();
    let mut rows: BTreeMap<(&str, &str), BTreeMap<Target, String>> = BTreeMap::new();
    for one in built {
        for kernel in one.image.kernels() {
            let row = rows.entry((one.source.name, &kernel.name)).or_default();
            row.insert(one.image.target(), cell(kernel));
        }
    }
    let width = rows.keys().map(|(_, name)| name.len()).max().unwrap_or(0);
    print!("{:width$} {:>7}", "kernel", "threads");
    for target in &targets {
        print!("  {:>16}", target.name());
    }
    println!("    (registers, shared memory)");
    for ((_, name), row) in &rows {
        print!("{name:width$} {:>7}", threads(built, name));
        for target in &targets {
            print!("  {:>16}", row.get(target).map_or("-", String::as_str));
        }
        println!();
    }
}

/// Prints how often each instruction stands in the kernels whose name begins with `prefix`.
pub fn print_instructions(built: &[Built], prefix: &str) {
    for one in built {
        for (kernel, opcodes) in one.instructions.iter().filter(|(kernel, _)| kernel.starts_with(prefix)) {
            println!("{kernel} on {}:", one.image.target());
            for (opcode, number) in opcodes {
                println!("  {number:>6} {opcode}");
            }
        }
    }
}

fn cell(kernel: &Kernel) -> String {
    let memory = match kernel.shared_bytes {
        0 => String::new(),
        bytes => format!(" {bytes} B"),
    };
    let spills = match u64::from(kernel.stack_bytes) + kernel.local_bytes {
        0 => String::new(),
        bytes => format!(" SPILLS {bytes}"),
    };
    format!("{}{memory}{spills}", kernel.registers)
}

fn threads(built: &[Built], name: &str) -> String {
    let kernel = built.iter().find_map(|one| one.image.kernel(name));
    kernel.and_then(|kernel| kernel.max_threads).map_or_else(|| "?".to_owned(), |threads| threads.to_string())
}
