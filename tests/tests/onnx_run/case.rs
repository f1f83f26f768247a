//! The same steps on both sides, and how far they are apart.

use std::path::{Path, PathBuf};

use takt_engine::{
    Engine, EngineOptions,
    backend::cpu::ActivationArithmetic,
    kv::LaneId,
    quant::WeightKind,
    step::{LogitsWanted, StepPlan},
};
use takt_engine_builder::{
    BuildOptions, build,
    export::{Compute, Contract, ExportOptions, Form, Variant, export},
};
use takt_tests::{backends::relative_errors, checkpoint::fixtures};

use crate::{
    lanes::{Lanes, Outputs},
    section::{Buffer, SCRATCH_ROWS, Share},
};

/// Tokens a lane holds.
const LANE_CAPACITY: usize = 48;
const NUM_LANES: usize = 3;

/// An export, and what it is compared by.
pub struct Case<'a> {
    pub source: PathBuf,
    pub build: BuildOptions<'a>,
    pub export: ExportOptions<'a>,
}

impl Case<'_> {
    /// A fixture with weights of `kind`, products in 32 bits.
    pub fn new(source: &str, kind: WeightKind, form: Form, variant: Variant) -> Self {
        let export = ExportOptions {
            target: "tensorrt-10.16".parse().unwrap(),
            form: Some(form),
            compute: Compute::F32,
            variant: Some(variant),
            max_context: Some(LANE_CAPACITY + SCRATCH_ROWS),
            hidden_states: true,
            ..ExportOptions::default()
        };
        Self { source: fixtures().join(source), build: BuildOptions::new(kind), export }
    }

    /// Builds and exports into `folder`.
    pub fn export(&self, folder: &Path) -> (PathBuf, PathBuf, Contract) {
        let (engine, out) = (folder.join("engine"), folder.join("export"));
        build(&self.source, &engine, &self.build, &mut |_| {}).unwrap();
        let report = export(&engine, &out, &self.export, &mut |_| {}).unwrap();
        (engine, out, report.contract)
    }

    /// The largest difference of logits and of residual streams, each relative to the largest value of the step; all have to be within `bound`.
    #[track_caller]
    pub fn check(&self, bound: f64) {
        let folder = tempfile::tempdir().unwrap();
        let (engine, out, contract) = self.export(folder.path());
        let (mut lanes, mut cpu) = (Lanes::open(&out, &contract, NUM_LANES), open(&engine));
        let (mut worst, mut where_) = (0.0f64, String::new());
        for (number, step) in steps(contract.variant == Variant::Eagle3).iter().enumerate() {
            let (found, expected) = (lanes.run(step), on_cpu(&mut cpu, step));
            for ((found, expected), share) in found.iter().zip(&expected).zip(step) {
                let mut compare = |what: String, found: &[f32], expected: &[f32]| {
                    let expected: Vec<f64> = expected.iter().map(|&value| f64::from(value)).collect();
                    let error = relative_errors(found, &expected).0;
                    // Not a number is the worst.
                    if error > worst || error.is_nan() {
                        (worst, where_) = (error, format!("{what} of lane {} in step {number}", share.lane));
                    }
                };
                compare("logits".into(), &found.logits, &expected.logits);
                assert_eq!(found.hidden.len(), expected.hidden.len());
                for (layer, (found, expected)) in found.hidden.iter().zip(&expected.hidden).enumerate() {
                    compare(format!("stream {layer}"), found, expected);
                }
            }
        }
        println!("{}: {worst:.1e}, {where_}", self.name());
        assert!(
            worst <= bound,
            "{}: {worst:.1e} of the largest value, at most {bound:.0e}: {where_}",
            self.name()
        );
    }

    /// Runs all steps, and says where the export is, what went in and what came out.
    pub fn record(&self, folder: &Path) -> (PathBuf, Vec<(String, Buffer)>) {
        let (_, out, contract) = self.export(folder);
        let mut lanes = Lanes::open(&out, &contract, NUM_LANES);
        lanes.recorded = Some(Vec::new());
        for step in steps(contract.variant == Variant::Eagle3) {
            lanes.run(&step);
        }
        (out, lanes.recorded.unwrap_or_default())
    }

    pub fn name(&self) -> String {
        let ExportOptions { form, compute, variant, activations, kv, .. } = self.export;
        let source = self.source.file_name().unwrap().to_string_lossy();
        let (form, variant) = (form.unwrap().name(), variant.unwrap().name());
        let kv = kv.unwrap_or_default().name();
        let (weights, compute, activations) = (self.build.weights, compute.name(), activations.name());
        format!("{source} {weights} {form} {compute} {variant} {activations}, {kv} cache")
    }
}

fn open(engine: &Path) -> Engine {
    let options = EngineOptions {
        arithmetic: ActivationArithmetic::F32,
        num_lanes: NUM_LANES,
        lane_capacity: Some(LANE_CAPACITY),
        speculation: false,
        ..EngineOptions::default()
    };
    let mut engine = Engine::open(engine, &options).unwrap();
    let num_layers = engine.backend.spec().num_layers;
    engine.backend.capture(&(0..=num_layers).collect::<Vec<_>>()).unwrap();
    engine
}

/// A prompt in two slices, a ragged section of two, decode steps with an idle lane between and alone, trees of which paths are kept.
fn steps(trees: bool) -> Vec<Vec<Share>> {
    let text = Share::text;
    let mut steps = vec![
        vec![text(0, &[5, 17, 3, 29, 11, 40, 8])],
        vec![text(0, &[23, 4]), text(1, &[12, 7, 31, 2, 19])],
        vec![text(2, &[14, 9, 27])],
        vec![text(0, &[6]), text(2, &[33])],
        vec![text(1, &[9])],
    ];
    if trees {
        steps.push(vec![
            Share::tree(0, &[10, 21, 34, 22, 1], &[0, 0, 0, 1, 3], &[0, 1, 3]),
            Share::tree(2, &[14, 30, 25], &[0, 0, 0], &[0, 2]),
        ]);
        steps.push(vec![text(0, &[27]), text(1, &[18]), text(2, &[3])]);
        steps.push(vec![Share::tree(0, &[13, 2, 36, 5], &[0, 0, 1, 0], &[0])]);
    }
    steps.push(vec![text(0, &[16, 28, 35]), text(1, &[20])]);
    steps
}

fn on_cpu(engine: &mut Engine, step: &[Share]) -> Vec<Outputs> {
    let mut plan = StepPlan::default();
    for share in step {
        match share.is_tree {
            true => plan.push_tree(LaneId(share.lane), &share.tokens, &share.parents),
            false => plan.push(LaneId(share.lane), &share.tokens, LogitsWanted::All),
        }
    }
    let spec = engine.backend.spec().clone();
    let output = engine.backend.run_step(&plan).unwrap();
    let (width, num_streams) = (spec.hidden_size, spec.num_layers + 1);
    let features = |token: usize, layer: usize| {
        let first = (token * num_streams + layer) * width;
        &output.features()[first..first + width]
    };
    let mut outputs = Vec::new();
    for (segment, place) in plan.segments.iter().zip(0..) {
        let stream =
            |layer| segment.tokens.clone().flat_map(|token| features(token, layer)).copied().collect();
        let hidden = (0..num_streams).map(stream).collect();
        outputs.push(Outputs { logits: output.segment_logits(place).unwrap().to_vec(), hidden });
    }
    for share in step.iter().filter(|share| share.is_tree) {
        engine.backend.keep(LaneId(share.lane), &share.keep).unwrap();
    }
    outputs
}
