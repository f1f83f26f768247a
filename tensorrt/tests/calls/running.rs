//! Plans loaded and run on the emulated device: the calls, what is bound, captured graphs, and what goes wrong.

use std::{slice, sync::Mutex};

use takt_kernels_cu::driver::memory::DeviceBuffer;
use takt_tensorrt::{
    TensorRtError,
    build::PlanFlags,
    runtime::{Execution, Plan},
    tensor::DataType,
};

use crate::{
    bench::{Bench, Memory, on_device, plan_bytes, profiles},
    emulator::driver::EmulatedDevice,
    from, model, profile,
    standin::{Failure, executor::Tensor},
};

/// Every logit becomes the sum of the ids, in 32 bits.
fn sum_of_ids(tensors: &[Tensor<'_>]) -> Result<(), String> {
    let find = |name: &str| tensors.iter().find(|tensor| tensor.name == name).ok_or(format!("no {name}"));
    let (ids, logits) = (find("ids")?, find("logits")?);
    let len = |tensor: &Tensor<'_>| tensor.dims.iter().product::<i64>() as usize;
    // SAFETY: the emulated device's memory, of these shapes; nothing else of the stream runs.
    #[expect(unsafe_code, reason = "device memory that the host can address")]
    unsafe {
        let sum: i64 = slice::from_raw_parts(ids.data.cast::<i64>(), len(ids)).iter().sum();
        slice::from_raw_parts_mut(logits.data.cast::<f32>(), len(logits)).fill(sum as f32);
    }
    Ok(())
}

fn upload(bench: &Bench, ids: &[i64], memory: &Memory) {
    let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
    bench.stream.upload(&bytes, &memory.ids, 0).unwrap();
}

fn logits(bench: &Bench, memory: &Memory, len: usize) -> Vec<f32> {
    let mut bytes = vec![0; len * 4];
    bench.stream.synchronize().unwrap();
    bench.stream.download(&memory.logits, 0, &mut bytes).unwrap();
    bytes.chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect()
}

#[test]
fn a_run_is_this_sequence_of_calls() {
    on_device("running::a_run_is_this_sequence_of_calls", |bench| {
        let Bench { standin, trt, context, stream } = bench;
        let bytes = plan_bytes(trt, PlanFlags::default(), &profiles());
        standin.clear();
        let plan = Plan::load(trt, context, &bytes).unwrap();
        let memory = Memory::new(bench);
        let mut execution = memory.bind(bench, &plan, 1).unwrap();
        execution.set_shape("ids", &[2, 1]).unwrap();
        execution.set_shape("past", &[2, 2, 8, 16]).unwrap();
        execution.check_ready().unwrap();
        assert_eq!(execution.shape("logits").unwrap(), [2, 1, 4]);
        execution.enqueue(stream).unwrap();
        stream.synchronize().unwrap();
        drop((execution, plan));
        let version = trt.header_version();
        let version = version.major * 10_000 + version.minor * 100 + version.patch;
        let expected = format!(
            "createInferRuntime_INTERNAL(@1, {version})
IRuntime::setErrorRecorder(@2)
IRuntime::deserializeCudaEngine(@3, {len})
ICudaEngine::createExecutionContext(kUSER_MANAGED)
IExecutionContext::setOptimizationProfileAsync(1, @4)
IExecutionContext::setDeviceMemoryV2(@5, 256)
IExecutionContext::setTensorAddress(\"ids\", @6)
IExecutionContext::setTensorAddress(\"past\", @7)
IExecutionContext::setTensorAddress(\"present\", @PRESENT)
IExecutionContext::setTensorAddress(\"logits\", @LOGITS)
IExecutionContext::setInputShape(\"ids\", [2,1])
IExecutionContext::setInputShape(\"past\", [2,2,8,16])
IExecutionContext::inferShapes(0, null)
IExecutionContext::enqueueV3(@4)
IExecutionContext::~IExecutionContext()
ICudaEngine::~ICudaEngine()
IRuntime::~IRuntime()",
            len = bytes.len()
        );
        // Memory of one address has one number, in either model.
        let (present, logits) = if from(10, 15) { ("@7", "@8") } else { ("@8", "@9") };
        let expected = expected.replace("@PRESENT", present).replace("@LOGITS", logits);
        assert_eq!(standin.steps(), expected.lines().collect::<Vec<_>>());
        bench.assert_nothing_is_left();
    });
}

#[test]
fn what_is_bound_is_computed_and_a_captured_graph_computes_it_again() {
    on_device("running::what_is_bound_is_computed_and_a_captured_graph_computes_it_again", |bench| {
        static IDS: Mutex<Vec<u64>> = Mutex::new(Vec::new());
        bench.standin.set_executor(|model, tensors| {
            let names: Vec<_> = model.files.iter().map(|(name, _)| *name).collect();
            if names != ["model.onnx", "model.onnx.data"] || model.files[1].1 != model::data() {
                return Err(format!("other files: {names:?}"));
            }
            IDS.lock().unwrap().push(model.id);
            sum_of_ids(tensors)
        });
        let plan = bench.plan(PlanFlags::default(), &profiles());
        let memory = Memory::new(bench);
        let mut execution = memory.bind(bench, &plan, 0).unwrap();
        execution.set_shape("ids", &[1, 3]).unwrap();
        execution.set_shape("past", &[1, 2, 8, 16]).unwrap();
        upload(bench, &[1, 2, 4], &memory);
        execution.enqueue(&bench.stream).unwrap();
        assert_eq!(logits(bench, &memory, 13), [[7.0; 12].as_slice(), &[0.0]].concat());
        let graph = bench.stream.capture(|stream| {
            execution.enqueue(stream).unwrap();
            Ok(())
        });
        let graph = graph.unwrap();
        assert_eq!(IDS.lock().unwrap().len(), 1, "a capture runs nothing");
        // Shapes are those of the capture, whatever is set afterwards; what is in memory is what is there then.
        execution.set_shape("ids", &[1, 1]).unwrap();
        for ids in [[10, 20, 30], [1, 1, 1]] {
            upload(bench, &ids, &memory);
            bench.stream.run(&graph).unwrap();
            let sum = ids.iter().sum::<i64>() as f32;
            assert_eq!(logits(bench, &memory, 12), [sum; 12]);
        }
        bench.stream.synchronize().unwrap();
        let ids = IDS.lock().unwrap().clone();
        assert!(ids.len() == 3 && ids.iter().all(|id| *id == ids[0]), "{ids:?}");
        drop((graph, execution, plan));
        bench.assert_nothing_is_left();
    });
}

#[test]
fn what_a_plan_says_of_itself() {
    on_device("running::what_a_plan_says_of_itself", |bench| {
        let plan = bench.plan(PlanFlags::default(), &profiles());
        let facts: Vec<_> = plan
            .tensors()
            .iter()
            .map(|tensor| (tensor.name.as_str(), tensor.is_input, tensor.data_type, tensor.shape.clone()))
            .collect();
        let cache = vec![None, Some(2), Some(8), Some(16)];
        let expected = [
            ("ids", true, DataType::I64, vec![None, None]),
            ("past", true, DataType::Bf16, cache.clone()),
            ("logits", false, DataType::F32, vec![None, None, Some(4)]),
            ("present", false, DataType::Bf16, cache),
        ];
        assert_eq!(facts, expected);
        assert_eq!(plan.num_profiles(), 2);
        assert_eq!(plan.profile_shape("ids", 0).unwrap(), profile("", [1, 4, 8]).inputs[0].1);
        assert_eq!(plan.aliased_input("present"), from(10, 15).then_some("past"));
        assert_eq!(
            (plan.aliased_input("logits"), plan.streamable_bytes(), plan.is_refittable()),
            (None, 0, false)
        );
        drop(plan);
        bench.assert_nothing_is_left();
    });
}

#[test]
fn a_plan_of_another_version_or_device_or_of_nothing_is_refused_in_tensorrts_words() {
    on_device(
        "running::a_plan_of_another_version_or_device_or_of_nothing_is_refused_in_tensorrts_words",
        |bench| {
            let Bench { standin, trt, context, .. } = bench;
            let bytes = plan_bytes(trt, PlanFlags::default(), &profiles());
            let error = |bytes: &[u8]| {
                let error = Plan::load(trt, context, bytes).unwrap_err().to_string();
                assert!(error.starts_with("TensorRT: loading the plan failed: "), "{error}");
                bench.assert_nothing_is_left();
                error
            };
            standin.set_sm(87);
            let elsewhere = error(&bytes);
            assert!(
                elsewhere.contains("expecting compute 8.7 got compute 11.0, please rebuild"),
                "{elsewhere}"
            );
            standin.set_sm(0);
            let version = trt.version();
            standin.set_version(version.major as i32, version.minor as i32, version.patch as i32 + 1);
            let older = error(&bytes);
            assert!(older.contains("Version tag does not match"), "{older}");
            standin.set_version(version.major as i32, version.minor as i32, version.patch as i32);
            assert!(error(b"garbage").contains("Magic tag does not match"));
            assert!(error(&[]).contains("Magic tag does not match"));
            for len in [40, 100, bytes.len() / 2, bytes.len() - 1] {
                assert!(error(&bytes[..len]).contains("corrupt"), "{len} bytes");
            }
            let mut damaged = bytes.clone();
            damaged[bytes.len() - 3] ^= 1;
            assert!(error(&damaged).contains("corrupt"));
            Plan::load(trt, context, &bytes).unwrap();
        },
    );
}

/// Loads, binds and runs; whatever fails.
fn run_once(bench: &Bench, bytes: &[u8], memory: &Memory) -> takt_tensorrt::Result<()> {
    let plan = Plan::load(&bench.trt, &bench.context, bytes)?;
    let mut execution = memory.bind(bench, &plan, 1)?;
    execution.set_shape("ids", &[2, 1])?;
    execution.set_shape("past", &[2, 2, 8, 16])?;
    execution.enqueue(&bench.stream)?;
    bench.stream.synchronize()?;
    Ok(())
}

#[test]
fn whichever_call_fails_there_is_an_error_and_nothing_is_left() {
    on_device("running::whichever_call_fails_there_is_an_error_and_nothing_is_left", |bench| {
        let standin = &bench.standin;
        let memory = Memory::new(bench);
        let bytes = plan_bytes(&bench.trt, PlanFlags::default(), &profiles());
        for how in [Failure::Error, Failure::OutOfMemory, Failure::Silent] {
            let mut n = 0;
            loop {
                n += 1;
                standin.clear();
                standin.fail_any(n, how);
                let ran = run_once(bench, &bytes, &memory);
                let has_failed = standin.has_failed();
                standin.fail_any(0, how);
                bench.assert_nothing_is_left();
                if !has_failed {
                    ran.unwrap();
                    break;
                }
                let error = ran.expect_err("an error went unseen");
                let (is_oom, text) = (matches!(error, TensorRtError::OutOfMemory { .. }), error.to_string());
                let words = match how {
                    Failure::Error => "told to fail",
                    Failure::OutOfMemory => "Requested size was",
                    Failure::Silent => "TensorRT: ",
                };
                assert!(
                    is_oom == (how == Failure::OutOfMemory) && text.contains(words),
                    "{how:?} {n}: {text}"
                );
            }
            assert!(n > 10, "only {} calls failed", n - 1);
        }
    });
}

#[test]
fn an_execution_that_lacks_something_is_refused_before_it_runs() {
    on_device("running::an_execution_that_lacks_something_is_refused_before_it_runs", |bench| {
        let plan = bench.plan(PlanFlags::default(), &profiles());
        let memory = Memory::new(bench);
        let refused = |result: takt_tensorrt::Result<()>, words: &str| match result {
            Err(TensorRtError::Refused(why)) => assert!(why.contains(words), "{why}"),
            other => panic!("{other:?}"),
        };
        let mut bare = Execution::new(&plan, 0, &bench.stream).unwrap();
        refused(bare.enqueue(&bench.stream), "no shape for ids, past");
        refused(bare.set_shape("ids", &[1, 9]), "profile 0 takes [1, 1] to [2, 8]");
        refused(bare.set_shape("logits", &[1, 1, 4]), "is an output");
        refused(bare.bind("nothing", memory.ids.address()), "has no tensor \"nothing\"");
        refused(bare.set_scratch(memory.scratch.address(), 255), "takes 256");
        refused(Execution::new(&plan, 2, &bench.stream).map(drop), "profile 2 of a plan with 2");
        drop(bare);
        let mut bound = memory.bind(bench, &plan, 0).unwrap();
        bound.set_shape("ids", &[1, 2]).unwrap();
        bound.set_shape("past", &[2, 2, 8, 16]).unwrap();
        let error = bound.enqueue(&bench.stream).unwrap_err().to_string();
        assert!(error.contains("Dimensions with name batch must be equal"), "{error}");
        drop((bound, plan));
        bench.assert_nothing_is_left();
    });
}

#[test]
fn memory_that_is_too_short_or_lies_in_anothers_is_found() {
    on_device("running::memory_that_is_too_short_or_lies_in_anothers_is_found", |bench| {
        let plan = bench.plan(PlanFlags::default(), &profiles());
        let memory = Memory::new(bench);
        let mut execution = memory.bind(bench, &plan, 0).unwrap();
        execution.set_shape("ids", &[2, 8]).unwrap();
        execution.set_shape("past", &[2, 2, 8, 16]).unwrap();
        let short = DeviceBuffer::new(&bench.context, 255, "too little").unwrap();
        execution.bind("logits", short.address()).unwrap();
        let error = execution.enqueue(&bench.stream).unwrap_err().to_string();
        assert!(error.contains("logits has 256 bytes, its memory"), "{error}");
        execution.bind("logits", memory.scratch.address()).unwrap();
        let error = execution.enqueue(&bench.stream).unwrap_err().to_string();
        assert!(error.contains("lie in the same memory"), "{error}");
        assert_eq!(bench.standin.faults().len(), 2, "{:?}", bench.standin.faults());
        execution.bind("logits", memory.logits.address()).unwrap();
        execution.enqueue(&bench.stream).unwrap();
        bench.stream.synchronize().unwrap();
    });
}

#[test]
fn what_fails_while_it_runs_is_the_next_calls_error() {
    on_device("running::what_fails_while_it_runs_is_the_next_calls_error", |bench| {
        bench.standin.set_executor(|_, _| Err("an operator the executor lacks".into()));
        let plan = bench.plan(PlanFlags::default(), &profiles());
        let memory = Memory::new(bench);
        let mut execution = memory.bind(bench, &plan, 1).unwrap();
        execution.set_shape("ids", &[1, 1]).unwrap();
        execution.set_shape("past", &[1, 2, 8, 16]).unwrap();
        execution.enqueue(&bench.stream).unwrap();
        bench.stream.synchronize().unwrap();
        let error = execution.enqueue(&bench.stream).unwrap_err().to_string();
        assert!(error.contains("an operator the executor lacks"), "{error}");
        assert_eq!(bench.standin.faults(), ["the executor failed with 1: an operator the executor lacks"]);
    });
}

#[test]
fn a_plan_outlives_its_handle_and_goes_after_its_last_execution() {
    on_device("running::a_plan_outlives_its_handle_and_goes_after_its_last_execution", |bench| {
        let plan = bench.plan(PlanFlags::default(), &profiles());
        bench.standin.clear();
        let executions =
            [0, 1, 1].map(|profile_idx| Execution::new(&plan, profile_idx, &bench.stream).unwrap());
        let other = plan.clone();
        drop(plan);
        drop(other);
        let [first, second, third] = executions;
        drop(second);
        drop(first);
        assert_eq!(bench.standin.alive(), ["IRuntime", "ICudaEngine", "IExecutionContext#3"]);
        drop(third);
        let steps = bench.standin.steps();
        let ends: Vec<_> = steps.iter().filter(|call| call.contains('~')).map(String::as_str).collect();
        let expected = [
            "IExecutionContext#2::~IExecutionContext()",
            "IExecutionContext::~IExecutionContext()",
            "IExecutionContext#3::~IExecutionContext()",
            "ICudaEngine::~ICudaEngine()",
            "IRuntime::~IRuntime()",
        ];
        assert_eq!(ends, expected);
        bench.assert_nothing_is_left();
    });
}

#[test]
fn a_run_that_fails_in_a_lost_context_tells_of_the_loss_and_leaves_what_was_in_it() {
    let test = "running::a_run_that_fails_in_a_lost_context_tells_of_the_loss_and_leaves_what_was_in_it";
    if crate::standin::Built::get().is_none() {
        return;
    }
    EmulatedDevice::new(test).sm(110).run(|device| {
        let bench = &Bench::new();
        let plan = bench.plan(PlanFlags::default(), &profiles());
        let memory = Memory::new(bench);
        let mut execution = memory.bind(bench, &plan, 1).unwrap();
        execution.set_shape("ids", &[1, 1]).unwrap();
        execution.set_shape("past", &[1, 2, 8, 16]).unwrap();
        execution.check_ready().unwrap();
        bench.standin.fail("IExecutionContext::enqueueV3", 1, Failure::Error);
        // CUDA_ERROR_ILLEGAL_ADDRESS, which every later call meets too.
        device.fail_call("cuMemGetInfo_v2", 1, 700);
        let error = execution.enqueue(&bench.stream).unwrap_err();
        assert!(matches!(&error, TensorRtError::Driver(lost) if lost.is_lost()), "{error}");
        assert!(bench.context.is_lost());
        drop((execution, plan));
        assert_eq!(bench.standin.alive(), ["IRuntime", "ICudaEngine", "IExecutionContext"]);
    });
}
