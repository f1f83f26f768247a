//! Formats of weights with either cache, as the command line builds, refits, shows and scores it.

use std::path::Path;

use serde_json::{Value, json};

use super::{machine::Machine, run::tuned};
use crate::harness::*;

/// A format, what it is multiplied with, and how many nats a token its score may be from the processor's, with a plain cache and with one of 8 bits: with
/// four bits on both sides a random model of two layers is 0.63 from it, with eight 0.08.
struct Kind {
    weights: &'static str,
    activations: &'static str,
    bounds: [f64; 2],
}

/// INT4 takes columns that 64 divides, which the fixture has not: `run` has the demo model in it.
const KINDS: [Kind; 4] = [
    Kind { weights: "bf16", activations: "plain", bounds: [0.05, 0.15] },
    Kind { weights: "fp8", activations: "plain", bounds: [0.05, 0.15] },
    Kind { weights: "fp8", activations: "quantized", bounds: [0.2, 0.2] },
    Kind { weights: "nvfp4", activations: "quantized", bounds: [1.0, 1.0] },
];
const TEXT: &str = "1,5,9,17,33,3,8,120,77,400,12,9,5,63,64,65";

impl Machine {
    fn score(&self, dir: &str, backend: &str) -> f64 {
        let args = ["score", dir, "--token-ids", TEXT, "--json", "--backend", backend];
        self.succeed(&args)["nll"].as_f64().unwrap()
    }
}

#[test]
fn formats_are_built_refitted_and_scored_with_either_cache() {
    let Some(machine) = Machine::running() else { return };
    let sources = [fixture("hf/tiny-llama").display().to_string(), tuned(&machine)];
    for Kind { weights, activations, bounds } in KINDS {
        // TensorRT has 4-bit floats from 10.8 on.
        if weights == "nvfp4" && machine.version < (10, 8, 0) {
            continue;
        }
        let dirs = ["base", "new"].map(|name| machine.path(&format!("{weights}-{name}")));
        for (source, dir) in sources.iter().zip(&dirs) {
            if !Path::new(dir).exists() {
                succeed(["build", source, "-o", dir, "--weights", weights, "--lm-head", "bf16"]);
            }
        }
        let [base, new] = &dirs;
        let on_the_processor = [base, new].map(|dir| machine.score(dir, "cpu"));
        for (kv, bound) in ["plain", "fp8"].into_iter().zip(bounds) {
            let what = format!("{weights} with {activations} activations and a {kv} cache");
            let into = |dir: &str, with: &[&str]| {
                let args = ["build", dir, "--tensorrt", "--plans-only", "--json"];
                machine.succeed(&[&args[..], with].concat())["plans"]["plans"][0].clone()
            };
            let size = ["--plan-lanes", "1", "--plan-context", "64", "--plan-refit"];
            let kinds = ["--plan-activations", activations, "--plan-kv", kv];
            let built = into(base, &[&size[..], &kinds].concat());
            let refitted = into(new, &["--plan-refit-from", base]);
            assert_eq!(refitted["timing_cache"], "refitted", "{what}");
            let shown = machine.succeed(&["inspect", new, "--json"])["plans"][0].clone();
            let facts = |plan: &Value| ["activations", "kv", "refittable"].map(|name| plan[name].clone());
            for plan in [&built, &refitted, &shown] {
                assert_eq!(facts(plan), [json!(activations), json!(kv), json!(true)], "{what}: {plan}");
            }
            assert_eq!(shown["runs_here"], true, "{what}");
            let found = [base, new].map(|dir| machine.score(dir, "tensorrt"));
            into(new, &[&size[..], &kinds].concat());
            let fresh = machine.score(new, "tensorrt");
            assert!(
                found[1] == fresh && found[0] != fresh,
                "{what}: {found:?}, {fresh} of a plan that was built"
            );
            for (found, expected) in found.iter().zip(on_the_processor) {
                println!("{what}: {found}, on the processor {expected}");
                assert!((found - expected).abs() < bound, "{what}: {found}, on the processor {expected}");
            }
        }
    }
    assert_eq!(machine.faults(), "");
}
