//! Faults on demand.

use std::{
    ptr, thread,
    time::{Duration, Instant},
};

use super::{
    CUresult, add_to_all, context, destroy, device, device_memory, device_values, event, function, module,
    ok, pinned, stream, values_of,
};

#[test]
fn the_nth_allocation_fails_and_only_it() {
    device("faults::the_nth_allocation_fails_and_only_it").run(|device| {
        let context = context();
        let (mut address, mut host) = (0, ptr::null_mut());
        for n in 1..=4 {
            device.fail_allocation(n);
            let results: Vec<_> = (1..=4)
                .map(|idx| match idx % 2 {
                    0 => call!(cuMemHostAlloc(&raw mut host, 4, 0)),
                    _ => call!(cuMemAlloc_v2(&raw mut address, 4)),
                })
                .collect();
            let failed = results.iter().position(|&result| result == CUresult::CUDA_ERROR_OUT_OF_MEMORY);
            let num_well = results.iter().filter(|&&result| result == CUresult::CUDA_SUCCESS).count() as u64;
            assert_eq!((failed.map(|idx| idx as u64 + 1), num_well), (Some(n), 3));
        }
        destroy(context);
    });
}

#[test]
fn a_failed_launch_spoils_its_context_until_it_is_destroyed_and_no_other() {
    device("faults::a_failed_launch_spoils_its_context_until_it_is_destroyed_and_no_other").run(|device| {
        let (other, spoilt) = (context(), context());
        let (values, stream, event, host) = (device_values(&[1]), stream(), event(), pinned(1));
        let add = function(module(), "add_to_all");
        device.fail_launch(2);
        ok(add_to_all(add, stream, values, 1, values));
        ok(add_to_all(add, stream, values, 1, values));
        let failed = CUresult::CUDA_ERROR_LAUNCH_FAILED;
        assert_eq!(call!(cuStreamSynchronize(stream)), failed);
        let mut address = 0;
        assert_eq!(call!(cuMemAlloc_v2(&raw mut address, 4)), failed);
        assert_eq!(call!(cuMemFree_v2(values)), failed);
        assert_eq!(call!(cuMemFreeHost(host.cast())), failed);
        assert_eq!(call!(cuEventRecord(event, stream)), failed);
        assert_eq!(call!(cuEventQuery(event)), failed);
        assert_eq!(call!(cuStreamDestroy_v2(stream)), failed);
        assert_eq!(add_to_all(add, stream, values, 1, values), failed);
        assert_eq!(call!(cuCtxSynchronize()), failed);
        destroy(spoilt);
        ok(call!(cuCtxSetCurrent(other)));
        assert_eq!(values_of(device_values(&[7]), 1), [7]);
        destroy(other);
        let left: Vec<_> = device.report().leaks();
        assert!(left.contains(&"left.device_allocations: 2".into()), "{left:?}");
        assert!(left.iter().all(|name| name.starts_with("left.")), "{left:?}");
    });
}

#[test]
fn a_hung_kernel_ends_with_its_context() {
    device("faults::a_hung_kernel_ends_with_its_context").run(|device| {
        let context = context();
        let (values, stream, event) = (device_values(&[1]), stream(), event());
        let add = function(module(), "add_to_all");
        device.hang_launch(1);
        ok(add_to_all(add, stream, values, 1, values));
        ok(call!(cuEventRecord(event, stream)));
        let start = Instant::now();
        while start.elapsed() < Duration::from_millis(50) {
            assert_eq!(call!(cuEventQuery(event)), CUresult::CUDA_ERROR_NOT_READY);
            thread::sleep(Duration::from_millis(1));
        }
        let of = context.addr();
        let waiter = thread::spawn(move || {
            ok(call!(cuCtxSetCurrent(ptr::without_provenance_mut(of))));
            call!(cuCtxSynchronize())
        });
        destroy(context);
        // Destroyed while it waited, or before.
        assert!(matches!(waiter.join(), Ok(CUresult::CUDA_ERROR_CONTEXT_IS_DESTROYED) | Err(_)));
    });
}

#[test]
fn kernels_of_a_graph_fail_and_hang_as_others_do() {
    device("faults::kernels_of_a_graph_fail_and_hang_as_others_do").run(|device| {
        for hangs in [false, true] {
            let context = context();
            let (values, stream) = (device_values(&[1]), stream());
            let add = function(module(), "add_to_all");
            let (mut graph, mut exec) = (ptr::null_mut(), ptr::null_mut());
            let mode = cudarc::driver::sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
            ok(call!(cuStreamBeginCapture_v2(stream, mode)));
            for _ in 0..3 {
                ok(add_to_all(add, stream, values, 1, values));
            }
            ok(call!(cuStreamEndCapture(stream, &raw mut graph)));
            ok(call!(cuGraphInstantiateWithFlags(&raw mut exec, graph, 0)));
            if hangs {
                device.hang_launch(5)
            } else {
                device.fail_launch(5)
            };
            ok(call!(cuGraphLaunch(exec, stream)));
            ok(call!(cuStreamSynchronize(stream)));
            ok(call!(cuGraphLaunch(exec, stream)));
            if hangs {
                thread::sleep(Duration::from_millis(20));
                assert_eq!(call!(cuStreamQuery(stream)), CUresult::CUDA_ERROR_NOT_READY);
            } else {
                assert_eq!(call!(cuStreamSynchronize(stream)), CUresult::CUDA_ERROR_LAUNCH_FAILED);
            }
            ok(call!(cuGraphExecDestroy(exec)));
            ok(call!(cuGraphDestroy(graph)));
            destroy(context);
        }
    });
}

#[test]
fn any_call_can_be_made_to_fail() {
    device("faults::any_call_can_be_made_to_fail").run(|device| {
        let context = context();
        let mut made = ptr::null_mut();
        let not_permitted = CUresult::CUDA_ERROR_NOT_PERMITTED;
        device.fail_call("cuStreamCreate", 2, not_permitted as i32);
        ok(call!(cuStreamCreate(&raw mut made, 0)));
        assert_eq!(call!(cuStreamCreate(&raw mut made, 0)), not_permitted);
        ok(call!(cuStreamCreate(&raw mut made, 0)));
        device_memory(4);
        destroy(context);
    });
}
