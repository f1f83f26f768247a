//! Streams and events.

use std::ptr;

use super::{
    CUresult, Gate, add_to_all, context, destroy, device, device_memory, device_values, event, function,
    module, ok, stream, values_of,
};

#[test]
fn work_is_asynchronous_and_in_order() {
    device("streams::work_is_asynchronous_and_in_order").run(|_| {
        let context = context();
        let (values, stream, event) = (device_values(&[1, 2, 3]), stream(), event());
        let add = function(module(), "add_to_all");
        ok(call!(cuStreamQuery(stream)));
        let gate = Gate::before(stream);
        for _ in 0..10 {
            ok(add_to_all(add, stream, values, 3, values));
        }
        ok(call!(cuEventRecord(event, stream)));
        assert_eq!(call!(cuStreamQuery(stream)), CUresult::CUDA_ERROR_NOT_READY);
        assert_eq!(call!(cuEventQuery(event)), CUresult::CUDA_ERROR_NOT_READY);
        gate.open();
        ok(call!(cuEventSynchronize(event)));
        ok(call!(cuEventQuery(event)));
        ok(call!(cuStreamQuery(stream)));
        assert_eq!(values_of(values, 1), [1024]);
        destroy(context);
    });
}

#[test]
fn a_stream_waits_for_an_event_as_it_was_recorded_last_before() {
    device("streams::a_stream_waits_for_an_event_as_it_was_recorded_last_before").run(|_| {
        let context = context();
        let (values, first, second, event) = (device_values(&[0]), stream(), stream(), event());
        // Never recorded: nothing to wait for.
        ok(call!(cuStreamWaitEvent(second, event, 0)));
        ok(call!(cuStreamSynchronize(second)));
        let gate = Gate::before(first);
        ok(call!(cuMemsetD32Async(values, 1, 1, first)));
        ok(call!(cuEventRecord(event, first)));
        ok(call!(cuStreamWaitEvent(second, event, 0)));
        ok(call!(cuMemsetD32Async(values, 2, 1, second)));
        let later = Gate::before(first);
        ok(call!(cuEventRecord(event, first)));
        assert_eq!(call!(cuStreamQuery(second)), CUresult::CUDA_ERROR_NOT_READY);
        gate.open();
        ok(call!(cuStreamSynchronize(second)));
        assert_eq!(call!(cuEventQuery(event)), CUresult::CUDA_ERROR_NOT_READY);
        later.open();
        assert_eq!(values_of(values, 1), [2]);
        destroy(context);
    });
}

#[test]
fn time_passes_between_events_that_measure_it() {
    device("streams::time_passes_between_events_that_measure_it").latency_us(2000).run(|_| {
        let context = context();
        let (stream, start, end, mut untimed, mut ms) = (stream(), event(), event(), ptr::null_mut(), 0.0);
        let invalid = CUresult::CUDA_ERROR_INVALID_HANDLE;
        let disable_timing = 2;
        ok(call!(cuEventCreate(&raw mut untimed, disable_timing)));
        assert_eq!(call!(cuEventElapsedTime_v2(&raw mut ms, start, end)), invalid);
        ok(call!(cuEventRecord(start, stream)));
        let (values, gate) = (device_memory(4), Gate::before(stream));
        ok(call!(cuMemsetD32Async(values, 2, 1, stream)));
        ok(call!(cuEventRecord(end, stream)));
        assert_eq!(call!(cuEventElapsedTime_v2(&raw mut ms, start, end)), CUresult::CUDA_ERROR_NOT_READY);
        gate.open();
        ok(call!(cuEventSynchronize(end)));
        ok(call!(cuEventElapsedTime_v2(&raw mut ms, start, end)));
        assert!((2.0..10_000.0).contains(&ms), "{ms} ms");
        assert_eq!(call!(cuEventElapsedTime_v2(&raw mut ms, start, untimed)), invalid);
        destroy(context);
    });
}

