//! The driver layer on an emulated device: what it gives, what it gives back, and what it says when something fails.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod emulator;

use std::{path::Path, time::Duration};

use emulator::driver::{Device as Emulated, EmulatedDevice};
use takt_kernels_cu::{
    driver::{
        DriverError,
        context::{Context, Share},
        device::{self, Device},
        memory::{DeviceBuffer, MappedBuffer},
        module::Kernels,
        stream::{Graph, Stream},
    },
    launch::{Geometry, Launch},
};

const SHARES: [Share; 3] = [Share::GreenContext { num_sms: 8 }, Share::Priority, Share::None];
const USUAL: Duration = Duration::from_micros(100);
const LIMIT: Duration = Duration::from_secs(20);
const NUM_VALUES: usize = 100;

type Result<T> = std::result::Result<T, DriverError>;

/// What an engine does in small: values on the device, an addend in mapped memory, and a graph that adds it twice.
#[derive(Debug)]
struct Session {
    graph: Graph,
    stream: Stream,
    values: DeviceBuffer,
    addend: MappedBuffer,
    _kernels: Kernels,
    context: Context,
}

impl Session {
    fn open(device: &Device, share: Share) -> Result<Self> {
        let (context, fallback) = Context::open(device, share)?;
        if let Some(fallback) = fallback {
            // Tests that do not ask for it must not get it.
            return Err(DriverError::Call { call: "fallback", reason: fallback.reason });
        }
        Self::in_context(context)
    }

    fn in_context(context: Context) -> Result<Self> {
        let stream = Stream::new(&context)?;
        let mut kernels = Kernels::load(&context, [&image()[..]])?;
        let values = DeviceBuffer::new(&context, NUM_VALUES * 4, "values")?;
        let addend = MappedBuffer::new(&context, 4, "addend")?;
        stream.zero(&values)?;
        let launch = add_to_all(&values, &addend);
        // Looked up before the capture.
        stream.launch(&mut kernels, &launch)?;
        stream.synchronize()?;
        let graph = stream.capture(|stream| {
            stream.launch(&mut kernels, &launch)?;
            stream.launch(&mut kernels, &launch)
        })?;
        Ok(Self { graph, stream, values, addend, _kernels: kernels, context })
    }

    fn step(&mut self, addend: i32) -> Result<()> {
        self.addend.bytes_mut().copy_from_slice(&addend.to_le_bytes());
        self.stream.run(&self.graph)?;
        self.stream.wait(USUAL, LIMIT).map(drop)
    }

    fn values(&self) -> Result<Vec<i32>> {
        let mut bytes = [0; NUM_VALUES * 4];
        self.stream.download(&self.values, 0, &mut bytes)?;
        Ok(bytes.as_chunks::<4>().0.iter().map(|value| i32::from_le_bytes(*value)).collect())
    }
}

fn add_to_all(values: &DeviceBuffer, addend: &MappedBuffer) -> Launch {
    let arguments = vec![values.address().into(), 100_i32.into(), addend.address().into()];
    Launch::new("add_to_all", Geometry::linear(2, 64), arguments).unwrap()
}

/// The least image that is one: an ELF header of no machine, in which the emulated device finds every kernel.
fn image() -> [u8; 64] {
    let mut image = [0; 64];
    image[..6].copy_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1]);
    image
}

fn emulated(test: &'static str) -> EmulatedDevice {
    let kernels = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/emulator/driver/test_kernels.cu");
    EmulatedDevice::new(test).kernel_files(&[kernels])
}

fn device() -> Device {
    device::probe().unwrap().remove(0)
}

#[track_caller]
fn nothing_is_left(emulated: &Emulated, of: &dyn std::fmt::Debug) {
    assert_eq!(emulated.report().leaks(), Vec::<String>::new(), "{of:?}");
}

#[test]
fn the_device_is_what_it_says() {
    emulated("the_device_is_what_it_says").sm(110).memory_bytes(1 << 20).run(|emulated| {
        let device = device();
        assert_eq!((device.compute_capability, device.num_sms, device.is_integrated), ((11, 0), 20, true));
        assert_eq!(device.memory_bytes, 1 << 20);
        assert!(device.target().is_some());
        nothing_is_left(emulated, &"probe");
    });
}

