//! The stand-in's libraries, made of the headers of this machine.

use std::{
    env,
    ffi::OsString,
    fs, io,
    path::{Path, PathBuf},
    process::Command,
    thread,
};

use sha2::{Digest, Sha256};

use super::generator;

/// The libraries' folder, which is to be the first that the loader looks in.
#[derive(Debug, Clone)]
pub struct Built {
    /// Holds `libnvinfer.so.MAJOR` and `libnvonnxparser.so.MAJOR`.
    pub folder: PathBuf,
    /// Version of the headers.
    pub version: (u32, u32, u32),
}

const REQUIRED: &str = "TAKT_REQUIRE_TENSORRT_HEADERS";
/// The headers, and what NVIDIA's need of CUDA.
const PROBE: &str = "#include <NvInfer.h>\n#include <NvOnnxParser.h>\n\
    standin_version NV_TENSORRT_MAJOR NV_TENSORRT_MINOR NV_TENSORRT_PATCH;\n";
const CUDA_TYPES: &str =
    "#pragma once\ntypedef struct CUevent_st* cudaEvent_t;\ntypedef struct CUstream_st* cudaStream_t;\n";

impl Built {
    /// Makes the libraries if they are not there yet; `None`, with a word on stderr, where that cannot be done and need not be.
    pub fn get() -> Option<Self> {
        match Builder::found() {
            Ok(builder) => {
                Some(builder.built().unwrap_or_else(|error| panic!("the stand-in for TensorRT: {error}")))
            }
            Err(missing) => {
                let is_required = env::var_os(REQUIRED).is_some_and(|value| value == "1");
                assert!(!is_required, "{missing}, and {REQUIRED}=1");
                eprintln!("skipped: {missing}, for a stand-in for TensorRT");
                None
            }
        }
    }

    /// The library's file name, which is also its soname.
    pub fn infer_name(&self) -> String {
        format!("libnvinfer.so.{}", self.version.0)
    }

    /// The parser's.
    pub fn parser_name(&self) -> String {
        format!("libnvonnxparser.so.{}", self.version.0)
    }

    /// What a program is started with so that it finds the libraries.
    pub fn environment(&self) -> Vec<(&'static str, OsString)> {
        self.beside(vec![])
    }

    /// `environment`, as the emulated device's, with the libraries before what else its loader looks in.
    pub fn beside(&self, mut environment: Vec<(&'static str, OsString)>) -> Vec<(&'static str, OsString)> {
        const PATH: &str = "LD_LIBRARY_PATH";
        let found = environment.iter().position(|(name, _)| *name == PATH);
        let before = found.map(|idx| environment.swap_remove(idx).1).or_else(|| env::var_os(PATH));
        let mut path = self.folder.clone().into_os_string();
        if let Some(before) = before.filter(|before| !before.is_empty()) {
            path.push(":");
            path.push(before);
        }
        environment.push((PATH, path));
        environment
    }
}

/// A compiler with headers.
struct Builder {
    program: OsString,
    version: String,
    flags: Vec<String>,
    folder: PathBuf,
}

impl Builder {
    fn found() -> Result<Self, String> {
        let headers = header_folder()
            .ok_or("no TensorRT headers (NvInfer.h and NvOnnxParser.h in TENSORRT_INCLUDE_DIR)")?;
        let candidates = env::var_os("CXX").into_iter().chain(["c++", "g++", "clang++"].map(Into::into));
        let (program, version) = candidates
            .into_iter()
            .find_map(|program| {
                let output = Command::new(&program).arg("--version").output().ok()?;
                output
                    .status
                    .success()
                    .then(|| (program, String::from_utf8_lossy(&output.stdout).into_owned()))
            })
            .ok_or("no C++ compiler (CXX, c++, g++ or clang++)")?;
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("standin");
        let mut flags: Vec<String> =
            "-std=c++17 -O1 -fPIC -fvisibility=hidden -pthread -Wall -Wextra -Wno-overloaded-virtual \
             -Wno-deprecated-declarations -Wno-unknown-pragmas"
                .split_whitespace()
                .map(Into::into)
                .collect();
        if env::var_os(REQUIRED).is_some_and(|value| value == "1") {
            flags.push("-Werror".into());
        }
        let more = env::var("TAKT_STANDIN_FLAGS").unwrap_or_default();
        flags.extend(more.split_whitespace().map(Into::into));
        flags.extend(["-isystem".into(), headers.display().to_string()]);
        flags.extend(["-isystem".into(), folder.join("cuda").display().to_string()]);
        Ok(Self { program, version, flags, folder })
    }

