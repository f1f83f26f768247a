//! Copies and fills, and what they wait for.

use std::ffi::c_void;

use super::{
    CUresult, Gate, context, destroy, device, device_memory, device_values, ok, pinned, stream, values_of,
};

fn sum(from: &[i32]) -> i32 {
    from.iter().sum()
}

#[test]
fn bytes_go_to_the_device_within_it_and_back() {
    device("copies::bytes_go_to_the_device_within_it_and_back").run(|_| {
        let context = context();
        let (first, second, stream) = (device_values(&[1, 2, 3, 4]), device_memory(16), stream());
        ok(call!(cuMemcpyDtoDAsync_v2(second, first, 16, stream)));
        ok(call!(cuMemcpyDtoDAsync_v2(second + 4, first, 4, stream)));
        assert_eq!(values_of(second, 4), [1, 1, 3, 4]);
        ok(call!(cuMemsetD32Async(second + 8, 9, 2, stream)));
        ok(call!(cuMemsetD8Async(second, 1, 4, stream)));
        assert_eq!(values_of(second, 4), [0x0101_0101, 1, 9, 9]);
        destroy(context);
    });
}

#[test]
fn a_range_that_is_not_all_in_one_live_allocation_is_refused() {
    device("copies::a_range_that_is_not_all_in_one_live_allocation_is_refused").run(|_| {
        let context = context();
        let (address, freed, stream) = (device_memory(16), device_memory(16), stream());
        let values = [0_i32; 8];
        let from: *const c_void = values.as_ptr().cast();
        let refused = CUresult::CUDA_ERROR_INVALID_VALUE;
        ok(call!(cuMemFree_v2(freed)));
        for (to, bytes) in
            [(address, 17), (address + 4, 16), (address - 1, 4), (freed, 4), (0, 4), (u64::MAX, 4)]
        {
            assert_eq!(call!(cuMemcpyHtoDAsync_v2(to, from, bytes, stream)), refused, "{to:x} {bytes}");
            assert_eq!(call!(cuMemcpyHtoD_v2(to, from, bytes)), refused);
            assert_eq!(call!(cuMemcpyDtoDAsync_v2(address, to, bytes, stream)), refused);
            assert_eq!(call!(cuMemsetD8Async(to, 0, bytes, stream)), refused);
        }
        assert_eq!(call!(cuMemcpyHtoDAsync_v2(address, std::ptr::null(), 4, stream)), refused);
        // A device address is no host address.
        assert_eq!(call!(cuMemcpyHtoDAsync_v2(address, address as *const c_void, 4, stream)), refused);
        assert_eq!(call!(cuMemsetD32Async(address + 1, 0, 1, stream)), refused);
        assert_eq!(call!(cuMemcpyDtoDAsync_v2(address + 4, address, 8, stream)), refused, "overlaps");
        ok(call!(cuMemcpyDtoDAsync_v2(address + 8, address, 8, stream)));
        ok(call!(cuMemcpyHtoDAsync_v2(address, from, 16, stream)));
        destroy(context);
    });
}

#[test]
fn a_copy_from_pinned_memory_reads_it_when_its_turn_comes() {
    device("copies::a_copy_from_pinned_memory_reads_it_when_its_turn_comes").run(|_| {
        let context = context();
        let (to, host, stream) = (device_values(&[0]), pinned(1), stream());
        let gate = Gate::before(stream);
        ok(call!(cuMemcpyHtoDAsync_v2(to, host.cast(), 4, stream)));
        // Too early: the copy has not begun.
        // SAFETY: one value was allocated; that the device may read it now is the point.
        unsafe { host.write_volatile(5) };
        gate.open();
        assert_eq!(values_of(to, 1), [5]);
        destroy(context);
    });
}

#[test]
fn a_copy_from_pageable_memory_has_read_it_when_it_returns() {
    device("copies::a_copy_from_pageable_memory_has_read_it_when_it_returns").run(|_| {
        let context = context();
        let (to, stream) = (device_values(&[0, 0]), stream());
        let gate = Gate::before(stream);
        let mut values = [1, 2];
        ok(call!(cuMemcpyHtoDAsync_v2(to, values.as_ptr().cast(), 8, stream)));
        values = [3, 4];
        gate.open();
        assert_eq!((values_of(to, 2), sum(&values)), (vec![1, 2], 7));
        destroy(context);
    });
}

#[test]
fn a_copy_to_pinned_memory_is_not_there_before_the_wait() {
    device("copies::a_copy_to_pinned_memory_is_not_there_before_the_wait").run(|_| {
        let context = context();
        let (from, host, stream) = (device_values(&[6]), pinned(1), stream());
        let gate = Gate::before(stream);
        ok(call!(cuMemcpyDtoHAsync_v2(host.cast(), from, 4, stream)));
        // SAFETY: one value was allocated; that the device may write it now is the point.
        assert_eq!(unsafe { host.read_volatile() }, 0);
        gate.open();
        ok(call!(cuStreamSynchronize(stream)));
        // SAFETY: as above, and the device is idle.
        assert_eq!(unsafe { host.read_volatile() }, 6);
        let mut pageable = 0_i32;
        ok(call!(cuMemcpyDtoHAsync_v2((&raw mut pageable).cast(), from, 4, stream)));
        assert_eq!(pageable, 6);
        destroy(context);
    });
}

#[test]
fn a_plain_copy_does_not_wait_for_non_blocking_streams() {
    device("copies::a_plain_copy_does_not_wait_for_non_blocking_streams").run(|_| {
        let context = context();
        let (values, apart, mut blocking, mut seen) =
            (device_values(&[1]), stream(), std::ptr::null_mut(), 0_i32);
        let gate = Gate::before(apart);
        ok(call!(cuMemsetD32Async(values, 2, 1, apart)));
        ok(call!(cuMemcpyDtoH_v2((&raw mut seen).cast(), values, 4)));
        assert_eq!(seen, 1);
        gate.open();
        ok(call!(cuStreamSynchronize(apart)));
        ok(call!(cuStreamCreate(&raw mut blocking, 0)));
        ok(call!(cuMemsetD32Async(values, 3, 1, blocking)));
        ok(call!(cuMemcpyDtoH_v2((&raw mut seen).cast(), values, 4)));
        assert_eq!(seen, 3);
        destroy(context);
    });
}
