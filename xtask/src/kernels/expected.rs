//! Instructions that a kernel was written for. The compiler is free to choose others, silently and many times slower.

use takt_kernels_cu::Target;

use super::{Built, sass::Instructions};

/// Kernels and the instruction each of them must have.
struct Rule {
    /// What their names begin with.
    kernels: &'static [&'static str],
    targets: &'static [Target],
    /// The opcode's name; one of them is enough.
    opcodes: &'static [&'static str],
    /// Modifiers it must have, in any order.
    modifiers: &'static [&'static str],
    /// What that instruction is.
    what: &'static str,
}

const ATTENTION: [&str; 3] = ["attention_bf16_", "attention_fp8_", "attention_int8_"];

/// Products of many tokens.
const WIDE: [&str; 4] = ["linear_bf16_wide_", "linear_fp8_wide_", "linear_nvfp4_wide_", "linear_int4_wide_"];

/// Targets that convert to and from E4M3 in hardware, and that begin a kernel before the one ahead has ended.
const SINCE_HOPPER: [Target; 3] = [Target::Hopper, Target::Thor, Target::Blackwell];

const RULES: &[Rule] = &[
    Rule {
        kernels: &["linear_"],
        targets: &Target::ALL,
        opcodes: &["HMMA"],
        modifiers: &["16816", "F32", "BF16"],
        what: "tensor core multiplication of BF16 with F32 sums",
    },
    Rule {
        kernels: &["linear_"],
        targets: &Target::ALL,
        opcodes: &["LDG"],
        modifiers: &["128", "NA"],
        what: "16-byte load of weights that leaves the first-level cache alone",
    },
    Rule {
        kernels: &["linear_"],
        targets: &SINCE_HOPPER,
        opcodes: &["ACQBULK"],
        modifiers: &[],
        what: "wait for the kernel ahead, before whose end it may begin",
    },
    Rule {
        kernels: &WIDE,
        targets: &Target::ALL,
        opcodes: &["LDGSTS"],
        modifiers: &["128"],
        what: "16-byte copy of activations to shared memory, past the registers",
    },
    // With CUDA 13.0 the hardware's conversion of E2M1 ends in F16, from where BF16 is farther than by this multiplication; see
    // docs/performance-gpu.md for the compiler that has another.
    Rule {
        kernels: &["linear_nvfp4_"],
        targets: &Target::ALL,
        opcodes: &["HFMA2", "HMUL2"],
        modifiers: &["BF16_V2"],
        what: "packed BF16 multiplication of E2M1 with its scale",
    },
    Rule {
        kernels: &ATTENTION,
        targets: &Target::ALL,
        opcodes: &["HMMA"],
        modifiers: &["16816", "F32", "BF16"],
        what: "tensor core multiplication of BF16 with F32 sums",
    },
    Rule {
        kernels: &ATTENTION,
        targets: &Target::ALL,
        opcodes: &["LDG"],
        modifiers: &["128"],
        what: "16-byte load of keys and values",
    },
    Rule {
        kernels: &["perception_gemm"],
        targets: &Target::ALL,
        opcodes: &["HMMA"],
        modifiers: &["16816", "F32", "BF16"],
        what: "tensor core multiplication of BF16 with F32 sums",
    },
    Rule {
        kernels: &["read_memory"],
        targets: &Target::ALL,
        opcodes: &["LDG"],
        modifiers: &["128", "NA"],
        what: "16-byte load that leaves the first-level cache alone",
    },
    Rule {
        kernels: &["kv_append", "kv_compact", "kv_snapshot"],
        targets: &Target::ALL,
        // Where the pointer is chosen among several, the compiler does not see that it is global memory.
        opcodes: &["LDG", "LD"],
        modifiers: &["128"],
        what: "16-byte load of rows",
    },
    Rule {
        kernels: &["fault_trap"],
        targets: &Target::ALL,
        opcodes: &["BPT"],
        modifiers: &["TRAP"],
        what: "trap",
    },
    Rule {
        kernels: &["fault_write"],
        targets: &Target::ALL,
        opcodes: &["STG", "ST"],
        modifiers: &[],
        what: "write to the address it is given",
    },
    Rule {
        kernels: &["rope_kv_fp8"],
        targets: &SINCE_HOPPER,
        opcodes: &["F2FP"],
        modifiers: &["E4M3"],
        what: "conversion to E4M3 in hardware",
    },
];