#[test]
fn steps_add_what_the_host_says_and_everything_is_given_back() {
    emulated("steps_add_what_the_host_says_and_everything_is_given_back").run(|emulated| {
        let device = device();
        for share in SHARES {
            let mut session = Session::open(&device, share).unwrap();
            assert_eq!(session.values().unwrap(), [0; NUM_VALUES]);
            session.step(1).unwrap();
            session.step(20).unwrap();
            assert_eq!(session.values().unwrap(), [42; NUM_VALUES]);
            drop(session);
            nothing_is_left(emulated, &share);
        }
    });
}

#[test]
fn a_step_allocates_nothing_and_launches_once() {
    emulated("a_step_allocates_nothing_and_launches_once").run(|emulated| {
        let mut session = Session::open(&device(), Share::Priority).unwrap();
        session.step(1).unwrap();
        let before = emulated.report();
        session.step(1).unwrap();
        let calls = emulated.report().calls_since(&before);
        let names: Vec<_> = calls.keys().map(String::as_str).collect();
        assert_eq!(names, ["cuEventQuery", "cuEventRecord", "cuGraphLaunch"]);
        assert_eq!((calls["cuEventRecord"], calls["cuGraphLaunch"]), (1, 1));
    });
}

#[test]
fn copies_keep_to_their_buffers() {
    emulated("copies_keep_to_their_buffers").run(|_| {
        let (context, _) = Context::open(&device(), Share::None).unwrap();
        let stream = Stream::new(&context).unwrap();
        let buffer = DeviceBuffer::new(&context, 10, "bytes").unwrap();
        let mut seen = [0; 10];
        stream.upload(&[1, 2, 3, 4, 5, 6, 7, 8, 9, 10], &buffer, 0).unwrap();
        stream.upload(&[20, 30], &buffer, 8).unwrap();
        stream.copy(buffer.address().offset(8).unwrap(), buffer.address(), 2).unwrap();
        stream.download(&buffer, 0, &mut seen).unwrap();
        assert_eq!(seen, [20, 30, 3, 4, 5, 6, 7, 8, 20, 30]);
        assert!(stream.upload(&[0, 0], &buffer, 9).is_err());
        assert!(stream.upload(&[0, 0], &buffer, usize::MAX).is_err());
        assert!(stream.download(&buffer, 1, &mut seen).is_err());
        stream.zero(&buffer).unwrap();
        stream.download(&buffer, 0, &mut seen).unwrap();
        assert_eq!(seen, [0; 10]);
    });
}

#[test]
fn without_memory_for_its_nth_allocation_a_session_says_so_and_leaves_nothing() {
    emulated("without_memory_for_its_nth_allocation_a_session_says_so_and_leaves_nothing").run(|emulated| {
        let device = device();
        for share in SHARES {
            for n in 1..=2 {
                emulated.fail_allocation(n);
                let error = Session::open(&device, share).unwrap_err();
                assert!(matches!(error, DriverError::OutOfMemory { free_bytes: 1.., .. }), "{error}");
                nothing_is_left(emulated, &(share, n));
            }
            emulated.fail_allocation(3);
            Session::open(&device, share).unwrap();
            emulated.fail_allocation(0);
        }
    });
}

/// Every call of opening and of a step fails in turn.
#[test]
fn whatever_call_fails_is_told_and_leaves_nothing() {
    const NOT_PERMITTED: i32 = 800;
    emulated("whatever_call_fails_is_told_and_leaves_nothing").run(|emulated| {
        let device = device();
        for share in SHARES {
            let before = emulated.report();
            let mut session = Session::open(&device, share).unwrap();
            session.step(1).unwrap();
            let calls = emulated.report().calls_since(&before);
            drop(session);
            // What a call does not give back stays; a capture that does not end keeps memory from being freed before the context is.
            let gives_back = |name: &str| ["cuGraphDestroy", "cuStreamEndCapture"].contains(&name);
            for (name, count) in calls.into_iter().filter(|(name, _)| !gives_back(name)) {
                for n in 1..=count {
                    let before = emulated.report().calls(&name);
                    emulated.fail_call(&name, n, NOT_PERMITTED);
                    let result = Session::open(&device, share).and_then(|mut session| session.step(1));
                    let was_called = emulated.report().calls(&name) - before >= n;
                    emulated.fail_call(&name, 0, 0);
                    let error = result.err().map(|error| error.to_string()).unwrap_or_default();
                    // How often an event is asked for depends on time.
                    let may_be_missed = name == "cuEventQuery" && !was_called;
                    assert!(
                        may_be_missed || error.contains("NOT_PERMITTED"),
                        "{share:?} {name} {n}: {error:?}"
                    );
                    nothing_is_left(emulated, &(share, &name, n));
                }
            }
        }
    });
}

