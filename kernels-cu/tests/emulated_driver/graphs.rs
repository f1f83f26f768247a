//! Captures and graphs.

use std::{ffi::c_void, ptr, thread, time::Duration};

use cudarc::driver::sys::{
    CUgraph, CUgraphExec, CUstream, CUstreamCaptureMode as Mode, CUstreamCaptureStatus,
};

use super::{
    CUresult, Gate, add_to_all, context, destroy, device, device_memory, device_values, event, function,
    module, ok, pinned, stream, values_of,
};

#[track_caller]
fn begin(stream: CUstream, mode: Mode) {
    ok(call!(cuStreamBeginCapture_v2(stream, mode)));
}

fn end(stream: CUstream) -> (CUresult, CUgraph) {
    let mut graph = ptr::null_mut();
    let result = call!(cuStreamEndCapture(stream, &raw mut graph));
    (result, graph)
}

#[track_caller]
fn end_and_instantiate(stream: CUstream) -> CUgraphExec {
    let (result, graph) = end(stream);
    ok(result);
    let mut exec = ptr::null_mut();
    ok(call!(cuGraphInstantiateWithFlags(&raw mut exec, graph, 0)));
    ok(call!(cuGraphDestroy(graph)));
    exec
}

#[test]
fn a_graph_runs_what_was_captured_with_what_is_in_memory_when_it_runs() {
    device("graphs::a_graph_runs_what_was_captured_with_what_is_in_memory_when_it_runs").run(|device| {
        let context = context();
        let (values, addend, stream, step) =
            (device_values(&[0; 4]), device_values(&[1]), stream(), pinned(1));
        let add = function(module(), "add_to_all");
        begin(stream, Mode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL);
        ok(call!(cuMemcpyHtoDAsync_v2(addend, step.cast(), 4, stream)));
        ok(add_to_all(add, stream, values, 4, addend));
        ok(add_to_all(add, stream, values, 2, addend));
        let exec = end_and_instantiate(stream);
        assert_eq!(values_of(values, 4), [0; 4], "nothing runs while it is captured");
        for (value, wanted) in [(1, [2, 2, 1, 1]), (10, [22, 22, 11, 11])] {
            // SAFETY: one value was allocated, and the device is idle.
            unsafe { *step = value };
            ok(call!(cuGraphLaunch(exec, stream)));
            ok(call!(cuStreamSynchronize(stream)));
            assert_eq!(values_of(values, 4), wanted);
        }
        assert_eq!(device.report().value("launches"), 4);
        ok(call!(cuGraphExecDestroy(exec)));
        assert_eq!(call!(cuGraphLaunch(exec, stream)), CUresult::CUDA_ERROR_INVALID_VALUE);
        assert_eq!((device.report().value("graphs"), device.report().value("graph_execs")), (0, 0));
        destroy(context);
    });
}

#[test]
fn a_captured_host_function_is_called_at_each_launch_between_what_is_before_and_behind_it() {
    /// Adds the first value to the second.
    unsafe extern "C" fn add(values: *mut c_void) {
        // SAFETY: two values of pinned memory that lives until the graph has run.
        unsafe { *values.cast::<i32>().add(1) += *values.cast::<i32>() };
    }
    device("graphs::a_captured_host_function_is_called_at_each_launch_between_what_is_before_and_behind_it")
        .run(|_| {
            let context = context();
            let (values, stream, host) = (device_values(&[5, 0]), stream(), pinned(2));
            begin(stream, Mode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL);
            ok(call!(cuMemcpyDtoHAsync_v2(host.cast(), values, 4, stream)));
            ok(call!(cuLaunchHostFunc(stream, Some(add), host.cast())));
            ok(call!(cuMemcpyHtoDAsync_v2(values + 4, host.add(1).cast(), 4, stream)));
            let exec = end_and_instantiate(stream);
            assert_eq!(values_of(values, 2), [5, 0], "nothing is called while it is captured");
            for sum in [5, 10, 15] {
                ok(call!(cuGraphLaunch(exec, stream)));
                assert_eq!(values_of(values, 2), [5, sum]);
            }
            ok(call!(cuGraphExecDestroy(exec)));
            destroy(context);
        });
}

#[test]
fn nodes_can_be_counted() {
    device("graphs::nodes_can_be_counted").run(|_| {
        let context = context();
        let (values, stream, mut count) = (device_values(&[0]), stream(), 0);
        begin(stream, Mode::CU_STREAM_CAPTURE_MODE_RELAXED);
        ok(call!(cuMemsetD32Async(values, 1, 1, stream)));
        ok(call!(cuMemsetD32Async(values, 2, 1, stream)));
        let (result, graph) = end(stream);
        ok(result);
        ok(call!(cuGraphGetNodes(graph, ptr::null_mut(), &raw mut count)));
        assert_eq!(count, 2);
        ok(call!(cuGraphDestroy(graph)));
        destroy(context);
    });
}

