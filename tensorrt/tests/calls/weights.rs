//! Weights that are given anew, or stay in the host's memory.

use takt_kernels_cu::driver::{
    context::{Context, Share},
    device::probe,
    memory::DeviceBuffer,
    stream::Stream,
};
use takt_tensorrt::{
    TensorRt, TensorRtError,
    build::{PlanFlags, PlanRequest},
    runtime::{Execution, Plan, Weights},
    tensor::DataType,
};

use crate::{
    build,
    emulator::driver::EmulatedDevice,
    model, profile, request,
    standin::{Built, Failure, Standin},
};

/// A plan of a model that only looks up rows, in one profile.
fn loaded(trt: &TensorRt, context: &Context, flags: PlanFlags) -> Plan {
    let folder = tempfile::tempdir().unwrap();
    let onnx = model::write(&model::decoder(false), folder.path());
    let profiles = [profile("decode", [1, 1, 1])];
    let built = build(trt, &PlanRequest { flags, ..request(&onnx, &profiles) }).unwrap();
    Plan::load(trt, context, &built.plan).unwrap()
}

fn on_device(test: &'static str, body: impl FnOnce(&Standin, &TensorRt, &Context)) {
    if Built::get().is_none() {
        return;
    }
    EmulatedDevice::new(test).run(|_| {
        let standin = Standin::load().unwrap();
        let (context, _) = Context::open(&probe().unwrap()[0], Share::None).unwrap();
        body(&standin, &TensorRt::open().unwrap(), &context);
        assert_eq!(standin.alive(), [""; 0]);
        assert_eq!(standin.faults(), [""; 0]);
    });
}

fn refused<T: std::fmt::Debug>(result: takt_tensorrt::Result<T>) -> String {
    match result {
        Err(TensorRtError::Refused(why)) => why,
        other => panic!("{other:?}"),
    }
}

/// The values of `table`.
fn table() -> Vec<u8> {
    model::data()[16..].to_vec()
}

#[test]
fn a_stripped_plan_runs_once_it_has_its_weights_again() {
    on_device("weights::a_stripped_plan_runs_once_it_has_its_weights_again", |standin, trt, context| {
        standin.set_executor(|model, _| {
            let whole = model.files[1].1[16..] == table()[..];
            if whole { Ok(()) } else { Err(format!("{:?}", model.files[1].1)) }
        });
        let stripped = PlanFlags { stripped: true, ..PlanFlags::default() };
        let mut plan = loaded(trt, context, stripped);
        let stream = Stream::new(context).unwrap();
        let error = Execution::new(&plan, 0, &stream).unwrap_err().to_string();
        assert!(error.contains("its weights have to be refitted"), "{error}");
        let expected = [("table", 8), ("scale", 1)].map(|(name, num_elements)| Weights {
            name: name.into(),
            data_type: DataType::F32,
            num_elements,
        });
        assert_eq!(plan.refittable_weights().unwrap(), expected);
        let (table, scale) = (table(), 1_f32.to_le_bytes());
        assert_eq!(
            refused(plan.refit(&[("scale", DataType::F32, &scale)])),
            "weights are missing: \"table\""
        );
        let unknown = refused(plan.refit(&[("axes", DataType::I64, &[0; 8])]));
        assert!(unknown.contains("\"axes\" is not among its weights"), "{unknown}");
        let short = refused(plan.refit(&[("table", DataType::F32, &table[..28])]));
        assert!(short.contains("\"table\" is 28 bytes of F32, expected 8 elements of F32"), "{short}");
        standin.clear();
        plan.refit(&[("table", DataType::F32, &table), ("scale", DataType::F32, &scale)]).unwrap();
        let steps = standin.steps();
        let set: Vec<_> =
            steps.iter().filter(|call| call.contains("set") && call.contains("Weights(")).collect();
        assert!(set[0].ends_with("::setNamedWeights(\"table\", Weights(kFLOAT, 8))"), "{steps:#?}");
        assert!(set[1].ends_with("::setNamedWeights(\"scale\", Weights(kFLOAT, 1))"), "{steps:#?}");
        assert!(steps[steps.len() - 2].ends_with("::refitCudaEngine()"), "{steps:#?}");
        assert!(steps[steps.len() - 1].ends_with("::~IRefitter()"), "{steps:#?}");
        let mut execution = Execution::new(&plan, 0, &stream).unwrap();
        let busy = refused(plan.refit(&[("table", DataType::F32, &table)]));
        assert!(busy.contains("the plan has 1 executions"), "{busy}");
        run(&mut execution, context, &stream, &plan);
    });
}

#[test]
fn a_plan_with_other_weights_is_written_and_read_back_with_them_and_takes_others_again() {
    const TEST: &str =
        "weights::a_plan_with_other_weights_is_written_and_read_back_with_them_and_takes_others_again";
    on_device(TEST, |standin, trt, context| {
        let refittable = PlanFlags { refittable: true, ..PlanFlags::default() };
        let mut plan = loaded(trt, context, refittable);
        let before = plan.serialize().unwrap().to_vec();
        let (other, scale) = ([0x41; 32], 2_f32.to_le_bytes());
        let weights = [("table", DataType::F32, &other[..]), ("scale", DataType::F32, &scale)];
        for name in ["table", "scale"] {
            assert!(plan.refittable_weights().unwrap().iter().any(|weights| weights.name == name), "{name}");
        }
        plan.refit(&weights).unwrap();
        standin.clear();
        let after = plan.serialize().unwrap();
        assert!(standin.steps()[0].ends_with("::serialize()"), "{:?}", standin.steps());
        assert!(after.len() == before.len() && after[..] != before[..]);
        drop(plan);
        let mut read = Plan::load(trt, context, &after).unwrap();
        assert!(read.is_refittable() && read.serialize().unwrap()[..] == after[..]);
        // With what it had at first it is what it was.
        let (table, scale) = (table(), 1_f32.to_le_bytes());
        read.refit(&[("table", DataType::F32, &table), ("scale", DataType::F32, &scale)]).unwrap();
        assert!(read.serialize().unwrap()[..] == before[..]);
        for how in [Failure::Error, Failure::OutOfMemory, Failure::Silent] {
            standin.fail_any(1, how);
            let error = read.serialize().expect_err("a failure went unseen");
            standin.fail_any(0, how);
            assert_eq!(
                matches!(error, TensorRtError::OutOfMemory { .. }),
                how == Failure::OutOfMemory,
                "{error}"
            );
            assert!(error.to_string().contains("writing the plan"), "{error}");
        }
    });
}