#[test]
fn a_failed_kernel_loses_the_context_and_the_next_session_works() {
    emulated("a_failed_kernel_loses_the_context_and_the_next_session_works").run(|emulated| {
        let device = device();
        for share in SHARES {
            // The first kernel of all, one of the graph's first run, one of its second.
            for n in [1, 3, 4] {
                emulated.fail_launch(n);
                let steps = |session: &mut Session| session.step(1).and_then(|()| session.step(1));
                let mut opened = Session::open(&device, share);
                let error = match &mut opened {
                    Ok(session) => steps(session).unwrap_err(),
                    Err(error) => error.clone(),
                };
                assert!(error.is_lost(), "{error}");
                if let Ok(session) = &mut opened {
                    assert!(session.context.is_lost());
                    assert!(session.step(1).unwrap_err().is_lost());
                }
                drop(opened);
                let report = emulated.report();
                assert_eq!((report.value("contexts"), report.value("green_contexts")), (0, 0));
                assert_eq!(report.value("device_allocations") + report.value("host_allocations"), 0);
                let mut session = Session::open(&device, share).unwrap();
                session.step(3).unwrap();
                assert_eq!(session.values().unwrap(), [6; NUM_VALUES]);
            }
        }
    });
}

/// However long the device takes: a sleep ends no earlier than it should, so that the number of looks is bounded on any machine.
#[test]
fn the_device_is_looked_at_now_and_then_and_never_spun_on() {
    emulated("the_device_is_looked_at_now_and_then_and_never_spun_on").run(|emulated| {
        let session = Session::open(&device(), Share::Priority).unwrap();
        emulated.hang_launch(2);
        let before = emulated.report().calls("cuEventQuery");
        session.stream.run(&session.graph).unwrap();
        session.stream.wait(USUAL, Duration::from_millis(300)).unwrap_err();
        let num_looks = emulated.report().calls("cuEventQuery") - before;
        // The usual time; 14 sleeps from 50 µs on, each a quarter longer, are 4 ms; then one a millisecond, and a last look.
        assert!((2..=1 + 14 + 296 + 2).contains(&num_looks), "{num_looks}");
    });
}

#[test]
fn a_hung_kernel_is_waited_for_no_longer_than_allowed_and_the_next_session_works() {
    emulated("a_hung_kernel_is_waited_for_no_longer_than_allowed_and_the_next_session_works").run(
        |emulated| {
            let device = device();
            for share in SHARES {
                let mut session = Session::open(&device, share).unwrap();
                emulated.hang_launch(2);
                session.stream.run(&session.graph).unwrap();
                let error = session.stream.wait(USUAL, Duration::from_millis(50)).unwrap_err();
                assert!(matches!(error, DriverError::TimedOut { waited_ms: 50.. }), "{error}");
                drop(session);
                session = Session::open(&device, share).unwrap();
                session.step(1).unwrap();
                assert_eq!(session.values().unwrap(), [2; NUM_VALUES]);
            }
        },
    );
}

#[test]
fn without_a_green_context_the_session_has_the_lowest_priority_and_the_reason() {
    emulated("without_a_green_context_the_session_has_the_lowest_priority_and_the_reason").run(|emulated| {
        let device = device();
        for call in ["cuDevSmResourceSplitByCount", "cuGreenCtxCreate", "cuCtxFromGreenCtx"] {
            let not_supported = 801;
            emulated.fail_call(call, 1, not_supported);
            let (context, fallback) = Context::open(&device, Share::GreenContext { num_sms: 8 }).unwrap();
            assert!(fallback.unwrap().reason.contains("NOT_SUPPORTED"));
            assert_eq!(context.share(), Share::Priority);
            Session::in_context(context).unwrap().step(1).unwrap();
            nothing_is_left(emulated, &call);
        }
    });
}