/// Kernels without the instruction they were written for, and, if these are all kernels there are, rules without a kernel.
pub fn faults(built: &[Built], whole: bool) -> Vec<String> {
    let kernels: Vec<_> = built.iter().map(|one| (one.image.target(), &one.instructions)).collect();
    RULES.iter().flat_map(|rule| rule.faults(&kernels, whole)).collect()
}

impl Rule {
    fn faults(&self, kernels: &[(Target, &Instructions)], whole: bool) -> Vec<String> {
        let mut faults = Vec::new();
        let mut num_met = vec![0_usize; self.kernels.len()];
        for (target, instructions) in kernels.iter().filter(|(target, _)| self.targets.contains(target)) {
            for (kernel, opcodes) in *instructions {
                let Some(idx) = self.kernels.iter().position(|prefix| kernel.starts_with(prefix)) else {
                    continue;
                };
                num_met[idx] += 1;
                if !opcodes.keys().any(|opcode| self.is_met_by(opcode)) {
                    faults.push(format!("{kernel} on {target}: no {} ({})", self.what, self.name()));
                }
            }
        }
        for (prefix, _) in self.kernels.iter().zip(num_met).filter(|&(_, num)| whole && num == 0) {
            faults.push(format!("there is no kernel {prefix}…, of which a {} is expected", self.what));
        }
        faults
    }

    fn is_met_by(&self, opcode: &str) -> bool {
        let mut parts = opcode.split('.');
        let name = parts.next().unwrap_or_default();
        let found: Vec<&str> = parts.collect();
        self.opcodes.contains(&name) && self.modifiers.iter().all(|modifier| found.contains(modifier))
    }

    fn name(&self) -> String {
        let names = self.opcodes.join("|");
        self.modifiers.iter().fold(names, |name, modifier| format!("{name}.{modifier}"))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    const LOADS: Rule = Rule {
        kernels: &["linear_"],
        targets: &[Target::Thor],
        opcodes: &["LDG"],
        modifiers: &["128"],
        what: "16-byte load",
    };

    fn instructions(kernel: &str, opcode: &str) -> Instructions {
        BTreeMap::from([(kernel.to_owned(), BTreeMap::from([(opcode.to_owned(), 1)]))])
    }

    #[test]
    fn a_kernel_without_its_instruction_is_named() {
        let narrow = instructions("linear_bf16_1", "LDG.E.64");
        let faults = LOADS.faults(&[(Target::Thor, &narrow)], false);
        assert_eq!(faults, ["linear_bf16_1 on sm_110a: no 16-byte load (LDG.128)"]);
        assert!(LOADS.faults(&[(Target::Orin, &narrow)], false).is_empty());
        let wide = instructions("linear_bf16_1", "LDG.E.NA.LTC128B.128.CONSTANT");
        assert!(LOADS.faults(&[(Target::Thor, &wide)], true).is_empty());
        assert!(!LOADS.is_met_by("LDGSTS.E.128") && !LOADS.is_met_by("LDG.E.LTC128B"));
    }

    #[test]
    fn a_rule_without_a_kernel_is_a_fault_where_all_kernels_are_there() {
        let other = instructions("embed_bf16", "LDG.E.128");
        assert_eq!(LOADS.faults(&[(Target::Thor, &other)], false).len(), 0);
        assert_eq!(LOADS.faults(&[(Target::Thor, &other)], true).len(), 1);
    }
}
