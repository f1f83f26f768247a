//! Which CUDA context is current when TensorRT is called: the plan's, whatever was before. The stand-in finds a call with another.

use takt_kernels_cu::driver::{
    context::{Context, Share},
    device::probe,
};
use takt_tensorrt::{
    build::{PlanFlags, PlanRequest},
    runtime::{Execution, Plan},
    tensor::DataType,
};

use crate::{
    bench::{Memory, on_device, plan_bytes, profiles},
    build, model, profile, request,
};

#[test]
fn every_call_of_a_plan_and_its_executions_has_its_context_current() {
    on_device("contexts::every_call_of_a_plan_and_its_executions_has_its_context_current", |bench| {
        let (other, _) = Context::open(&probe().unwrap()[0], Share::None).unwrap();
        let elsewhere = || {
            assert_eq!(bench.standin.faults(), [""; 0]);
            other.make_current().unwrap();
        };
        let flags = PlanFlags { weight_streaming: true, ..PlanFlags::default() };
        let bytes = plan_bytes(&bench.trt, flags, &profiles());
        let memory = Memory::new(bench);
        elsewhere();
        let mut plan = Plan::load(&bench.trt, &bench.context, &bytes).unwrap();
        elsewhere();
        plan.set_weight_budget(plan.streamable_bytes()).unwrap();
        elsewhere();
        assert!(!plan.is_streaming());
        elsewhere();
        let scratch_bytes = plan.scratch_bytes(1).unwrap();
        elsewhere();
        let mut execution = Execution::new(&plan, 1, &bench.stream).unwrap();
        elsewhere();
        execution.set_scratch(memory.scratch.address(), scratch_bytes).unwrap();
        for (name, address) in [
            ("ids", memory.ids.address()),
            ("past", memory.cache.address()),
            ("present", memory.present()),
            ("logits", memory.logits.address()),
        ] {
            elsewhere();
            execution.bind(name, address).unwrap();
        }
        elsewhere();
        execution.set_shape("ids", &[1, 1]).unwrap();
        elsewhere();
        execution.set_shape("past", &[1, 2, 8, 16]).unwrap();
        elsewhere();
        execution.check_ready().unwrap();
        elsewhere();
        execution.shape("logits").unwrap();
        elsewhere();
        execution.enqueue(&bench.stream).unwrap();
        bench.stream.synchronize().unwrap();
        elsewhere();
        drop(execution);
        elsewhere();
        drop(plan);
        bench.assert_nothing_is_left();
    });
}

#[test]
fn weights_are_given_in_the_plans_context() {
    on_device("contexts::weights_are_given_in_the_plans_context", |bench| {
        let (other, _) = Context::open(&probe().unwrap()[0], Share::None).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let onnx = model::write(&model::decoder(false), folder.path());
        let profiles = [profile("decode", [1, 1, 1])];
        let flags = PlanFlags { refittable: true, ..PlanFlags::default() };
        let built = build(&bench.trt, &PlanRequest { flags, ..request(&onnx, &profiles) }).unwrap();
        let mut plan = Plan::load(&bench.trt, &bench.context, &built.plan).unwrap();
        drop(built);
        other.make_current().unwrap();
        let weights = plan.refittable_weights().unwrap();
        let given: Vec<(String, DataType, Vec<u8>)> = weights
            .into_iter()
            .map(|it| (it.name, it.data_type, vec![0; it.data_type.num_bytes(it.num_elements).unwrap()]))
            .collect();
        let given: Vec<_> = given.iter().map(|(name, kind, bytes)| (&name[..], *kind, &bytes[..])).collect();
        other.make_current().unwrap();
        plan.refit(&given).unwrap();
        other.make_current().unwrap();
        drop(plan);
        bench.assert_nothing_is_left();
    });
}