/// Whoever waits for memory gets the green context that was asked for, when there is some.
#[test]
fn what_the_driver_has_no_memory_for_is_told_and_is_no_reason_to_go_on_without_it() {
    let test = "what_the_driver_has_no_memory_for_is_told_and_is_no_reason_to_go_on_without_it";
    emulated(test).run(|emulated| {
        const OUT_OF_MEMORY: i32 = 2;
        let (device, green) = (device(), SHARES[0]);
        for (share, call) in [
            (green, "cuGreenCtxCreate"),
            (green, "cuGreenCtxStreamCreate"),
            (green, "cuModuleLoadData"),
            (Share::None, "cuCtxCreate_v4"),
            (Share::None, "cuStreamCreateWithPriority"),
        ] {
            emulated.fail_call(call, 1, OUT_OF_MEMORY);
            let error = Session::open(&device, share).unwrap_err();
            assert!(matches!(error, DriverError::NoMemory { .. }), "{call}: {error}");
            assert!(!error.is_lost(), "{call}: {error}");
            nothing_is_left(emulated, &call);
        }
    });
}

/// Perception keeps what it was left: a device splits off parts of its own sizes, and the driver rounds up.
#[test]
fn a_green_context_has_no_more_multiprocessors_than_asked_unless_it_is_the_smallest_part() {
    let test = "a_green_context_has_no_more_multiprocessors_than_asked_unless_it_is_the_smallest_part";
    emulated(test).sm(110).run(|emulated| {
        let device = device();
        assert_eq!(device.num_sms, 20);
        for (asked, found) in
            [(1, 8), (8, 8), (9, 8), (10, 8), (15, 8), (16, 16), (17, 16), (19, 16), (20, 20), (99, 20)]
        {
            let (context, fallback) = Context::open(&device, Share::GreenContext { num_sms: asked }).unwrap();
            assert_eq!((context.num_sms(), fallback), (found, None), "{asked}");
        }
        nothing_is_left(emulated, &"all");
    });
}

#[test]
fn a_cubin_of_another_device_is_refused_and_so_is_what_is_none() {
    emulated("a_cubin_of_another_device_is_refused_and_so_is_what_is_none").sm(87).run(|emulated| {
        let (context, _) = Context::open(&device(), Share::None).unwrap();
        let thor = include_bytes!("fixtures/cubin/sm_110a.cubin");
        let error = Kernels::load(&context, [&thor[..]]).unwrap_err();
        assert!(error.to_string().contains("NO_BINARY_FOR_GPU"), "{error}");
        let error = Kernels::load(&context, [&image()[..], b"no image"]).unwrap_err();
        assert!(error.to_string().contains("INVALID_IMAGE"), "{error}");
        assert_eq!(emulated.report().value("modules"), 0);
        let stream = Stream::new(&context).unwrap();
        let orin = include_bytes!("fixtures/cubin/sm_87.cubin");
        let mut kernels = Kernels::load(&context, [&orin[..]]).unwrap();
        let launch = Launch::new("add_to_all", Geometry::linear(1, 1), Vec::new()).unwrap();
        assert!(matches!(stream.launch(&mut kernels, &launch), Err(DriverError::NoKernel { .. })));
    });
}

#[test]
fn what_stands_in_for_perception_is_in_the_devices_own_context_and_ahead_of_every_share() {
    let test = "what_stands_in_for_perception_is_in_the_devices_own_context_and_ahead_of_every_share";
    emulated(test).run(|emulated| {
        let device = device();
        for share in SHARES {
            let session = Session::open(&device, share).unwrap();
            let perception = Context::primary(&device).unwrap();
            let ahead = Stream::ahead_of_others(&perception).unwrap();
            assert!(ahead.priority().unwrap() < session.stream.priority().unwrap(), "{share:?}");
            assert_eq!((perception.num_sms(), perception.share()), (device.num_sms, Share::None));
            // Each goes without the other.
            drop((ahead, perception));
            let mut session = session;
            session.context.make_current().unwrap();
            session.step(3).unwrap();
            drop(session);
            nothing_is_left(emulated, &share);
        }
        assert_eq!(emulated.report().calls("cuDevicePrimaryCtxRetain"), 3);
        assert_eq!(emulated.report().calls("cuDevicePrimaryCtxRelease_v2"), 3);
    });
}
