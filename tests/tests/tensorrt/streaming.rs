//! A plan whose weights do not all fit beside the rest: what is kept on the device, and what is refused.

use takt_engine::{
    EngineError, Result,
    backend::{Backend, tensorrt::TensorRtBackend},
    kv::LaneId,
    quant::WeightKind,
    step::{LogitsWanted, StepPlan},
};
use takt_engine_builder::export::Form;
use takt_kernels_cu::driver::{
    context::{Context, Share},
    device,
    memory::DeviceBuffer,
};
use takt_tensorrt::build::PlanFlags;
use takt_tests::{backends::run_slices, memory_weights::MemoryWeights};

use crate::{
    forward::talk,
    models::{KINDS, Kind, Planned, emulated, options, spec, tokens},
    standin::Standin,
};

/// Of a budget that binds the tests know the rest: one that leaves so much of the streamable weights in the host's memory.
const LEFT: u64 = 10_007;

fn planned(weight_streaming: bool) -> Planned {
    let kind = Kind { form: Form::Operators, weights: WeightKind::Bf16, ..KINDS[0] };
    let spec = spec(false);
    let weights = MemoryWeights::random(&spec, kind.weights, WeightKind::Bf16, 1);
    Planned::of(kind, spec, weights, PlanFlags { weight_streaming, ..PlanFlags::default() })
}

/// Has the device no more than `room` bytes left, for as long as it lives.
struct Ballast {
    _buffer: DeviceBuffer,
    context: Context,
}

impl Ballast {
    fn leaving(room: u64) -> Self {
        let device = device::probe().unwrap().remove(0);
        let (context, _) = Context::open(&device, Share::None).unwrap();
        let (free, _) = context.memory_bytes().unwrap();
        let taken = free - usize::try_from(room).unwrap();
        let ballast = Self { _buffer: DeviceBuffer::new(&context, taken, "ballast").unwrap(), context };
        assert_eq!(ballast.free(), room);
        ballast
    }

    fn free(&self) -> u64 {
        self.context.memory_bytes().unwrap().0 as u64
    }
}

/// The budgets of weights that were set, in their order.
fn budgets(standin: &Standin) -> Vec<u64> {
    let calls = standin.record().into_iter().filter(|call| call.contains("setWeightStreamingBudgetV2("));
    calls.map(|call| number(&call, "setWeightStreamingBudgetV2(")).collect()
}

/// The number behind `name`.
fn number(said: &str, name: &str) -> u64 {
    let at = said.find(name).unwrap_or_else(|| panic!("{name:?} in {said}")) + name.len();
    let digits: String = said[at..].trim_start().chars().take_while(char::is_ascii_digit).collect();
    digits.parse().unwrap_or_else(|_| panic!("a number behind {name:?} in {said}"))
}

fn open(planned: &Planned, standin: &Standin) -> Result<TensorRtBackend> {
    standin.clear();
    planned.open(&options())
}

#[test]
fn weights_stay_on_the_device_as_far_as_there_is_room_beside_the_rest() {
    let test = "streaming::weights_stay_on_the_device_as_far_as_there_is_room_beside_the_rest";
    emulated(test, |device, standin, _| {
        let (whole, streaming) = (planned(false), planned(true));
        let all = tokens(&whole.spec, 100);
        let expected = talk(&mut open(&whole, standin).unwrap(), &all);
        assert_eq!(budgets(standin), [0; 0], "a plan that streams nothing is asked nothing");

        // Room for everything: first nothing stays, so that TensorRT says what it takes then, then everything does, and steps are graphs as ever.
        let mut backend = open(&streaming, standin).unwrap();
        let [0, streamable] = budgets(standin)[..] else { panic!("{:?}", budgets(standin)) };
        assert!(streamable > 2 * LEFT);
        assert_eq!(talk(&mut backend, &all), expected);
        assert_eq!(sections_launched(&mut backend, device), (1, 0));
        drop(backend);

        // Too little even for what has to be there: every number is said.
        let hopeless = Ballast::leaving(128 << 20);
        let error = open(&streaming, standin).unwrap_err();
        assert!(matches!(error, EngineError::Capacity(_)), "{error:?}");
        let said = error.to_string();
        assert!(said.contains(&format!("{} of", 128 << 20)) && said.contains("(weights 0, "), "{said}");
        // Before TensorRT is asked what it takes while it runs.
        assert_eq!(budgets(standin), [0; 0]);
        drop(hopeless);

        // What is kept besides weights, found where none of them has room.
        let without_scratch = number(&said, "the engine takes");
        let just = Ballast::leaving(without_scratch);
        let said = open(&streaming, standin).unwrap_err().to_string();
        assert_eq!(budgets(standin), [0, 0]);
        let others = number(&said, "the engine takes");
        assert!(others > without_scratch, "{said}");
        let parts = ["KV cache", "workspace", "driver"].map(|part| number(&said, part));
        assert_eq!(parts.iter().sum::<u64>(), others, "{said}");
        assert!(said.contains(&format!("{without_scratch} of")), "{said}");
        drop(just);
        for (room, fits) in [(others - 1, false), (others, true)] {
            let ballast = Ballast::leaving(room);
            assert_eq!(open(&streaming, standin).is_ok(), fits, "{room} of {others}");
            assert_eq!(budgets(standin), [0, 0]);
            drop(ballast);
        }

        // Room for all but a few of them.
        let tight = Ballast::leaving(others + streamable - LEFT);
        let mut backend = open(&streaming, standin).unwrap();
        assert_eq!(budgets(standin), [0, streamable - LEFT]);
        assert_eq!(talk(&mut backend, &all), expected, "the answers are the same");
        // What is sent while a plan runs is in no graph.
        assert_eq!(sections_launched(&mut backend, device), (0, 1));
        drop((backend, tight));
        // To the byte.
        let ample = Ballast::leaving(others + streamable);
        drop(open(&streaming, standin).unwrap());
        assert_eq!(budgets(standin), [0, streamable]);
        drop(ample);
        assert_eq!(standin.alive(), [""; 0]);
        assert_eq!(device.report().leaks(), Vec::<String>::new());
    });
}

/// How many graphs and how many host functions, which is how the stand-in runs outside of graphs, a decode step starts.
fn sections_launched(backend: &mut dyn Backend, device: &crate::emulator::driver::Device) -> (u64, u64) {
    backend.truncate(LaneId(0), 0).unwrap();
    run_slices(backend, LaneId(0), &[1, 2, 3], 3);
    let mut plan = StepPlan::default();
    plan.push(LaneId(0), &[4], LogitsWanted::Last);
    backend.run_step(&plan).unwrap();
    let before = device.report();
    backend.run_step(&plan).unwrap();
    let calls = device.report().calls_since(&before);
    let count = |name: &str| calls.get(name).copied().unwrap_or(0);
    (count("cuGraphLaunch"), count("cuLaunchHostFunc"))
}