    fn built(&self) -> io::Result<Built> {
        fs::create_dir_all(self.folder.join("cuda"))?;
        // Tests run as several processes: the first builds, the others find what it built.
        let lock = fs::File::create(self.folder.join("lock"))?;
        lock.lock()?;
        let types = self.folder.join("cuda/cuda_runtime_api.h");
        if !types.exists() {
            fs::write(types, CUDA_TYPES)?;
        }
        let text = self.preprocessed()?;
        let version = version(&text).ok_or_else(|| io::Error::other("the headers have no version"))?;
        let (header, source) = generator::emit(&generator::parse(&text));
        let files = own_files()?;
        let mut hash = Sha256::new();
        hash.update(format!("{} {:?}\n{text}\n{header}\n{source}", self.version, self.flags));
        for file in &files {
            hash.update(fs::read(file)?);
        }
        let folder = self.folder.join(format!("{}.{}-{}", version.0, version.1, hex(hash)));
        let built = Built { folder, version };
        if !built.folder.exists() {
            let mut partial = built.folder.clone().into_os_string();
            partial.push(".partial");
            let partial = PathBuf::from(partial);
            let _ = fs::remove_dir_all(&partial);
            fs::create_dir_all(&partial)?;
            fs::write(partial.join("recorded.h"), header)?;
            fs::write(partial.join("recorded.cpp"), source)?;
            self.compile(&built, &partial, &files)?;
            fs::rename(partial, &built.folder)?;
        }
        Ok(built)
    }

    /// TensorRT's headers as the compiler sees them.
    fn preprocessed(&self) -> io::Result<String> {
        let probe = self.folder.join("probe.cpp");
        fs::write(&probe, PROBE)?;
        run(Command::new(&self.program).args(&self.flags).args(["-E", "-P", "-w"]).arg(probe))
    }

    /// Two files at a time.
    fn compile(&self, built: &Built, folder: &Path, files: &[PathBuf]) -> io::Result<()> {
        let mut sources: Vec<PathBuf> = vec![folder.join("recorded.cpp")];
        sources.extend(
            files.iter().filter(|path| path.extension().is_some_and(|found| found == "cpp")).cloned(),
        );
        let (parser, sources): (Vec<_>, Vec<_>) =
            sources.into_iter().partition(|path| path.ends_with("onnx_library.cpp"));
        let (first, second) = sources.split_at(sources.len() / 3);
        let objects = thread::scope(|scope| {
            let second = scope.spawn(|| self.objects(folder, second));
            let mut made = self.objects(folder, first)?;
            made.extend(second.join().unwrap()?);
            io::Result::Ok(made)
        })?;
        let infer = folder.join(built.infer_name());
        run(self.linker(&built.infer_name()).args(objects).arg("-ldl").arg("-o").arg(&infer))?;
        let parser = self.objects(folder, &parser)?;
        run(self
            .linker(&built.parser_name())
            .args(["-Wl,-rpath,$ORIGIN", "-Wl,--disable-new-dtags"])
            .args(parser)
            .arg(infer)
            .arg("-o")
            .arg(folder.join(built.parser_name())))?;
        Ok(())
    }

    fn objects(&self, folder: &Path, sources: &[PathBuf]) -> io::Result<Vec<PathBuf>> {
        let own = own_folder();
        let each = |source: &PathBuf| {
            let object = folder.join(source.file_name().unwrap_or_default()).with_extension("o");
            let mut command = Command::new(&self.program);
            command.args(&self.flags).arg("-I").arg(folder).arg("-I").arg(own.join("cpp"));
            run(command.arg("-c").arg(source).arg("-o").arg(&object))?;
            Ok(object)
        };
        sources.iter().map(each).collect()
    }

    fn linker(&self, soname: &str) -> Command {
        let mut command = Command::new(&self.program);
        command.args(&self.flags).arg("-shared").arg(format!("-Wl,-soname,{soname}")).arg("-Wl,-z,defs");
        command
    }
}

/// Where `build.rs` of the crate finds the headers.
fn header_folder() -> Option<PathBuf> {
    let multiarch = format!("/usr/include/{}-linux-gnu", env::consts::ARCH);
    let named = env::var_os("TENSORRT_INCLUDE_DIR").filter(|folder| !folder.is_empty());
    let folders = match named {
        Some(folder) => vec![PathBuf::from(folder)],
        None => vec![multiarch.into(), "/usr/include".into()],
    };
    folders.into_iter().find(|folder| folder.join("NvInfer.h").is_file())
}

/// The version that the probe's last line has.
fn version(text: &str) -> Option<(u32, u32, u32)> {
    let (_, line) = text.rsplit_once("standin_version")?;
    let mut numbers = line.trim_end().trim_end_matches(';').split_whitespace().map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// This folder, from any crate of the workspace whose tests include this file by its path.
fn own_folder() -> PathBuf {
    fs::canonicalize(concat!(env!("CARGO_MANIFEST_DIR"), "/../tensorrt/tests/standin")).unwrap()
}

fn own_files() -> io::Result<Vec<PathBuf>> {
    let own = own_folder();
    let mut files = vec![own.join("standin.h"), own.join("executor.h")];
    for entry in fs::read_dir(own.join("cpp"))? {
        files.push(entry?.path());
    }
    files.sort_unstable();
    Ok(files)
}

/// The first 16 digits.
fn hex(hash: Sha256) -> String {
    hash.finalize().iter().take(8).fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

/// Standard output of a command that succeeds.
fn run(command: &mut Command) -> io::Result<String> {
    let output = command.output()?;
    let errors = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        return Err(io::Error::other(format!("{command:?}:\n{errors}")));
    }
    if !errors.is_empty() {
        eprintln!("{errors}");
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
