//! What environment variables tell the stand-in, in a program that finds it as it would find TensorRT: for tests of programs.

use std::{env, fs, process::Command};

use takt_tensorrt::TensorRt;

use crate::{build, model, profile, request, standin::Built};

/// Set in the child process alone.
const CHILD: &str = "TAKT_STANDIN_CHILD";

/// Opens TensorRT as any program does, and says what a build came to.
#[test]
fn child() {
    if env::var_os(CHILD).is_none() {
        return;
    }
    let trt = TensorRt::open().unwrap();
    println!("version {}", trt.version());
    let folder = tempfile::tempdir().unwrap();
    let onnx = model::write(&model::decoder(false), folder.path());
    match build(&trt, &request(&onnx, &[profile("decode", [1, 1, 1])])) {
        Ok(built) => {
            println!("built, for {}", String::from_utf8_lossy(&built.timing_cache).lines().next().unwrap())
        }
        Err(error) => println!("{error}"),
    }
}

#[test]
fn a_program_finds_the_libraries_and_they_do_as_the_environment_says() {
    let Some(built) = Built::get() else { return };
    let folder = tempfile::tempdir().unwrap();
    let record = folder.path().join("record");
    let run = |settings: &[(&str, String)]| {
        let mut command = Command::new(env::current_exe().unwrap());
        command.args(["settings::child", "--exact", "--nocapture"]).env(CHILD, "1");
        command.envs(built.environment()).env("STANDIN_RECORD", &record);
        let output = command.envs(settings.iter().cloned()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
        said
    };
    let (major, minor, _) = built.version;
    let version = format!("{major}.{}.7", minor + 1);
    let said = run(&[("STANDIN_VERSION", version.clone()), ("STANDIN_SM", "87".into())]);
    assert!(said.contains(&format!("version {version}\n")), "{said}");
    assert!(said.contains(&format!("built, for STANDIN-TIMING {version} 87\n")), "{said}");
    let calls = fs::read_to_string(&record).unwrap();
    assert!(calls.starts_with("getInferLibVersion()\n"), "{calls}");
    assert!(
        calls.contains("\nIBuilder::buildSerializedNetwork(INetworkDefinition, IBuilderConfig)\n"),
        "{calls}"
    );
    let fails = |what: &str| run(&[("STANDIN_FAIL", what.into())]);
    let said = fails("IBuilder::buildSerializedNetwork:1:oom");
    assert!(said.contains("TensorRT: building the plan: out of memory: "), "{said}");
    let said = fails("IOptimizationProfile::setDimensions:3;IRuntime::deserializeCudaEngine:1");
    assert!(said.contains("input ids cannot be [2, 1]") && said.contains("told to fail"), "{said}");
    let said = run(&[("STANDIN_REFUSE", "Gelu,Gather".into())]);
    assert!(said.contains("No importer registered for op: Gather"), "{said}");
}
