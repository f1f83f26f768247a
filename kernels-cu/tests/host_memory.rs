//! Memory of the processor's that the device reads in place: a mapped file, as weights are.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod emulator;

use std::{
    fs::File,
    io::Write as _,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use emulator::driver::{Device as Emulated, EmulatedDevice};
use memmap2::Mmap;
use takt_kernels_cu::{
    driver::{
        DriverError,
        context::{Context, Share},
        device,
        host_memory::{HostMemory, HostReach, SharedBytes},
        memory::DeviceBuffer,
        module::Kernels,
        stream::Stream,
    },
    launch::{DeviceAddress, Geometry, Launch},
};

fn emulated(test: &'static str) -> EmulatedDevice {
    let kernels = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/emulator/driver/test_kernels.cu");
    EmulatedDevice::new(test).sm(87).kernel_files(&[kernels])
}

fn context() -> Context {
    Context::open(&device::probe().unwrap()[0], Share::None).unwrap().0
}

/// A file of 5,000 bytes, 1,250 numbers, mapped for reading alone.
fn mapped() -> SharedBytes {
    let mut file = tempfile::tempfile().unwrap();
    let numbers = (0..1250_i32).flat_map(i32::to_le_bytes).collect::<Vec<u8>>();
    file.write_all(&numbers).unwrap();
    Arc::new(map(&file))
}

#[expect(unsafe_code, reason = "memory-mapping a file")]
fn map(file: &File) -> Mmap {
    // SAFETY: nobody else has the file.
    unsafe { Mmap::map(file) }.unwrap()
}

/// The number at `from`, fetched by a kernel.
fn number_at(context: &Context, from: DeviceAddress) -> Result<i32, DriverError> {
    let mut image = [0; 64];
    image[..6].copy_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1]);
    let mut kernels = Kernels::load(context, [&image[..]])?;
    let (stream, to) = (Stream::new(context)?, DeviceBuffer::new(context, 4, "a number")?);
    let launch = Launch::new("copy_one", Geometry::linear(1, 1), vec![to.address().into(), from.into()]);
    stream.launch(&mut kernels, &launch.unwrap())?;
    let mut bytes = [0; 4];
    stream.download(&to, 0, &mut bytes)?;
    Ok(i32::from_le_bytes(bytes))
}

/// Reads some numbers of a mapped file in place.
fn read_in_place(memory: &HostMemory, context: &Context) {
    for idx in [0, 1, 700, 1249] {
        let part = &memory.bytes()[idx * 4..idx * 4 + 4];
        let number = number_at(context, memory.address_of(part).unwrap()).unwrap();
        assert_eq!(number, idx as i32);
    }
    assert_eq!(memory.address_of(&[1, 2, 3]), None);
}

fn registered_bytes(emulated: &Emulated) -> u64 {
    emulated.report().value("registered_bytes")
}

#[test]
fn a_mapped_file_is_registered_read_in_place_and_given_back() {
    emulated("a_mapped_file_is_registered_read_in_place_and_given_back").run(|emulated| {
        assert_eq!(device::probe().unwrap()[0].host_reach, HostReach::Registered);
        let (context, bytes) = (context(), mapped());
        let memory = HostMemory::new(&context, Arc::clone(&bytes)).unwrap();
        assert!(memory.is_registered());
        assert_eq!(registered_bytes(emulated), 5000);
        read_in_place(&memory, &context);
        assert_eq!(Arc::strong_count(&bytes), 2, "held as long as the device may read it");
        drop(memory);
        assert_eq!((registered_bytes(emulated), Arc::strong_count(&bytes)), (0, 1));
        // What was given back can be registered again, by another context too.
        drop(HostMemory::new(&context, bytes).unwrap());
        drop(context);
        assert_eq!(emulated.report().leaks(), Vec::<String>::new());
    });
}

/// Shows other bytes every time it is asked, all of them good for ever.
struct Fickle {
    shown: AtomicUsize,
    all: [Vec<u8>; 3],
}

impl AsRef<[u8]> for Fickle {
    fn as_ref(&self) -> &[u8] {
        &self.all[self.shown.fetch_add(1, Ordering::Relaxed) % self.all.len()]
    }
}

#[test]
fn an_owner_that_shows_other_bytes_later_does_not_mislead_the_device() {
    emulated("an_owner_that_shows_other_bytes_later_does_not_mislead_the_device").run(|emulated| {
        let numbers = |first: i32| (first..first + 1250).flat_map(i32::to_le_bytes).collect();
        let all = [numbers(0), numbers(5000), numbers(9000)];
        let context = context();
        let fickle = Arc::new(Fickle { shown: AtomicUsize::new(0), all });
        let memory = HostMemory::new(&context, fickle).unwrap();
        read_in_place(&memory, &context);
        drop(memory);
        assert_eq!(registered_bytes(emulated), 0, "what was registered is given back, and nothing else");
        drop(context);
        assert_eq!(emulated.report().leaks(), Vec::<String>::new());
    });
}

#[test]
fn what_a_lost_context_may_still_read_is_held_until_it_goes() {
    for reach in [HostReach::Registered, HostReach::PageTables] {
        let test = "what_a_lost_context_may_still_read_is_held_until_it_goes";
        emulated(test).host_reach(reach).run(|_| {
            let (context, bytes) = (context(), mapped());
            let memory = HostMemory::new(&context, Arc::clone(&bytes)).unwrap();
            context.give_up();
            drop(memory);
            assert_eq!(Arc::strong_count(&bytes), 2, "a kernel that hangs may read");
            drop(context);
            assert_eq!(Arc::strong_count(&bytes), 1);
        });
    }
}

#[test]
fn where_page_tables_are_shared_nothing_is_registered() {
    let test = "where_page_tables_are_shared_nothing_is_registered";
    emulated(test).host_reach(HostReach::PageTables).run(|emulated| {
        let context = context();
        let memory = HostMemory::new(&context, mapped()).unwrap();
        assert!(!memory.is_registered());
        read_in_place(&memory, &context);
        assert_eq!(emulated.report().calls("cuMemHostRegister_v2"), 0);
    });
}

#[test]
fn a_device_that_reads_none_and_a_driver_that_refuses_are_told() {
    let test = "a_device_that_reads_none_and_a_driver_that_refuses_are_told";
    emulated(test).host_reach(HostReach::Nothing).run(|emulated| {
        let (context, bytes) = (context(), mapped());
        let error = HostMemory::new(&context, Arc::clone(&bytes)).unwrap_err().to_string();
        assert!(error.contains("reads no memory"), "{error}");
        assert_eq!(emulated.report().calls("cuMemHostRegister_v2"), 0);
        assert_eq!(Arc::strong_count(&bytes), 1);
    });
}

#[test]
fn a_refused_registration_leaves_nothing_registered() {
    emulated("a_refused_registration_leaves_nothing_registered").run(|emulated| {
        let (context, bytes, not_supported) = (context(), mapped(), 801);
        for call in ["cuMemHostRegister_v2", "cuMemHostGetDevicePointer_v2"] {
            emulated.fail_call(call, 1, not_supported);
            let error = HostMemory::new(&context, Arc::clone(&bytes)).unwrap_err().to_string();
            assert!(error.contains("NOT_SUPPORTED"), "{error}");
            assert_eq!((registered_bytes(emulated), Arc::strong_count(&bytes)), (0, 1), "{call}");
        }
        assert!(HostMemory::new(&context, Arc::new([0_u8; 0])).is_err());
    });
}
