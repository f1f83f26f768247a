//! TensorRT: its library, asked for its version alone, and what this program was built with.

use std::path::Path;

use takt_tensorrt::{Probe, probe};

use super::{
    Finding,
    gpu::{find, library_folders},
};

/// What every finding's topic is.
const TOPIC: &str = "tensorrt";
/// What is missing where TensorRT is.
const MISSING: &str = "`takt build --tensorrt` and `--backend tensorrt` do not work here";

pub(super) fn examine(lookup: &impl Fn(&str) -> Option<String>) -> Finding {
    let library = find(&library_folders(lookup), "libnvinfer.so");
    finding(&probe(), library.as_deref())
}

/// `library` is a file of any version, where there is one.
fn finding(probe: &Probe, library: Option<&Path>) -> Finding {
    let library = library.map(|path| path.display().to_string());
    let Some(headers) = probe.headers else {
        return match library {
            Some(library) => Finding::note(
                TOPIC,
                format!("{library}; this takt was built without it"),
                format!("{MISSING}: build takt on this machine with `--features tensorrt`"),
            ),
            None => Finding::note(TOPIC, "not found, and this takt was built without it", MISSING),
        };
    };
    let built = format!("this takt was built with the headers of {headers}");
    match (&probe.library, &probe.parser) {
        // The parser's own version is the same in every release.
        (Ok(version), Ok(_)) => Finding::note(
            TOPIC,
            format!("TensorRT {version} with its ONNX parser; {built}"),
            "used by `takt build --tensorrt` and `--backend tensorrt` only: neither has met TensorRT yet",
        ),
        (Ok(version), Err(error)) => Finding::note(
            TOPIC,
            format!("TensorRT {version} without its ONNX parser; {built}"),
            format!("plans can be run and not built here: {error}"),
        ),
        (Err(error), _) => {
            let library =
                library.map_or_else(|| "not found".to_owned(), |library| format!("{library}, not usable"));
            Finding::note(TOPIC, format!("{library}; {built}"), format!("{MISSING}: {error}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use takt_tensorrt::Version;

    use super::*;

    const fn version(major: u32, minor: u32, patch: u32) -> Version {
        Version { major, minor, patch }
    }

    #[test]
    fn a_build_without_the_shim_says_so_whether_or_not_the_library_is_there() {
        let probe = Probe { headers: None, library: Err("none".into()), parser: Err("none".into()) };
        let there = finding(&probe, Some(Path::new("/usr/lib/libnvinfer.so.10")));
        assert_eq!(there.found, "/usr/lib/libnvinfer.so.10; this takt was built without it");
        assert!(there.effect.contains("--features tensorrt"), "{}", there.effect);
        let not_there = finding(&probe, None);
        assert!(!not_there.effect.contains("--features tensorrt"), "{}", not_there.effect);
    }

    #[test]
    fn what_is_there_and_what_is_missing_is_told_with_its_version() {
        let headers = Some(version(10, 13, 3));
        let (library, parser) = (Ok(version(10, 16, 2)), Ok(version(0, 1, 0)));
        let probe = Probe { headers, library, parser };
        let whole = finding(&probe, None);
        assert_eq!(
            whole.found,
            "TensorRT 10.16.2 with its ONNX parser; this takt was built with the headers of 10.13.3"
        );
        let probe = Probe { parser: Err("libnvonnxparser.so.10: not there".into()), ..probe };
        let no_parser = finding(&probe, None);
        assert_eq!(no_parser.effect, "plans can be run and not built here: libnvonnxparser.so.10: not there");
        let probe = Probe { library: Err("the machine has 11".into()), ..probe };
        let other = finding(&probe, Some(Path::new("/usr/lib/libnvinfer.so.11")));
        assert_eq!(
            other.found,
            "/usr/lib/libnvinfer.so.11, not usable; this takt was built with the headers of 10.13.3"
        );
        assert!(other.effect.ends_with(": the machine has 11"), "{}", other.effect);
    }
}
