//! The processor: what it is, its SIMD instructions, its clocks.

use std::collections::BTreeSet;

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
use takt_engine::backend::cpu::kernels::Isa;

use super::{Finding, field, read};

pub(super) fn examine() -> Vec<Finding> {
    let mut findings = vec![cores(), simd()];
    findings.extend(clocks());
    findings
}

/// Name of the board, where there is one, and of its processor.
#[must_use]
pub fn processor() -> String {
    let cpuinfo = read("/proc/cpuinfo").unwrap_or_default();
    let name =
        field(&cpuinfo, "model name").or_else(|| field(&cpuinfo, "Hardware")).unwrap_or("unknown processor");
    let board = read("/proc/device-tree/model").map(|model| format!("{model}, ")).unwrap_or_default();
    format!("{board}{name}")
}

fn cores() -> Finding {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    Finding::good("cpu", format!("{}, {} cores, {threads} threads usable", processor(), num_cores(threads)))
}

/// Physical cores: distinct sibling lists; `fallback` where the kernel does not tell.
fn num_cores(fallback: usize) -> usize {
    let siblings: BTreeSet<String> = (0..1024)
        .map_while(|cpu| read(format!("/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")))
        .collect();
    if siblings.is_empty() { fallback } else { siblings.len() }
}

#[cfg(target_arch = "x86_64")]
fn simd() -> Finding {
    let has = [
        ("AVX2", is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")),
        ("AVX-512", is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw")),
        ("VNNI", is_x86_feature_detected!("avx512vnni")),
    ];
    if has.iter().all(|(_, there)| !there) {
        return Finding::note("simd", "no AVX2", "the portable kernels run, many times slower");
    }
    rate(&has, "the widest kernels are not used; answers take longer")
}

#[cfg(target_arch = "aarch64")]
fn simd() -> Finding {
    use std::arch::is_aarch64_feature_detected;
    let has = [
        ("NEON", is_aarch64_feature_detected!("neon")),
        ("dot products", is_aarch64_feature_detected!("dotprod")),
        ("8-bit matrix multiplication", is_aarch64_feature_detected!("i8mm")),
    ];
    rate(&has, "the quickest 8-bit kernels are not used; reading a prompt takes longer")
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn simd() -> Finding {
    Finding::note(
        "simd",
        std::env::consts::ARCH,
        "no kernels for this processor: the portable ones run, many times slower",
    )
}

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
fn rate(has: &[(&str, bool)], effect: &str) -> Finding {
    let kernels = format!(", kernels in use: {}", Isa::detect());
    let names = |there| has.iter().filter(|f| f.1 == there).map(|f| f.0).collect::<Vec<_>>().join(", ");
    let missing = names(false);
    if missing.is_empty() {
        Finding::good("simd", names(true) + &kernels)
    } else {
        Finding::note("simd", names(true) + &kernels, format!("without {missing}: {effect}"))
    }
}

fn clocks() -> Option<Finding> {
    let folder = "/sys/devices/system/cpu/cpu0/cpufreq";
    let Some(governor) = read(format!("{folder}/scaling_governor")) else {
        let effect = "takt cannot tell whether clocks drop (usual in virtual machines and containers)";
        return Some(Finding::note("clocks", "no frequency control visible", effect));
    };
    let mhz = |name| Some(read(format!("{folder}/{name}"))?.parse::<u64>().ok()? / 1000);
    let (now, most) = (mhz("scaling_cur_freq").unwrap_or(0), mhz("cpuinfo_max_freq").unwrap_or(0));
    let found = format!("governor {governor}, {now} of {most} MHz");
    Some(if governor == "performance" {
        Finding::good("clocks", found)
    } else {
        Finding::note(
            "clocks",
            found,
            "the first answer after a pause runs on low clocks; `performance` avoids it",
        )
    })
}
