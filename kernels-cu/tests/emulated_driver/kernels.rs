//! Modules and launches.

use std::{ffi::c_void, ptr};

use cudarc::driver::sys::{CUfunction_attribute as Attribute, CUstream};
use half::bf16;
use takt_kernels_cu::launch::{DeviceAddress, embed::Embed};

use super::{
    CUresult, add_to_all, context, destroy, device, device_memory, device_values, function, launch, module,
    ok, stream, values_of,
};

#[test]
fn a_module_is_an_elf_image_for_the_device_and_has_the_kernels_it_names() {
    device("kernels::a_module_is_an_elf_image_for_the_device_and_has_the_kernels_it_names").sm(87).run(
        |device| {
            let context = context();
            let (mut made, mut found) = (ptr::null_mut(), ptr::null_mut());
            let mut load = |image: &[u8]| call!(cuModuleLoadData(&raw mut made, image.as_ptr().cast()));
            assert_eq!(load(b"no image at all"), CUresult::CUDA_ERROR_INVALID_IMAGE);
            assert_eq!(load(b"\x7fELG"), CUresult::CUDA_ERROR_INVALID_IMAGE);
            let thor = include_bytes!("../fixtures/cubin/sm_110a.cubin");
            assert_eq!(load(thor), CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU);
            ok(load(include_bytes!("../fixtures/cubin/sm_87-12.6.cubin")));
            ok(load(include_bytes!("../fixtures/cubin/sm_87.cubin")));
            let absent = call!(cuModuleGetFunction(&raw mut found, made, c"add_to_all".as_ptr()));
            assert_eq!(absent, CUresult::CUDA_ERROR_NOT_FOUND, "the emulator has it, the cubin does not");
            let any = module();
            ok(call!(cuModuleGetFunction(&raw mut found, any, c"add_to_all".as_ptr())));
            let absent = call!(cuModuleGetFunction(&raw mut found, any, c"add_to_none".as_ptr()));
            assert_eq!(absent, CUresult::CUDA_ERROR_NOT_FOUND);
            ok(call!(cuModuleUnload(any)));
            assert_eq!(launch(found, stream(), 1, &mut []), CUresult::CUDA_ERROR_INVALID_HANDLE);
            assert_eq!(device.report().value("modules"), 2);
            destroy(context);
        },
    );
}

#[test]
fn arguments_are_copied_whole_at_the_launch() {
    device("kernels::arguments_are_copied_whole_at_the_launch").run(|_| {
        let context = context();
        let (out, stream, sum) = (device_memory(8), stream(), function(module(), "sum_arguments"));
        let gate = super::Gate::before(stream);
        let (mut to, mut a, mut b, mut c, mut d, mut e, mut f) =
            (out, -1_i8, 1000_i16, 70_000_i32, 1_i64 << 40, 0.5_f32, 0.25_f64);
        let mut arguments: [*mut c_void; 7] = [
            (&raw mut to).cast(),
            (&raw mut a).cast(),
            (&raw mut b).cast(),
            (&raw mut c).cast(),
            (&raw mut d).cast(),
            (&raw mut e).cast(),
            (&raw mut f).cast(),
        ];
        ok(launch(sum, stream, 1, &mut arguments));
        (to, a, b, c, d, e, f) = (0, 0, 0, 0, 0, 0.0, 0.0);
        assert_eq!((to, a, b, c, d, e, f), (0, 0, 0, 0, 0, 0.0, 0.0));
        gate.open();
        ok(call!(cuStreamSynchronize(stream)));
        let mut seen = 0.0_f64;
        ok(call!(cuMemcpyDtoH_v2((&raw mut seen).cast(), out, 8)));
        assert_eq!(seen, 70_999.75 + f64::from(1 << 20) * f64::from(1 << 20));
        destroy(context);
    });
}

