use std::env;

use super::*;

/// The compiler in `TAKT_CUDA_ROOT`; without one the test says so and passes, unless `TAKT_REQUIRE_NVRTC=1`.
fn compiler() -> Option<Compiler> {
    let Some(root) = env::var_os("TAKT_CUDA_ROOT") else {
        assert!(env::var_os("TAKT_REQUIRE_NVRTC").is_none(), "TAKT_REQUIRE_NVRTC without TAKT_CUDA_ROOT");
        eprintln!("skipped: no TAKT_CUDA_ROOT, so no CUDA compiler");
        return None;
    };
    Some(Compiler::open(Path::new(&root)).unwrap())
}

const TWICE: Source = Source {
    name: "twice",
    text: r#"#include <cuda_bf16.h>
        extern "C" __global__ void __launch_bounds__(128, 4) twice(const __nv_bfloat16* in, float* out, int n) {
            const int i = blockIdx.x * 128 + threadIdx.x;
            if (i < n) out[i] = 2.0f * __bfloat162float(in[i]);
        }"#,
};

#[test]
fn a_source_becomes_a_cubin_for_every_target_the_same_one_each_time() {
    let Some(compiler) = compiler() else { return };
    for target in Target::ALL.into_iter().filter(|&target| compiler.knows(target)) {
        let compiled = compiler.compile(&TWICE, target).unwrap();
        assert_eq!(compiled.warnings, "");
        let [kernel] = compiled.image.kernels() else { panic!("{:?}", compiled.image.kernels()) };
        assert_eq!((kernel.name.as_str(), kernel.stack_bytes, kernel.local_bytes), ("twice", 0, 0));
        assert_eq!(kernel.max_threads, Some(128));
        assert_eq!(kernel.parameter_bytes, [8, 8, 4]);
        assert_eq!(compiler.compile(&TWICE, target).unwrap().image.bytes(), compiled.image.bytes());
    }
}

#[test]
fn an_error_in_the_source_is_shown_with_its_line() {
    let Some(compiler) = compiler() else { return };
    let source = Source { name: "broken", text: "\nint f() { return x; }\n" };
    let error = compiler.compile(&source, Target::Orin).unwrap_err().to_string();
    assert!(error.starts_with("broken.cu for sm_87, NVRTC "), "{error}");
    assert!(error.contains("broken.cu(2): error: identifier \"x\" is undefined"), "{error}");
}

#[test]
fn a_header_that_is_missing_is_named() {
    let Some(compiler) = compiler() else { return };
    let source = Source { name: "lost", text: "#include \"common/lost.cuh\"\n" };
    let error = compiler.compile(&source, Target::Orin).unwrap_err().to_string();
    assert!(error.contains("common/lost.cuh"), "{error}");
}

#[test]
fn without_a_compiler_the_error_says_what_to_install() {
    let folder = tempfile::tempdir().unwrap();
    let error = Compiler::open(folder.path()).unwrap_err().to_string();
    assert!(error.contains("nvidia-cuda-nvrtc") && error.contains("lib64"), "{error}");
}

#[test]
fn a_compiler_without_headers_says_what_to_install() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("lib64")).unwrap();
    fs::write(folder.path().join("lib64/libnvrtc.so.13"), "no library").unwrap();
    let error = Compiler::open(folder.path()).unwrap_err().to_string();
    assert!(error.contains("cuda_bf16.h") && error.contains("nvidia-cuda-runtime"), "{error}");

    fs::create_dir(folder.path().join("include")).unwrap();
    fs::write(folder.path().join("include/cuda_bf16.h"), "").unwrap();
    let error = Compiler::open(folder.path()).unwrap_err();
    assert!(matches!(error, BuildError::Library { .. }), "{error}");
}

#[test]
fn a_toolkit_of_links_is_opened() {
    let Some(root) = env::var_os("TAKT_CUDA_ROOT") else { return drop(compiler()) };
    let (root, toolkit) = (fs::canonicalize(root).unwrap(), tempfile::tempdir().unwrap());
    let target = toolkit.path().join("targets/sbsa-linux");
    fs::create_dir_all(&target).unwrap();
    for folder in ["lib", "include"] {
        std::os::unix::fs::symlink(root.join(folder), target.join(folder)).unwrap();
    }
    std::os::unix::fs::symlink("targets/sbsa-linux/lib", toolkit.path().join("lib64")).unwrap();
    let compiler = Compiler::open(toolkit.path()).unwrap();
    compiler.compile(&TWICE, Target::Orin).unwrap();
}

#[test]
fn a_version_reads_back_from_its_key() {
    let version = CompilerVersion { major: 13, minor: 0, library_bytes: 107_013_568 };
    assert_eq!(version.key().parse(), Ok(version));
    for bad in ["", "13", "13.0", "13-1", "13.x-1", "13.0-", "13.0-g"] {
        assert_eq!(bad.parse::<CompilerVersion>(), Err(()), "{bad}");
    }
}
