//! A device with TensorRT, and memory for an execution.

use takt_kernels_cu::{
    driver::{
        context::{Context, Share},
        device::probe,
        memory::DeviceBuffer,
        stream::Stream,
    },
    launch::DeviceAddress,
};
use takt_tensorrt::{
    TensorRt,
    build::{PlanFlags, PlanRequest, Profile},
    runtime::{Execution, Plan},
};

use crate::{
    build,
    emulator::driver::EmulatedDevice,
    from, model, profile, request,
    standin::{Built, Standin},
};

/// Two profiles: sequences of 1 to 8, and of 1.
pub fn profiles() -> [Profile; 2] {
    [profile("prefill", [1, 4, 8]), profile("decode", [1, 1, 1])]
}

pub fn plan_bytes(trt: &TensorRt, flags: PlanFlags, profiles: &[Profile]) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let onnx = model::write(&model::decoder(from(10, 15)), folder.path());
    build(trt, &PlanRequest { flags, ..request(&onnx, profiles) }).unwrap().plan.to_vec()
}

/// A device, and a TensorRT that was opened and has done nothing.
pub struct Bench {
    pub standin: Standin,
    pub trt: TensorRt,
    pub context: Context,
    pub stream: Stream,
}

impl Bench {
    pub fn new() -> Self {
        let standin = Standin::load().unwrap();
        let (context, _) = Context::open(&probe().unwrap()[0], Share::None).unwrap();
        let stream = Stream::new(&context).unwrap();
        Self { standin, trt: TensorRt::open().unwrap(), context, stream }
    }

    pub fn plan(&self, flags: PlanFlags, profiles: &[Profile]) -> Plan {
        Plan::load(&self.trt, &self.context, &plan_bytes(&self.trt, flags, profiles)).unwrap()
    }

    #[track_caller]
    pub fn assert_nothing_is_left(&self) {
        assert_eq!(self.standin.alive(), [""; 0]);
        assert_eq!(self.standin.faults(), [""; 0]);
    }
}

/// The memory of an execution.
pub struct Memory {
    pub ids: DeviceBuffer,
    pub cache: DeviceBuffer,
    pub logits: DeviceBuffer,
    pub scratch: DeviceBuffer,
}

impl Memory {
    /// For the largest shapes of the first profile.
    pub fn new(bench: &Bench) -> Self {
        let buffer = |num_bytes, what| DeviceBuffer::new(&bench.context, num_bytes, what).unwrap();
        let memory = Self {
            ids: buffer(2 * 8 * 8, "ids"),
            cache: buffer(2 * 2 * 8 * 16 * 2, "cache"),
            logits: buffer(2 * 8 * 4 * 4, "logits"),
            scratch: buffer(4096, "scratch"),
        };
        for buffer in [&memory.ids, &memory.cache, &memory.logits] {
            bench.stream.zero(buffer).unwrap();
        }
        memory
    }

    /// An execution that has everything but its shapes.
    pub fn bind(&self, bench: &Bench, plan: &Plan, profile_idx: usize) -> takt_tensorrt::Result<Execution> {
        let mut execution = Execution::new(plan, profile_idx, &bench.stream)?;
        execution.set_scratch(self.scratch.address(), plan.scratch_bytes(profile_idx)?)?;
        execution.bind("ids", self.ids.address())?;
        execution.bind("past", self.cache.address())?;
        execution.bind("present", self.present())?;
        execution.bind("logits", self.logits.address())?;
        Ok(execution)
    }

    /// The cache is updated in its place where TensorRT does that; the other model copies it.
    pub fn present(&self) -> DeviceAddress {
        if from(10, 15) { self.cache.address() } else { self.scratch_behind() }
    }

    /// Memory that no execution here takes for scratch.
    pub fn scratch_behind(&self) -> DeviceAddress {
        DeviceAddress(self.scratch.address().0 + 2048)
    }
}

/// On an emulated device, where there are headers.
pub fn on_device(test: &'static str, body: impl FnOnce(&Bench)) {
    if Built::get().is_none() {
        return;
    }
    EmulatedDevice::new(test).sm(110).run(|_| body(&Bench::new()));
}