#[test]
fn the_legacy_stream_and_blocking_streams_wait_for_each_other() {
    device("streams::the_legacy_stream_and_blocking_streams_wait_for_each_other").run(|_| {
        let context = context();
        let (values, legacy, mut blocking) = (device_values(&[0]), ptr::null_mut(), ptr::null_mut());
        ok(call!(cuStreamCreate(&raw mut blocking, 0)));
        let gate = Gate::before(blocking);
        ok(call!(cuMemsetD32Async(values, 1, 1, blocking)));
        ok(call!(cuMemsetD32Async(values, 2, 1, legacy)));
        ok(call!(cuMemsetD32Async(values, 3, 1, blocking)));
        assert_eq!(call!(cuStreamQuery(legacy)), CUresult::CUDA_ERROR_NOT_READY);
        gate.open();
        ok(call!(cuStreamSynchronize(blocking)));
        assert_eq!(values_of(values, 1), [3]);
        destroy(context);
    });
}

#[test]
fn a_stream_is_destroyed_at_once_and_its_work_still_done() {
    device("streams::a_stream_is_destroyed_at_once_and_its_work_still_done").run(|device| {
        let context = context();
        let (values, stream) = (device_values(&[0]), stream());
        let gate = Gate::before(stream);
        ok(call!(cuMemsetD32Async(values, 4, 1, stream)));
        ok(call!(cuStreamDestroy_v2(stream)));
        assert_eq!(device.report().value("streams"), 0);
        assert_eq!(call!(cuStreamSynchronize(stream)), CUresult::CUDA_ERROR_INVALID_HANDLE);
        gate.open();
        assert_eq!(values_of(values, 1), [4]);
        destroy(context);
    });
}

#[test]
fn freeing_memory_waits_for_the_work_that_uses_it() {
    device("streams::freeing_memory_waits_for_the_work_that_uses_it").latency_us(5000).run(|_| {
        let context = context();
        let (values, stream) = (device_values(&[0; 64]), stream());
        let add = function(module(), "add_to_all");
        for _ in 0..3 {
            ok(add_to_all(add, stream, values, 64, values));
        }
        ok(call!(cuMemFree_v2(values)));
        ok(call!(cuStreamQuery(stream)));
        destroy(context);
    });
}

#[test]
fn handles_of_another_context_are_refused() {
    device("streams::handles_of_another_context_are_refused").run(|_| {
        let first = context();
        let (stream_of_first, event_of_first) = (stream(), event());
        let second = context();
        let invalid = CUresult::CUDA_ERROR_INVALID_HANDLE;
        assert_eq!(call!(cuStreamSynchronize(stream_of_first)), invalid);
        assert_eq!(call!(cuEventRecord(event_of_first, stream())), invalid);
        assert_eq!(call!(cuStreamSynchronize(ptr::dangling_mut::<u128>().cast())), invalid);
        destroy(second);
        destroy(first);
    });
}

#[test]
fn who_waits_for_an_event_of_a_context_that_is_destroyed_does_not_wait_for_ever() {
    let test = "streams::who_waits_for_an_event_of_a_context_that_is_destroyed_does_not_wait_for_ever";
    device(test).run(|device| {
        let first = context();
        let (values, stream_of_first, event_of_first) = (device_values(&[1]), stream(), event());
        device.hang_launch(1);
        ok(add_to_all(function(module(), "add_to_all"), stream_of_first, values, 1, values));
        ok(call!(cuEventRecord(event_of_first, stream_of_first)));
        let second = context();
        let stream_of_second = stream();
        ok(call!(cuStreamWaitEvent(stream_of_second, event_of_first, 0)));
        assert_eq!(call!(cuStreamQuery(stream_of_second)), CUresult::CUDA_ERROR_NOT_READY);
        destroy(first);
        ok(call!(cuStreamSynchronize(stream_of_second)));
        destroy(second);
    });
}
