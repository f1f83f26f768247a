use super::*;
use crate::launch::{Argument, DeviceAddress, Geometry};

struct Fixture {
    target: Target,
    cubin: &'static [u8],
    /// What `cuobjdump -res-usage` says of it.
    usage: &'static str,
}

macro_rules! fixture {
    ($target:expr, $name:literal) => {
        Fixture {
            target: $target,
            cubin: include_bytes!(concat!("../../tests/fixtures/cubin/", $name, ".cubin")),
            usage: include_str!(concat!("../../tests/fixtures/cubin/", $name, ".txt")),
        }
    };
}

const FIXTURES: [Fixture; 3] = [
    fixture!(Target::Orin, "sm_87"),
    fixture!(Target::Orin, "sm_87-12.6"),
    fixture!(Target::Thor, "sm_110a"),
];

/// The number behind `key` in a line like `REG:64 STACK:32`.
fn number(line: &str, key: &str) -> u64 {
    let word = line.split_whitespace().find_map(|word| word.strip_prefix(key)).unwrap();
    word.parse().unwrap()
}

#[test]
fn figures_are_those_of_cuobjdump() {
    for fixture in FIXTURES {
        let image = Image::parse(fixture.cubin.to_vec(), fixture.target).unwrap();
        let mut lines = fixture.usage.lines();
        let mut num_kernels = 0;
        while let Some(line) = lines.next() {
            let Some(name) = line.trim().strip_prefix("Function ") else { continue };
            let (name, usage) = (name.trim_end_matches(':'), lines.next().unwrap());
            let kernel = image.kernel(name).unwrap();
            assert_eq!(u64::from(kernel.registers), number(usage, "REG:"), "{name}");
            assert_eq!(u64::from(kernel.stack_bytes), number(usage, "STACK:"), "{name}");
            assert_eq!(kernel.local_bytes, number(usage, "LOCAL:"), "{name}");
            assert_eq!(kernel.shared_bytes, number(usage, "SHARED:"), "{name}");
            num_kernels += 1;
        }
        assert_eq!(num_kernels, image.kernels().len());
        assert_eq!(num_kernels, 4);
    }
}

#[test]
fn spills_and_arrays_in_memory_are_seen() {
    let image = Image::parse(FIXTURES[1].cubin.to_vec(), Target::Orin).unwrap();
    let spilling: Vec<_> = image.kernels().iter().filter(|kernel| kernel.spills()).collect();
    assert_eq!(spilling.iter().map(|kernel| kernel.name.as_str()).collect::<Vec<_>>(), ["spills", "stack"]);
}

#[test]
fn parameters_and_bounds_are_read() {
    for fixture in FIXTURES {
        let image = Image::parse(fixture.cubin.to_vec(), fixture.target).unwrap();
        let kernel = image.kernel("shared_memory").unwrap();
        assert_eq!(kernel.parameter_bytes, [8, 8, 2, 1]);
        assert_eq!(kernel.max_threads, Some(256));
        assert_eq!(kernel.shared_bytes, 4000 + u64::from(fixture.target.reserved_shared_bytes()));
        assert_eq!(image.kernel("stack").unwrap().max_threads, None);
        assert!(image.kernel("nothing").is_none());
    }
}

#[test]
fn a_launch_that_does_not_fit_the_kernel_is_refused() {
    let image = Image::parse(FIXTURES[0].cubin.to_vec(), Target::Orin).unwrap();
    let kernel = image.kernel("plain").unwrap();
    let address = || Argument::from(DeviceAddress(256));
    let check = |threads, shared_bytes, arguments| {
        let geometry = Geometry { shared_bytes, ..Geometry::linear(1, threads) };
        kernel.check(&Launch::new("plain", geometry, arguments).unwrap(), Target::Orin)
    };
    let whole = || vec![address(), address(), 7_i32.into()];
    assert_eq!(check(128, 0, whole()), Ok(()));
    assert!(matches!(
        check(128, 0, vec![address(); 2]),
        Err(LaunchError::Mismatch { found: 2, expected: 3, .. })
    ));
    assert!(matches!(
        check(128, 0, vec![address(); 3]),
        Err(LaunchError::Mismatch { found: 8, expected: 4, .. })
    ));
    assert!(matches!(check(129, 0, whole()), Err(LaunchError::TooLarge { found: 129, max: 128, .. })));
}

#[test]
fn a_block_may_have_all_the_targets_shared_memory() {
    for fixture in FIXTURES {
        let image = Image::parse(fixture.cubin.to_vec(), fixture.target).unwrap();
        let mut kernel = image.kernel("shared_memory").unwrap().clone();
        kernel.parameter_bytes = Vec::new();
        let geometry = Geometry { shared_bytes: crate::launch::MAX_SHARED_BYTES, ..Geometry::linear(1, 256) };
        let launch = Launch::new("shared_memory", geometry, Vec::new()).unwrap();
        // Static memory that just fits beside it, and one byte more.
        let room = fixture.target.max_shared_bytes() - crate::launch::MAX_SHARED_BYTES;
        kernel.shared_bytes = u64::from(room + fixture.target.reserved_shared_bytes());
        assert_eq!(kernel.check(&launch, fixture.target), Ok(()));
        kernel.shared_bytes += 1;
        assert!(matches!(kernel.check(&launch, fixture.target), Err(LaunchError::TooLarge { .. })));
    }
}

#[test]
fn a_cubin_for_another_target_is_refused() {
    let error = Image::parse(FIXTURES[0].cubin.to_vec(), Target::Thor).unwrap_err();
    assert_eq!(error.to_string(), "cubin for sm_87, expected sm_110a");
    let error = Image::parse(FIXTURES[1].cubin.to_vec(), Target::Hopper).unwrap_err();
    assert_eq!(error, ImageError::OtherTarget { found: 87, expected: Target::Hopper });
}

#[test]
fn what_is_no_cubin_is_refused() {
    for bytes in [&b""[..], b"\x7fELF", b"// PTX", &[0; 100]] {
        assert!(Image::parse(bytes.to_vec(), Target::Orin).is_err());
    }
    let own = std::fs::read(std::env::current_exe().unwrap()).unwrap();
    assert!(matches!(Image::parse(own, Target::Orin), Err(ImageError::NotCubin { .. })));
}

#[test]
fn a_cubin_cut_anywhere_never_panics() {
    for fixture in FIXTURES {
        for len in 0..fixture.cubin.len() {
            drop(Image::parse(fixture.cubin[..len].to_vec(), fixture.target));
        }
        assert!(Image::parse(fixture.cubin[..fixture.cubin.len() / 2].to_vec(), fixture.target).is_err());
    }
}

#[test]
fn a_cubin_with_any_byte_changed_never_panics() {
    for fixture in FIXTURES {
        let mut bytes = fixture.cubin.to_vec();
        for position in 0..bytes.len() {
            let whole = bytes[position];
            for wrong in [0, 0xff, whole ^ 0x80] {
                bytes[position] = wrong;
                drop(Image::parse(bytes.clone(), fixture.target));
            }
            bytes[position] = whole;
        }
    }
}
