//! Libraries that are missing, of another version, or none of TensorRT's.

use std::{fs, os::unix::fs::symlink, path::Path, process::Command};

use takt_tensorrt::{TensorRt, TensorRtError, probe};

use crate::{build, model, profile, request, standin::Standin};

#[track_caller]
fn missing(opened: takt_tensorrt::Result<TensorRt>) -> String {
    match opened {
        Err(TensorRtError::Missing(why)) => why,
        other => panic!("{other:?}"),
    }
}

/// A library that exports nothing of TensorRT's.
fn other_library(path: &Path) {
    let source = path.with_extension("c");
    fs::write(&source, "int takt_other(void) { return 1; }\n").unwrap();
    let made = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(path).arg(source).status().unwrap();
    assert!(made.success());
}

#[test]
fn the_library_is_found_by_its_name_and_asked_for_its_version_first() {
    let Some(standin) = Standin::load() else { return };
    let trt = TensorRt::open().unwrap();
    assert_eq!(standin.record(), ["getInferLibVersion()"]);
    let (major, minor, patch) = standin.built().version;
    let version = trt.version();
    assert_eq!((version.major, version.minor, version.patch), (major, minor, patch));
    assert_eq!(trt.header_version(), version);
    let found = probe();
    assert_eq!((found.headers, found.library), (Some(version), Ok(version)));
    assert!(found.parser.is_ok(), "{:?}", found.parser);
    assert_eq!(standin.alive(), [""; 0]);
}

#[test]
fn a_later_library_of_the_same_major_is_taken_and_others_are_not() {
    let Some(standin) = Standin::load() else { return };
    let (major, minor, patch) = standin.built().version;
    let (major, minor, patch) = (major as i32, minor as i32, patch as i32);
    standin.set_version(major, minor + 1, 0);
    TensorRt::open().unwrap();
    if minor > 0 {
        standin.set_version(major, minor - 1, patch);
        let why = missing(TensorRt::open());
        assert!(why.contains(&format!("the machine has TensorRT {major}.{}.{patch}", minor - 1)), "{why}");
        assert!(why.contains("build takt on this machine"), "{why}");
    }
    standin.clear();
    standin.set_version(major + 1, 0, 0);
    let why = missing(TensorRt::open());
    assert!(why.contains(&format!("says that it is TensorRT {}.0.0", major + 1)), "{why}");
    assert_eq!(standin.record(), ["getInferLibVersion()"], "nothing else is called of it");
}

#[test]
fn a_machine_with_another_major_is_said_to_have_it() {
    let Some(standin) = Standin::load() else { return };
    let built = standin.built();
    let major = built.version.0;
    let folder = tempfile::tempdir().unwrap();
    let other = if major == 11 { 10 } else { 11 };
    other_library(&folder.path().join(format!("libnvinfer.so.{other}")));
    let why = missing(TensorRt::open_in(folder.path()));
    let expected = format!(
        "this takt was built for TensorRT {major}, the machine has {other}: build takt on this machine ("
    );
    assert!(why.starts_with(&expected) && why.contains("No such file"), "{why}");
}

#[test]
fn a_machine_without_the_library_is_told_what_to_install() {
    let Some(standin) = Standin::load() else { return };
    let major = standin.built().version.0;
    let folder = tempfile::tempdir().unwrap();
    let why = missing(TensorRt::open_in(folder.path()));
    assert!(why.contains(&format!("apt install libnvinfer{major} libnvonnxparsers{major}")), "{why}");
}

#[test]
fn a_library_of_that_name_that_is_no_tensorrt_is_said_to_be_none() {
    let Some(standin) = Standin::load() else { return };
    let folder = tempfile::tempdir().unwrap();
    let name = standin.built().infer_name();
    other_library(&folder.path().join(&name));
    let why = missing(TensorRt::open_in(folder.path()));
    assert!(why.contains(&format!("{name} has no function getInferLibVersion")), "{why}");
    // Not over the other one, which stays mapped.
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join(&name), "no library").unwrap();
    let why = missing(TensorRt::open_in(folder.path()));
    assert!(why.starts_with(&format!("{name} is there but cannot be loaded: ")), "{why}");
}

#[test]
fn a_library_that_lacks_another_is_said_to_be_there_and_what_a_container_lacks() {
    let Some(standin) = Standin::load() else { return };
    let (folder, built) = (tempfile::tempdir().unwrap(), standin.built());
    let lacking = folder.path().join("libtakt_of_the_driver.so");
    other_library(&lacking);
    let source = folder.path().join("needs.c");
    fs::write(&source, "int takt_other(void); int takt_needs(void) { return takt_other(); }\n").unwrap();
    let needing = |place: &Path, name: String| {
        let made = Command::new("cc")
            .args(["-shared", "-fPIC", "-Wl,--no-as-needed", "-o"])
            .arg(place.join(name))
            .arg(&source)
            .arg(format!("-L{}", folder.path().display()))
            .arg("-ltakt_of_the_driver")
            .status();
        assert!(made.unwrap().success());
    };
    needing(folder.path(), built.parser_name());
    symlink(built.folder.join(built.infer_name()), folder.path().join(built.infer_name())).unwrap();
    let trt = TensorRt::open_in(folder.path()).unwrap();
    let other = if built.version.0 == 11 { 10 } else { 11 };
    // Another folder: a library of a path that was opened before is not looked at again.
    let without = tempfile::tempdir().unwrap();
    other_library(&without.path().join(format!("libnvinfer.so.{other}")));
    needing(without.path(), built.infer_name());
    fs::remove_file(&lacking).unwrap();
    let why = missing(TensorRt::open_in(without.path()));
    let expected =
        format!("{} is there but cannot be loaded: libtakt_of_the_driver.so: ", built.infer_name());
    assert!(why.starts_with(&expected) && why.ends_with("start it with `--runtime nvidia`"), "{why}");
    let models = tempfile::tempdir().unwrap();
    let onnx = model::write(&model::decoder(false), models.path());
    let error = build(&trt, &request(&onnx, &[profile("decode", [1, 1, 1])])).unwrap_err().to_string();
    assert!(error.contains("libtakt_of_the_driver.so: ") && error.contains("--runtime nvidia"), "{error}");
}

#[test]
fn without_the_parser_there_are_no_builds_and_all_else() {
    let Some(standin) = Standin::load() else { return };
    let built = standin.built();
    let folder = tempfile::tempdir().unwrap();
    symlink(built.folder.join(built.infer_name()), folder.path().join(built.infer_name())).unwrap();
    let trt = TensorRt::open_in(folder.path()).unwrap();
    let models = tempfile::tempdir().unwrap();
    let onnx = model::write(&model::decoder(false), models.path());
    let error = build(&trt, &request(&onnx, &[profile("decode", [1, 1, 1])])).unwrap_err();
    assert!(matches!(error, TensorRtError::Missing(_)), "{error:?}");
    let parser = built.parser_name();
    assert!(error.to_string().contains(&format!("ONNX parser, {parser}")), "{error}");
    assert!(error.to_string().contains("apt install libnvonnxparsers"), "{error}");
    assert_eq!(standin.alive(), [""; 0]);
}