#[test]
fn a_stripped_plan_without_its_weights_is_not_written() {
    on_device("weights::a_stripped_plan_without_its_weights_is_not_written", |_, trt, context| {
        let stripped = PlanFlags { stripped: true, ..PlanFlags::default() };
        let error = loaded(trt, context, stripped).serialize().unwrap_err().to_string();
        assert!(
            error.contains("writing the plan") && error.contains("refitted before it is serialized"),
            "{error}"
        );
    });
}

/// Runs it once in memory of its own.
fn run(execution: &mut Execution, context: &Context, stream: &Stream, plan: &Plan) {
    let buffer = |what| DeviceBuffer::new(context, 1024, what).unwrap();
    let names = ["ids", "past", "present", "logits"].map(|name| (name, buffer(name)));
    for (name, memory) in &names {
        stream.zero(memory).unwrap();
        execution.bind(name, memory.address()).unwrap();
    }
    let num_bytes = plan.scratch_bytes(0).unwrap();
    let scratch = DeviceBuffer::new(context, num_bytes, "scratch").unwrap();
    execution.set_scratch(scratch.address(), num_bytes).unwrap();
    execution.set_shape("ids", &[1, 1]).unwrap();
    execution.set_shape("past", &[1, 2, 8, 16]).unwrap();
    execution.enqueue(stream).unwrap();
    stream.synchronize().unwrap();
}

#[test]
fn a_plan_that_was_not_built_for_it_takes_no_weights_and_no_budget() {
    on_device(
        "weights::a_plan_that_was_not_built_for_it_takes_no_weights_and_no_budget",
        |_, trt, context| {
            let mut plan = loaded(trt, context, PlanFlags::default());
            assert!(!plan.is_refittable());
            assert!(refused(plan.refit(&[])).contains("build it refittable"));
            assert!(refused(plan.set_weight_budget(1)).contains("build it with weight streaming"));
        },
    );
}

#[test]
fn a_budget_leaves_weights_in_the_hosts_memory_and_captures_to_others() {
    on_device(
        "weights::a_budget_leaves_weights_in_the_hosts_memory_and_captures_to_others",
        |_, trt, context| {
            let streaming = PlanFlags { weight_streaming: true, ..PlanFlags::default() };
            let mut plan = loaded(trt, context, streaming);
            let stream = Stream::new(context).unwrap();
            assert_eq!(plan.streamable_bytes(), 36);
            assert!(!plan.is_streaming());
            let whole = plan.scratch_bytes(0).unwrap();
            plan.set_weight_budget(0).unwrap();
            assert!(plan.is_streaming());
            assert!(plan.scratch_bytes(0).unwrap() > whole, "what is streamed has to go somewhere");
            let mut execution = Execution::new(&plan, 0, &stream).unwrap();
            assert!(refused(plan.set_weight_budget(36)).contains("the plan has 1 executions"));
            run(&mut execution, context, &stream, &plan);
            let captured = stream.capture(|stream| {
                let error = execution.enqueue(stream).unwrap_err().to_string();
                assert!(error.contains("cannot be captured"), "{error}");
                Ok(())
            });
            drop(captured);
            drop(execution);
            plan.set_weight_budget(36).unwrap();
            assert!(!plan.is_streaming());
        },
    );
}

#[test]
fn whichever_call_of_a_refit_fails_there_is_an_error_and_the_plan_stays_without() {
    const TEST: &str =
        "weights::whichever_call_of_a_refit_fails_there_is_an_error_and_the_plan_stays_without";
    on_device(TEST, |standin, trt, context| {
        let stripped = PlanFlags { stripped: true, ..PlanFlags::default() };
        let stream = Stream::new(context).unwrap();
        let (table, scale) = (table(), 1_f32.to_le_bytes());
        let weights = [("table", DataType::F32, &table[..]), ("scale", DataType::F32, &scale)];
        for how in [Failure::Error, Failure::OutOfMemory, Failure::Silent] {
            let mut plan = loaded(trt, context, stripped);
            let mut n = 0;
            loop {
                n += 1;
                standin.fail_any(n, how);
                let refitted = plan.refit(&weights);
                let has_failed = standin.has_failed();
                standin.fail_any(0, how);
                assert_eq!(standin.alive(), ["IRuntime", "ICudaEngine"]);
                if !has_failed {
                    refitted.unwrap();
                    break;
                }
                let error = refitted.expect_err("an error went unseen");
                let is_oom = matches!(error, TensorRtError::OutOfMemory { .. });
                assert_eq!(is_oom, how == Failure::OutOfMemory, "{how:?} {n}: {error}");
                assert!(Execution::new(&plan, 0, &stream).is_err(), "{how:?} {n}: half a plan's weights");
            }
            assert_eq!(n, 5, "the refitter, two weights and the refit");
            Execution::new(&plan, 0, &stream).unwrap();
            drop(plan);
            standin.clear();
        }
    });
}
