//! Compiles the shim with the TensorRT headers of this machine. Does nothing without the feature `tensorrt`.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=build_include.rs");
    #[cfg(feature = "tensorrt")]
    headers::compile_shim();
}

#[cfg(feature = "tensorrt")]
#[path = "build_include.rs"]
mod include;

#[cfg(feature = "tensorrt")]
mod headers {
    use super::include;
    use std::{
        env,
        path::{Path, PathBuf},
        process,
    };

    /// What has to be found, and which Debian package of NVIDIA's has it.
    const NEEDED: [(&str, &str); 2] =
        [("NvInfer.h", "libnvinfer-headers-dev"), ("NvOnnxParser.h", "libnvonnxparsers-dev")];
    const CUDA: &str = "cuda_runtime_api.h";

    pub fn compile_shim() {
        for file in ["shim/shim.cpp", "shim/shim.h"] {
            println!("cargo::rerun-if-changed={file}");
        }
        for variable in ["TENSORRT_INCLUDE_DIR", "CUDA_HOME", "CUDA_PATH"] {
            println!("cargo::rerun-if-env-changed={variable}");
        }
        let tensorrt = tensorrt_folders();
        let mut include = Vec::new();
        for (header, package) in NEEDED {
            let folder = find(header, &tensorrt).unwrap_or_else(|| {
                fail(
                    header,
                    &tensorrt,
                    &format!(
                        "`apt install {package}`, or set TENSORRT_INCLUDE_DIR to the folder that has it"
                    ),
                )
            });
            include.push(folder);
        }
        let cuda = cuda_folders(&tensorrt);
        let folder = find(CUDA, &cuda).unwrap_or_else(|| {
            fail(CUDA, &cuda, "install the CUDA toolkit's headers (`apt install cuda-cudart-dev-13-0`, of your CUDA's version), or set CUDA_HOME")
        });
        include.push(folder);
        include.dedup();
        let mut build = cc::Build::new();
        build.cpp(true).std("c++17").file("shim/shim.cpp").warnings(true).extra_warnings(true);
        for folder in &include {
            let version = folder.join("NvInferVersion.h");
            // A file that is not there would have it compiled again each time.
            if version.is_file() {
                println!("cargo::rerun-if-changed={}", version.display());
            }
            // Theirs, so that their warnings are not ours.
            if !include::is_searched_last(folder) {
                build.flag("-isystem").flag(folder.as_os_str());
            }
        }
        build.compile("takt_tensorrt_shim");
    }

    /// Where TensorRT's headers may lie. The variable, where it is set, is the only one: whoever sets it means it.
    fn tensorrt_folders() -> Vec<PathBuf> {
        if let Some(folder) = env::var_os("TENSORRT_INCLUDE_DIR").filter(|folder| !folder.is_empty()) {
            return vec![folder.into()];
        }
        let multiarch = match env::var("CARGO_CFG_TARGET_ARCH").as_deref() {
            Ok("aarch64") => "/usr/include/aarch64-linux-gnu",
            _ => "/usr/include/x86_64-linux-gnu",
        };
        vec![multiarch.into(), "/usr/include".into()]
    }

    /// Where CUDA's header may lie; beside TensorRT's last, and beside its folder, where a set of headers for several versions has one.
    fn cuda_folders(tensorrt: &[PathBuf]) -> Vec<PathBuf> {
        let named = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(env::var_os);
        let named =
            named.filter(|folder| !folder.is_empty()).map(|folder| Path::new(&folder).join("include"));
        let beside = tensorrt.iter().flat_map(|folder| {
            [Some(folder.clone()), folder.parent().map(Path::to_owned)].into_iter().flatten()
        });
        named.chain([PathBuf::from("/usr/local/cuda/include")]).chain(beside).collect()
    }

    fn find(header: &str, folders: &[PathBuf]) -> Option<PathBuf> {
        folders.iter().find(|folder| folder.join(header).is_file()).cloned()
    }

    fn fail(header: &str, folders: &[PathBuf], todo: &str) -> ! {
        let folders: Vec<_> = folders.iter().map(|folder| folder.display().to_string()).collect();
        eprintln!("the feature `tensorrt` needs {header}, which is not in {}", folders.join(", "));
        eprintln!("{todo}; or build without the feature");
        process::exit(1);
    }
}
