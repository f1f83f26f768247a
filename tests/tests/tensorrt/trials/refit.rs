//! A plan that is given another model's weights says what a plan built of that model says.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde_json::{Map, Value};
use takt_engine::{dir::PlanActivations, quant::WeightKind};
use takt_engine_builder::{
    BuildError,
    export::KvType,
    plans::{DevicePlans, PlanOptions},
};

use super::{Answers, Ground, demo, record};

/// Which tensors of the demo model the plan's first model has otherwise. Those of both are large: what they say is nonsense.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spoilt {
    /// Those that no scale of activations or of a cache follows from: behind attention and the feed-forward layer.
    Outputs,
    /// All matrices of layers.
    Layers,
}

impl Spoilt {
    const OUTPUTS: [&str; 2] = ["o_proj.weight", "down_proj.weight"];

    fn has(self, tensor: &str) -> bool {
        match self {
            Self::Outputs => Self::OUTPUTS.iter().any(|name| tensor.ends_with(name)),
            Self::Layers => tensor.contains("_proj."),
        }
    }
}

/// A plan to refit.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    pub weights: WeightKind,
    pub activations: PlanActivations,
    pub kv: Option<KvType>,
    pub spoilt: Spoilt,
}

const PLAIN: Case =
    Case { weights: WeightKind::Bf16, activations: PlanActivations::Plain, kv: None, spoilt: Spoilt::Layers };

/// Every format of weights, quantized activations with the scales of the first model and with others, and a cache of 8 bits beside them.
pub const CASES: [Case; 7] = [
    PLAIN,
    Case { weights: WeightKind::Int4, ..PLAIN },
    Case {
        weights: WeightKind::Fp8,
        activations: PlanActivations::Quantized,
        spoilt: Spoilt::Outputs,
        ..PLAIN
    },
    Case { weights: WeightKind::Fp8, activations: PlanActivations::Quantized, ..PLAIN },
    Case {
        weights: WeightKind::Nvfp4,
        activations: PlanActivations::Quantized,
        spoilt: Spoilt::Outputs,
        ..PLAIN
    },
    Case { weights: WeightKind::Nvfp4, activations: PlanActivations::Quantized, ..PLAIN },
    Case {
        weights: WeightKind::Fp8,
        activations: PlanActivations::Quantized,
        kv: Some(KvType::Fp8),
        ..PLAIN
    },
];

/// What came of a case.
#[derive(Debug, PartialEq, Eq)]
pub enum Came {
    Refitted,
    /// TensorRT takes not all anew in which the models differ.
    Refused,
    /// This TensorRT or GPU has no such weights.
    NotHere,
}

impl Ground {
    /// Builds a plan of nonsense, gives it the demo model's weights, and holds what it then says against a plan that was built of those.
    pub fn refits(&self, case: Case) -> Came {
        let how = PlanOptions {
            activations: case.activations,
            kv: case.kv,
            is_refittable: true,
            ..PlanOptions::default()
        };
        // An FP8 cache is for those that take such weights.
        if !self.plans(PlanOptions::default()).unwrap().takes(case.weights) {
            return Came::NotHere;
        }
        let plans = self.plans(how).unwrap();
        let Case { weights, activations, kv, spoilt } = case;
        let name = |what: &str| format!("{weights}-{activations:?}-{kv:?}-{spoilt:?}-{what}");
        let nonsense = self.engine(&name("nonsense"), &self.spoilt(spoilt), weights);
        let [refitted, fresh] = ["refitted", "fresh"].map(|it| self.engine(&name(it), &demo(), weights));
        let pattern = self.add(&nonsense, &plans).unwrap();
        let answers = |dir: &Path| self.answers(self.open(dir, |_| {}).unwrap());
        let of_nonsense = answers(&nonsense);

        let entry = match self.add(&refitted, &DevicePlans::open_refit(&nonsense).unwrap()) {
            Ok(entry) => entry,
            Err(BuildError::Unsupported(fact))
                if fact.contains("differs in more than the weights it takes") =>
            {
                println!("{case:?}: {fact}");
                return Came::Refused;
            }
            Err(error) => panic!("{case:?}: {error}"),
        };
        assert_eq!((entry.activations, entry.kv), (pattern.activations, pattern.kv));
        assert_eq!(entry.refittable, pattern.refittable);
        self.add(&fresh, &plans).unwrap();
        let (found, expected) = (answers(&refitted), answers(&fresh));
        self.assert_alike(&found, &expected, &format!("{case:?}"));
        assert!(differ(&of_nonsense, &expected), "{case:?}: other weights say something else");
        // It is the demo model, too: what both plans would do wrong alike is seen.
        if activations == PlanActivations::Plain {
            self.assert_alike(&found, &self.answers_of_the_processor(&fresh), &format!("{case:?}, plain"));
        }
        Came::Refitted
    }

    /// The demo model's checkpoint with every other sign of some tensors turned.
    fn spoilt(&self, spoilt: Spoilt) -> PathBuf {
        let path = self.path(&format!("{spoilt:?}"));
        if path.exists() {
            return path;
        }
        fs::create_dir(&path).unwrap();
        for file in ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"] {
            fs::copy(demo().join(file), path.join(file)).unwrap();
        }
        fs::copy(demo().join("chat_template.jinja"), path.join("chat_template.jinja")).unwrap();
        let mut bytes = fs::read(demo().join("model.safetensors")).unwrap();
        let begin = 8 + usize::try_from(u64::from_le_bytes(bytes[..8].try_into().unwrap())).unwrap();
        let header: Map<String, Value> = serde_json::from_slice(&bytes[8..begin]).unwrap();
        let mut num_spoilt = 0;
        for (name, tensor) in header.iter().filter(|(name, _)| spoilt.has(name)) {
            assert_eq!(tensor["dtype"], "BF16", "{name}");
            let at =
                |idx: usize| begin + usize::try_from(tensor["data_offsets"][idx].as_u64().unwrap()).unwrap();
            // The sign is in the second byte of two.
            bytes[at(0)..at(1)].iter_mut().skip(1).step_by(4).for_each(|byte| *byte ^= 0x80);
            num_spoilt += 1;
        }
        assert!(num_spoilt > 0, "{spoilt:?}");
        fs::write(path.join("model.safetensors"), bytes).unwrap();
        path
    }
}

/// Whether no line is answered alike.
fn differ(some: &Answers, others: &Answers) -> bool {
    some.iter().zip(others).all(|(one, other)| one != other)
}

/// All of [`CASES`]; what came of each.
pub fn every_case(ground: &Ground) -> Vec<(Case, Came)> {
    let mut came = Vec::new();
    for case in CASES {
        let how = ground.refits(case);
        let Case { weights, activations, kv, spoilt } = case;
        let kv = kv.map_or("plain", KvType::name);
        record(&format!(
            "refit, {weights}, activations {activations:?}, cache {kv}, other {spoilt:?}: {how:?}"
        ));
        came.push((case, how));
    }
    came
}