fn fill_shared(
    function: super::CUfunction,
    stream: CUstream,
    out: u64,
    count: i32,
    shared_bytes: u32,
) -> CUresult {
    let (mut out, mut count) = (out, count);
    let mut arguments: [*mut c_void; 2] = [(&raw mut out).cast(), (&raw mut count).cast()];
    let none = ptr::null_mut();
    call!(cuLaunchKernel(function, 1, 1, 1, 64, 1, 1, shared_bytes, stream, arguments.as_mut_ptr(), none))
}

#[test]
fn more_than_48_kib_of_shared_memory_has_to_be_asked_for() {
    device("kernels::more_than_48_kib_of_shared_memory_has_to_be_asked_for").sm(120).run(|_| {
        let context = context();
        let (out, stream, fill) = (device_values(&[0]), stream(), function(module(), "fill_shared"));
        let which = Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        let invalid = CUresult::CUDA_ERROR_INVALID_VALUE;
        ok(fill_shared(fill, stream, out, 12 << 10, 48 << 10));
        assert_eq!(values_of(out, 1), [(12 << 10) - 1]);
        assert_eq!(fill_shared(fill, stream, out, 12 << 10, (48 << 10) + 4), invalid);
        assert_eq!(call!(cuFuncSetAttribute(fill, which, (99 << 10) + 1)), invalid);
        ok(call!(cuFuncSetAttribute(fill, which, 99 << 10)));
        ok(fill_shared(fill, stream, out, 99 << 8, 99 << 10));
        assert_eq!(values_of(out, 1), [(99 << 8) - 1]);
        let mut blocks = 0;
        ok(call!(cuOccupancyMaxActiveBlocksPerMultiprocessor(&raw mut blocks, fill, 64, 40 << 10)));
        assert_eq!(blocks, 2);
        destroy(context);
    });
}

#[test]
fn shapes_that_no_device_runs_are_refused() {
    device("kernels::shapes_that_no_device_runs_are_refused").run(|_| {
        let context = context();
        let (stream, fill, mut none) = (stream(), function(module(), "fill_shared"), [ptr::null_mut(); 2]);
        let invalid = CUresult::CUDA_ERROR_INVALID_VALUE;
        let mut count = 0;
        let mut arguments: [*mut c_void; 2] = [(&raw mut count).cast(); 2];
        for (grid, block) in [
            ([0, 1, 1], [1, 1, 1]),
            ([1, 65_536, 1], [1, 1, 1]),
            ([1, 1, 1], [1025, 1, 1]),
            ([1, 1, 1], [32, 64, 1]),
            ([1, 1, 1], [1, 1, 65]),
            ([1, 1, 1], [0, 1, 1]),
        ] {
            let ([x, y, z], [a, b, c], extra) = (grid, block, ptr::null_mut());
            let result =
                call!(cuLaunchKernel(fill, x, y, z, a, b, c, 0, stream, arguments.as_mut_ptr(), extra));
            assert_eq!(result, invalid, "{grid:?} {block:?}");
        }
        assert_eq!(launch(fill, stream, 1, &mut none), invalid);
        destroy(context);
    });
}

#[test]
fn what_is_undefined_on_a_gpu_fails_the_launch() {
    device("kernels::what_is_undefined_on_a_gpu_fails_the_launch").run(|device| {
        let context = context();
        ok(launch(function(module(), "wait_apart"), stream(), 64, &mut []));
        assert_eq!(call!(cuCtxSynchronize()), CUresult::CUDA_ERROR_LAUNCH_FAILED);
        assert!(device.last_message().contains("different places"), "{}", device.last_message());
        destroy(context);
    });
}

#[test]
fn a_module_that_is_unloaded_before_its_kernel_begins_fails_the_launch() {
    device("kernels::a_module_that_is_unloaded_before_its_kernel_begins_fails_the_launch").run(|device| {
        let context = context();
        let (values, stream, module) = (device_values(&[1]), stream(), module());
        let gate = super::Gate::before(stream);
        ok(add_to_all(function(module, "add_to_all"), stream, values, 1, values));
        ok(call!(cuModuleUnload(module)));
        gate.open();
        assert_eq!(call!(cuStreamSynchronize(stream)), CUresult::CUDA_ERROR_LAUNCH_FAILED);
        assert!(device.last_message().contains("unloaded"), "{}", device.last_message());
        destroy(context);
    });
}

