//! The device, contexts of every kind, and the report.

use std::{ffi::CStr, ptr, thread};

use cudarc::driver::sys::{
    CUcontext, CUdevResource, CUdevResourceType, CUdevice_attribute as Attribute, CUgreenCtx, CUstream,
};

use super::{CUresult, context, destroy, device, device_memory, event, module, ok, stream};

fn attribute(which: Attribute) -> i32 {
    let mut value = 0;
    ok(call!(cuDeviceGetAttribute(&raw mut value, which, 0)));
    value
}

#[test]
fn the_device_is_the_model_that_was_asked_for() {
    device("contexts::the_device_is_the_model_that_was_asked_for").sm(87).num_sms(8).run(|_| {
        ok(call!(cuInit(0)));
        let (mut version, mut count, mut name) = (0, 0, [0_u8; 64]);
        ok(call!(cuDriverGetVersion(&raw mut version)));
        ok(call!(cuDeviceGetCount(&raw mut count)));
        ok(call!(cuDeviceGetName(name.as_mut_ptr().cast(), 64, 0)));
        assert_eq!((version, count), (13_000, 1));
        assert!(CStr::from_bytes_until_nul(&name).unwrap().to_str().unwrap().contains("Orin"));
        assert_eq!(attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR), 8);
        assert_eq!(attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR), 7);
        assert_eq!(attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT), 8);
        assert_eq!(attribute(Attribute::CU_DEVICE_ATTRIBUTE_INTEGRATED), 1);
        assert_eq!(call!(cuDeviceGet(&raw mut count, 1)), CUresult::CUDA_ERROR_INVALID_DEVICE);
    });
}

#[test]
fn nothing_works_before_initialization_or_without_a_context() {
    device("contexts::nothing_works_before_initialization_or_without_a_context").run(|_| {
        let (mut count, mut address) = (0, 0);
        assert_eq!(call!(cuDeviceGetCount(&raw mut count)), CUresult::CUDA_ERROR_NOT_INITIALIZED);
        ok(call!(cuInit(0)));
        assert_eq!(call!(cuMemAlloc_v2(&raw mut address, 4)), CUresult::CUDA_ERROR_INVALID_CONTEXT);
        let context = context();
        ok(call!(cuMemAlloc_v2(&raw mut address, 4)));
        // Other threads have no context yet.
        let of_other = thread::spawn(|| call!(cuCtxSynchronize())).join().unwrap();
        assert_eq!(of_other, CUresult::CUDA_ERROR_INVALID_CONTEXT);
        ok(call!(cuCtxSetCurrent(ptr::null_mut())));
        assert_eq!(call!(cuCtxSynchronize()), CUresult::CUDA_ERROR_INVALID_CONTEXT);
        destroy(context);
    });
}

#[test]
fn contexts_are_a_stack_of_the_thread() {
    device("contexts::contexts_are_a_stack_of_the_thread").run(|_| {
        let (first, second, mut found): (_, _, CUcontext) = (context(), context(), ptr::null_mut());
        ok(call!(cuCtxGetCurrent(&raw mut found)));
        assert_eq!(found, second);
        ok(call!(cuCtxPopCurrent_v2(&raw mut found)));
        assert_eq!(found, second);
        ok(call!(cuCtxGetCurrent(&raw mut found)));
        assert_eq!(found, first);
        ok(call!(cuCtxPushCurrent_v2(second)));
        destroy(first);
        destroy(second);
        // The first one is still below, and destroyed.
        assert_eq!(call!(cuCtxSynchronize()), CUresult::CUDA_ERROR_CONTEXT_IS_DESTROYED);
    });
}

#[test]
fn what_a_context_still_held_is_reported() {
    device("contexts::what_a_context_still_held_is_reported").run(|device| {
        let context = context();
        let _ = (stream(), event(), module(), device_memory(4), super::pinned(1));
        destroy(context);
        let wanted = ["device_allocations", "events", "host_allocations", "modules", "streams"];
        assert_eq!(device.report().leaks(), wanted.map(|name| format!("left.{name}: 1")));
    });
}

fn resource(num_sms: u32) -> CUdevResource {
    // SAFETY: plain data, all zeros is a value.
    let (mut whole, mut part): (CUdevResource, CUdevResource) = unsafe { std::mem::zeroed() };
    let kind = CUdevResourceType::CU_DEV_RESOURCE_TYPE_SM;
    ok(call!(cuDeviceGetDevResource(0, &raw mut whole, kind)));
    let (mut num_groups, none) = (1, ptr::null_mut());
    ok(call!(cuDevSmResourceSplitByCount(
        &raw mut part,
        &raw mut num_groups,
        &raw const whole,
        none,
        0,
        num_sms
    )));
    assert_eq!(num_groups, 1);
    part
}

fn sms_of(resource: &CUdevResource) -> u32 {
    // SAFETY: a resource of multiprocessors.
    unsafe { resource.__bindgen_anon_1.sm.smCount }
}

#[test]
fn multiprocessors_are_split_off_in_the_devices_steps() {
    device("contexts::multiprocessors_are_split_off_in_the_devices_steps").sm(110).run(|_| {
        ok(call!(cuInit(0)));
        assert_eq!([1, 8, 9, 16].map(|num_sms| sms_of(&resource(num_sms))), [8, 8, 16, 16]);
        // SAFETY: plain data, all zeros is a value.
        let mut whole: CUdevResource = unsafe { std::mem::zeroed() };
        let (mut num_groups, none) = (1, ptr::null_mut());
        let kind = CUdevResourceType::CU_DEV_RESOURCE_TYPE_SM;
        ok(call!(cuDeviceGetDevResource(0, &raw mut whole, kind)));
        assert_eq!(sms_of(&whole), 20);
        let too_many =
            call!(cuDevSmResourceSplitByCount(none, &raw mut num_groups, &raw const whole, none, 0, 21));
        assert_eq!(too_many, CUresult::CUDA_ERROR_INVALID_VALUE);
        ok(call!(cuDevSmResourceSplitByCount(none, &raw mut num_groups, &raw const whole, none, 0, 8)));
        assert_eq!(num_groups, 2);
    });
}