#[test]
fn launches_of_one_graph_do_not_overlap() {
    device("graphs::launches_of_one_graph_do_not_overlap").run(|_| {
        let context = context();
        let (values, first, second) = (device_values(&[1]), stream(), stream());
        let add = function(module(), "add_to_all");
        begin(first, Mode::CU_STREAM_CAPTURE_MODE_GLOBAL);
        ok(add_to_all(add, first, values, 1, values));
        let exec = end_and_instantiate(first);
        let gate = Gate::before(first);
        ok(call!(cuGraphLaunch(exec, first)));
        ok(call!(cuGraphLaunch(exec, second)));
        // Long enough for it to be done if it did not wait.
        thread::sleep(Duration::from_millis(20));
        assert_eq!(call!(cuStreamQuery(second)), CUresult::CUDA_ERROR_NOT_READY);
        gate.open();
        assert_eq!(values_of(values, 1), [4]);
        ok(call!(cuGraphExecDestroy(exec)));
        destroy(context);
    });
}

#[test]
fn streams_join_a_capture_by_events_and_must_be_joined_to_its_end() {
    device("graphs::streams_join_a_capture_by_events_and_must_be_joined_to_its_end").run(|_| {
        let context = context();
        let (values, origin, side, fork, join) =
            (device_values(&[0, 0]), stream(), stream(), event(), event());
        for is_joined in [true, false] {
            begin(origin, Mode::CU_STREAM_CAPTURE_MODE_GLOBAL);
            ok(call!(cuMemsetD32Async(values, 1, 1, origin)));
            ok(call!(cuEventRecord(fork, origin)));
            ok(call!(cuStreamWaitEvent(side, fork, 0)));
            ok(call!(cuMemsetD32Async(values + 4, 2, 1, side)));
            ok(call!(cuEventRecord(join, side)));
            if !is_joined {
                assert_eq!(end(origin).0, CUresult::CUDA_ERROR_STREAM_CAPTURE_UNJOINED);
                continue;
            }
            ok(call!(cuStreamWaitEvent(origin, join, 0)));
            let exec = end_and_instantiate(origin);
            ok(call!(cuGraphLaunch(exec, side)));
            assert_eq!(values_of(values, 2), [1, 2]);
            ok(call!(cuGraphExecDestroy(exec)));
        }
        ok(call!(cuStreamSynchronize(side)));
        destroy(context);
    });
}

/// An order that no edge asks for changes from launch to launch.
#[test]
fn a_missing_edge_shows() {
    device("graphs::a_missing_edge_shows").run(|_| {
        let context = context();
        let (values, origin, side, fork, join) = (device_values(&[0]), stream(), stream(), event(), event());
        begin(origin, Mode::CU_STREAM_CAPTURE_MODE_GLOBAL);
        ok(call!(cuEventRecord(fork, origin)));
        ok(call!(cuStreamWaitEvent(side, fork, 0)));
        ok(call!(cuMemsetD32Async(values, 1, 1, origin)));
        ok(call!(cuMemsetD32Async(values, 2, 1, side)));
        ok(call!(cuEventRecord(join, side)));
        ok(call!(cuStreamWaitEvent(origin, join, 0)));
        let exec = end_and_instantiate(origin);
        let mut seen = Vec::new();
        for _ in 0..2 {
            ok(call!(cuGraphLaunch(exec, origin)));
            seen.extend(values_of(values, 1));
        }
        assert_eq!(seen, [2, 1]);
        ok(call!(cuGraphExecDestroy(exec)));
        destroy(context);
    });
}

#[test]
fn calls_that_a_capture_cannot_see_end_it() {
    device("graphs::calls_that_a_capture_cannot_see_end_it").run(|_| {
        let context = context();
        let (values, stream, event, mut host) = (device_values(&[0]), stream(), event(), 0_i32);
        let unsupported = CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
        let mut address = 0;
        let pageable: *mut std::ffi::c_void = (&raw mut host).cast();
        let calls: [&mut dyn FnMut() -> CUresult; 10] = [
            &mut || call!(cuMemAlloc_v2(&raw mut address, 4)),
            &mut || call!(cuMemFree_v2(values)),
            &mut || call!(cuCtxSynchronize()),
            &mut || call!(cuStreamSynchronize(stream)),
            &mut || call!(cuStreamQuery(stream)),
            &mut || call!(cuEventQuery(event)),
            &mut || call!(cuMemcpyHtoD_v2(values, pageable, 4)),
            &mut || call!(cuMemcpyDtoH_v2(pageable, values, 4)),
            &mut || call!(cuMemsetD8_v2(values, 0, 4)),
            &mut || call!(cuMemcpyHtoDAsync_v2(values, pageable, 4, stream)),
        ];
        for (idx, call) in calls.into_iter().enumerate() {
            begin(stream, Mode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL);
            assert_eq!(call(), unsupported, "call {idx}");
            let mut status = CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE;
            ok(call!(cuStreamIsCapturing(stream, &raw mut status)));
            assert_eq!(status, CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_INVALIDATED);
            assert_eq!(end(stream), (CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, ptr::null_mut()));
        }
        ok(call!(cuStreamSynchronize(stream)));
        destroy(context);
    });
}

