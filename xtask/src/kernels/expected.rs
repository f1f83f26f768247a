//! Instructions that a kernel was written for. The compiler is free to choose others, silently and many times slower.

use takt_kernels_cu::Target;

use super::Built;

/// Kernels and the instruction each of them must have.
struct Rule {
    /// What their names begin with.
    kernels: &'static str,
    targets: &'static [Target],
    /// What the opcode begins with; one of them is enough.
    opcodes: &'static [&'static str],
    /// All modifiers the opcode must have.
    modifiers: &'static [&'static str],
    why: &'static str,
}

const RULES: &[Rule] = &[];

/// Kernels without the instruction they were written for, and, if these are all kernels there are, rules without a kernel.
pub fn faults(built: &[Built], whole: bool) -> Vec<String> {
    RULES.iter().flat_map(|rule| rule.faults(built, whole)).collect()
}

impl Rule {
    fn faults(&self, built: &[Built], whole: bool) -> Vec<String> {
        let mut faults = Vec::new();
        let mut num_kernels = 0;
        for one in built.iter().filter(|one| self.targets.contains(&one.image.target())) {
            for (kernel, instructions) in &one.instructions {
                if !kernel.starts_with(self.kernels) {
                    continue;
                }
                num_kernels += 1;
                if !instructions.keys().any(|opcode| self.is_met_by(opcode)) {
                    faults.push(format!("{kernel} on {}: no {}", one.image.target(), self.why));
                }
            }
        }
        if whole && num_kernels == 0 {
            faults.push(format!(
                "no kernel's name begins with {:?}: the rule about {} is of no use",
                self.kernels, self.why
            ));
        }
        faults
    }

    fn is_met_by(&self, opcode: &str) -> bool {
        let mut parts = opcode.split('.');
        let name = parts.next().unwrap_or_default();
        let modifiers: Vec<&str> = parts.collect();
        self.opcodes.contains(&name) && self.modifiers.iter().all(|modifier| modifiers.contains(modifier))
    }
}