#[test]
fn a_green_context_has_its_own_streams_and_the_primary_contexts_memory() {
    device("contexts::a_green_context_has_its_own_streams_and_the_primary_contexts_memory").run(|device| {
        ok(call!(cuInit(0)));
        let (mut part, mut description) = (resource(16), ptr::null_mut());
        ok(call!(cuDevResourceGenerateDesc(&raw mut description, &raw mut part, 1)));
        let (mut green, mut context): (CUgreenCtx, CUcontext) = (ptr::null_mut(), ptr::null_mut());
        assert_eq!(
            call!(cuGreenCtxCreate(&raw mut green, description, 0, 0)),
            CUresult::CUDA_ERROR_INVALID_VALUE
        );
        ok(call!(cuGreenCtxCreate(&raw mut green, description, 0, 1)));
        ok(call!(cuCtxFromGreenCtx(&raw mut context, green)));
        ok(call!(cuCtxSetCurrent(context)));
        let (mut stream, mut priority): (CUstream, i32) = (ptr::null_mut(), 0);
        let blocking = call!(cuGreenCtxStreamCreate(&raw mut stream, green, 0, 0));
        assert_eq!(blocking, CUresult::CUDA_ERROR_INVALID_VALUE);
        ok(call!(cuGreenCtxStreamCreate(&raw mut stream, green, super::NON_BLOCKING, -9)));
        ok(call!(cuStreamGetPriority(stream, &raw mut priority)));
        assert_eq!(priority, -5);
        let values = device_memory(16);
        ok(call!(cuMemsetD32Async(values, 3, 4, stream)));
        ok(call!(cuStreamSynchronize(stream)));
        assert_eq!(super::values_of(values, 4), [3; 4]);
        ok(call!(cuMemFree_v2(values)));
        ok(call!(cuStreamDestroy_v2(stream)));
        assert_eq!(device.report().value("green_contexts"), 1);
        ok(call!(cuGreenCtxDestroy(green)));
        assert_eq!(call!(cuCtxSynchronize()), CUresult::CUDA_ERROR_CONTEXT_IS_DESTROYED);
        assert_eq!(device.report().leaks(), Vec::<String>::new());
    });
}

#[test]
fn the_primary_context_is_one_and_ends_with_its_last_release() {
    device("contexts::the_primary_context_is_one_and_ends_with_its_last_release").run(|device| {
        ok(call!(cuInit(0)));
        let (mut first, mut second): (CUcontext, CUcontext) = (ptr::null_mut(), ptr::null_mut());
        ok(call!(cuDevicePrimaryCtxRetain(&raw mut first, 0)));
        ok(call!(cuDevicePrimaryCtxRetain(&raw mut second, 0)));
        assert_eq!(first, second);
        assert_eq!(call!(cuCtxDestroy_v2(first)), CUresult::CUDA_ERROR_INVALID_CONTEXT);
        ok(call!(cuCtxSetCurrent(first)));
        ok(call!(cuDevicePrimaryCtxRelease_v2(0)));
        ok(call!(cuCtxSynchronize()));
        ok(call!(cuDevicePrimaryCtxRelease_v2(0)));
        assert_eq!(call!(cuCtxSynchronize()), CUresult::CUDA_ERROR_CONTEXT_IS_DESTROYED);
        assert_eq!(call!(cuDevicePrimaryCtxRelease_v2(0)), CUresult::CUDA_ERROR_INVALID_CONTEXT);
        assert_eq!(device.report().leaks(), Vec::<String>::new());
    });
}

#[test]
fn calls_are_counted_by_name() {
    device("contexts::calls_are_counted_by_name").run(|device| {
        let context = context();
        let (stream, event) = (stream(), event());
        let before = device.report();
        ok(call!(cuEventRecord(event, stream)));
        ok(call!(cuEventSynchronize(event)));
        let calls: Vec<_> = device.report().calls_since(&before).into_iter().collect();
        assert_eq!(calls, [("cuEventRecord".into(), 1), ("cuEventSynchronize".into(), 1)]);
        destroy(context);
    });
}

#[test]
fn a_program_that_is_watched_from_outside_leaves_a_report_and_fails_as_its_environment_says() {
    let test =
        "contexts::a_program_that_is_watched_from_outside_leaves_a_report_and_fails_as_its_environment_says";
    if std::env::var_os("TAKT_EMULATED_REPORT").is_some() {
        context();
        let mut address = 0;
        let result = call!(cuMemAlloc_v2(&raw mut address, 4));
        assert_eq!(result, CUresult::CUDA_ERROR_OUT_OF_MEMORY);
        return;
    }
    let Some(environment) = device(test).environment() else { return };
    let report = tempfile::NamedTempFile::new().unwrap();
    let mut program = std::process::Command::new(std::env::current_exe().unwrap());
    program.args([test, "--exact"]).envs(environment);
    program.env("TAKT_EMULATED_REPORT", report.path()).env("TAKT_EMULATED_FAIL_ALLOCATION", "1");
    assert!(program.output().unwrap().status.success());
    let report = crate::emulator::driver::Report::read(&std::fs::read_to_string(report.path()).unwrap());
    assert_eq!((report.calls("cuMemAlloc_v2"), report.leaks()), (1, vec!["contexts: 1".to_owned()]));
}