/// A kernel of ours, by its checked launch.
#[test]
fn the_embedding_reads_tokens_that_a_graph_is_given_anew() {
    let device =
        device("kernels::the_embedding_reads_tokens_that_a_graph_is_given_anew").kernels(&["embed.cu"]);
    device.run(|_| {
        let context = context();
        let (vocab_size, width, num_tokens) = (11_usize, 136_usize, 3_usize);
        let table: Vec<bf16> = (0..vocab_size * width).map(|i| bf16::from_f32(i as f32)).collect();
        let embedding = device_memory(table.len() * 2);
        ok(call!(cuMemcpyHtoD_v2(embedding, table.as_ptr().cast(), table.len() * 2)));
        let (ids, out, stream) = (device_values(&[0; 3]), device_memory(num_tokens * width * 4), stream());
        let embed = Embed {
            embedding: DeviceAddress(embedding),
            token_ids: DeviceAddress(ids),
            out: DeviceAddress(out),
            num_tokens,
            vocab_size,
            width,
        };
        let planned = embed.launch().unwrap();
        let (kernel, [grid, _, _], [block, _, _]) =
            (function(module(), planned.kernel()), planned.geometry().grid, planned.geometry().block);
        let mut arguments = planned.argument_pointers();
        let (mut graph, mut exec, none) = (ptr::null_mut(), ptr::null_mut(), ptr::null_mut());
        let mode = cudarc::driver::sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        ok(call!(cuStreamBeginCapture_v2(stream, mode)));
        ok(call!(cuLaunchKernel(kernel, grid, 1, 1, block, 1, 1, 0, stream, arguments.as_mut_ptr(), none)));
        ok(call!(cuStreamEndCapture(stream, &raw mut graph)));
        ok(call!(cuGraphInstantiateWithFlags(&raw mut exec, graph, 0)));
        drop(arguments);
        for tokens in [[1, 2, 3], [10, -1, 0]] {
            ok(call!(cuMemcpyHtoDAsync_v2(ids, tokens.as_ptr().cast(), 12, stream)));
            ok(call!(cuGraphLaunch(exec, stream)));
            let seen = values_of(out, num_tokens * width);
            let wanted = tokens.iter().flat_map(|&token| {
                (0..width).map(move |column| usize::try_from(token).map_or(0, |row| row * width + column))
            });
            let wanted: Vec<f32> = wanted.map(|idx| bf16::from_f32(idx as f32).to_f32()).collect();
            let seen: Vec<f32> = seen.into_iter().map(|bits| f32::from_bits(bits.cast_unsigned())).collect();
            assert_eq!(seen, wanted);
        }
        ok(call!(cuGraphExecDestroy(exec)));
        ok(call!(cuGraphDestroy(graph)));
        destroy(context);
    });
}

#[test]
fn streams_of_several_threads_do_not_disturb_each_other() {
    device("kernels::streams_of_several_threads_do_not_disturb_each_other").latency_us(0).run(|_| {
        let context = context();
        let add = function(module(), "add_to_all").addr();
        let context_address = context.addr();
        let threads = (1..5).map(|addend| {
            std::thread::spawn(move || {
                ok(call!(cuCtxSetCurrent(ptr::without_provenance_mut(context_address))));
                let (values, step, stream) = (device_values(&[0; 8]), device_values(&[addend]), stream());
                for _ in 0..50 {
                    ok(add_to_all(ptr::without_provenance_mut(add), stream, values, 8, step));
                }
                ok(call!(cuStreamSynchronize(stream)));
                assert_eq!(values_of(values, 8), [50 * addend; 8]);
                ok(call!(cuMemFree_v2(values)));
                ok(call!(cuStreamDestroy_v2(stream)));
            })
        });
        for thread in threads.collect::<Vec<_>>() {
            thread.join().unwrap();
        }
        destroy(context);
    });
}