#[test]
fn a_captured_event_cannot_be_waited_for_and_an_older_one_not_in_a_capture() {
    device("graphs::a_captured_event_cannot_be_waited_for_and_an_older_one_not_in_a_capture").run(|_| {
        let context = context();
        let (stream, event) = (stream(), event());
        ok(call!(cuEventRecord(event, stream)));
        begin(stream, Mode::CU_STREAM_CAPTURE_MODE_RELAXED);
        let isolated = call!(cuStreamWaitEvent(stream, event, 0));
        assert_eq!(isolated, CUresult::CUDA_ERROR_STREAM_CAPTURE_ISOLATION);
        assert_eq!(end(stream).0, CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
        begin(stream, Mode::CU_STREAM_CAPTURE_MODE_RELAXED);
        ok(call!(cuEventRecord(event, stream)));
        assert_eq!(call!(cuEventSynchronize(event)), CUresult::CUDA_ERROR_CAPTURED_EVENT);
        assert_eq!(end(stream).0, CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
        destroy(context);
    });
}

#[test]
fn a_capture_ends_where_and_by_whom_it_was_begun() {
    device("graphs::a_capture_ends_where_and_by_whom_it_was_begun").run(|_| {
        let context = context();
        let stream = stream();
        assert_eq!(end(stream).0, CUresult::CUDA_ERROR_ILLEGAL_STATE);
        let legacy = call!(cuStreamBeginCapture_v2(ptr::null_mut(), Mode::CU_STREAM_CAPTURE_MODE_GLOBAL));
        assert_eq!(legacy, CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
        begin(stream, Mode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL);
        let (address, of) = (stream.addr(), context.addr());
        let on_other_thread = thread::spawn(move || {
            ok(call!(cuCtxSetCurrent(ptr::without_provenance_mut(of))));
            // Only the capturing thread's calls are restricted.
            device_memory(4);
            end(ptr::without_provenance_mut(address)).0
        });
        assert_eq!(on_other_thread.join().unwrap(), CUresult::CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD);
        ok(end(stream).0);
        destroy(context);
    });
}

#[test]
fn the_legacy_stream_cannot_be_used_while_a_blocking_stream_is_captured() {
    device("graphs::the_legacy_stream_cannot_be_used_while_a_blocking_stream_is_captured").run(|_| {
        let context = context();
        let (values, mut blocking) = (device_values(&[0]), ptr::null_mut());
        ok(call!(cuStreamCreate(&raw mut blocking, 0)));
        begin(blocking, Mode::CU_STREAM_CAPTURE_MODE_RELAXED);
        let implicit = call!(cuMemsetD32Async(values, 1, 1, ptr::null_mut()));
        assert_eq!(implicit, CUresult::CUDA_ERROR_STREAM_CAPTURE_IMPLICIT);
        assert_eq!(end(blocking).0, CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
        destroy(context);
    });
}

#[test]
fn a_graph_that_outlives_its_memory_is_an_illegal_address() {
    device("graphs::a_graph_that_outlives_its_memory_is_an_illegal_address").run(|_| {
        for is_kernel in [true, false] {
            let context = context();
            let (values, stream) = (device_values(&[0; 64]), stream());
            let add = function(module(), "add_to_all");
            begin(stream, Mode::CU_STREAM_CAPTURE_MODE_GLOBAL);
            if is_kernel {
                ok(add_to_all(add, stream, values, 64, values));
            } else {
                ok(call!(cuMemsetD32Async(values, 1, 64, stream)));
            }
            let exec = end_and_instantiate(stream);
            ok(call!(cuMemFree_v2(values)));
            ok(call!(cuGraphLaunch(exec, stream)));
            assert_eq!(call!(cuStreamSynchronize(stream)), CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
            ok(call!(cuGraphExecDestroy(exec)));
            destroy(context);
        }
    });
}
