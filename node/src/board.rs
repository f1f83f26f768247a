//! Which board this machine is, and which of the shipped files (`jetson-configs/`) is for it.

use std::path::{Path, PathBuf};

use takt_engine::{
    dir::Quantization, kv::KvKind, quant::WeightKind, shapes::decoder_spec, spec::DecoderSpec,
};

use crate::config::{Config, Layers};

/// Where the file of a machine that no board file is for is found.
const HOST_FILE: &str = "host.toml";
const GIB: f64 = (1_u64 << 30) as f64;

/// A configuration file and what it says.
#[derive(Debug)]
pub struct BoardFile {
    /// Where it lies.
    pub path: PathBuf,
    /// All of its values, over the built-in ones.
    pub config: Config,
}

impl BoardFile {
    /// Reads `path`.
    ///
    /// # Errors
    /// Every fault of the file.
    pub fn read(path: &Path) -> Result<Self, crate::config::ConfigError> {
        let config = Layers::default().file(path).resolve()?;
        Ok(Self { path: path.to_owned(), config })
    }

    /// The board's name; its file's where it has none.
    #[must_use]
    pub fn name(&self) -> &str {
        match self.config.text("board", "name") {
            "" => self.path.file_stem().and_then(|stem| stem.to_str()).unwrap_or("board"),
            name => name,
        }
    }

    /// The recommended engines: model and number formats, KV as the file has it.
    ///
    /// # Errors
    /// The first entry that is not a known shape and a format of weights.
    pub fn engines(&self) -> Result<Vec<(DecoderSpec, Quantization)>, String> {
        let kv = self.config.text("engine", "kv").parse().unwrap_or(KvKind::Bf16); // "auto": as engines are built
        let engine = |text: &String| {
            let (shape, weights) = text.split_once(' ').ok_or_else(|| {
                format!("{text:?}: a shape and a format are expected, as \"qwen3-4b nvfp4\"")
            })?;
            let spec = decoder_spec(shape).map_err(|error| format!("{text:?}: {error}"))?;
            let weights: WeightKind = weights.trim().parse().map_err(|fact| format!("{text:?}: {fact}"))?;
            // As `takt build` has it.
            let lm_head = if weights == WeightKind::Bf16 { WeightKind::Bf16 } else { WeightKind::Fp8 };
            Ok((spec, Quantization { weights, lm_head, kv }))
        };
        self.config.texts("board", "engines").iter().map(engine).collect()
    }

    /// Whether it is for a machine whose device tree says `model`.
    fn is_for(&self, model: &str) -> bool {
        let wanted = self.config.text("board", "model").to_lowercase();
        !wanted.is_empty() && model.to_lowercase().contains(&wanted)
    }
}

/// What was found for a machine.
#[derive(Debug, Default)]
pub struct Found {
    /// The file for this machine; `host.toml` when none is, `None` when there are no files at all.
    pub file: Option<BoardFile>,
    /// Whether the file is for this very board.
    pub is_match: bool,
    /// Files that could not be read, each with why.
    pub faults: Vec<String>,
}

/// Folders with board files, the nearest first: of the working directory, of this machine's set-up, beside the binary, of the packages.
#[must_use]
pub fn folders() -> Vec<PathBuf> {
    let mut folders = vec![PathBuf::from("jetson-configs"), PathBuf::from("/etc/takt")];
    if let Some(bin) = std::env::current_exe().ok().as_deref().and_then(Path::parent) {
        folders.extend([bin.join("jetson-configs"), bin.join("../share/takt/jetson-configs")]);
    }
    folders.extend(["/usr/share/takt/jetson-configs", "/opt/takt/jetson-configs"].map(PathBuf::from));
    folders
}

/// The file for the machine whose system files lie below `root`: of the first folder that has one, the file whose `model` the device tree
/// names and whose memory is nearest (boards of one model come with different memory).
#[must_use]
pub fn find(folders: &[PathBuf], root: &Path) -> Found {
    let mut found = Found::default();
    let model = model(root).unwrap_or_default();
    for folder in folders {
        let files = read_folder(folder, &mut found.faults);
        let (mut matching, others): (Vec<_>, Vec<_>) =
            files.into_iter().partition(|file| file.is_for(&model));
        let total = memory_bytes(root).unwrap_or(0) as f64 / GIB;
        let distance = |file: &BoardFile| (file.config.whole("board", "memory_gib") as f64 - total).abs();
        matching.sort_by(|a, b| distance(a).total_cmp(&distance(b)));
        if let Some(file) = matching.into_iter().next() {
            return Found { file: Some(file), is_match: true, ..found };
        }
        if found.file.is_none() {
            found.file = others.into_iter().find(|file| file.path.ends_with(HOST_FILE));
        }
    }
    found
}

fn read_folder(folder: &Path, faults: &mut Vec<String>) -> Vec<BoardFile> {
    let entries = std::fs::read_dir(folder).into_iter().flatten();
    let mut paths: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "toml"))
        .collect();
    paths.sort();
    let mut files = Vec::new();
    for path in paths {
        match BoardFile::read(&path) {
            Ok(file) => files.push(file),
            Err(error) => faults.push(error.to_string()),
        }
    }
    files
}

/// What the device tree below `root` calls the board; `None` on machines without one.
#[must_use]
pub fn model(root: &Path) -> Option<String> {
    let text = std::fs::read(root.join("proc/device-tree/model")).ok()?;
    let text = String::from_utf8_lossy(&text);
    Some(text.trim_matches(['\0', '\n', ' ']).to_owned()).filter(|text| !text.is_empty())
}

/// Memory the kernel below `root` manages.
#[must_use]
pub fn memory_bytes(root: &Path) -> Option<u64> {
    let text = std::fs::read_to_string(root.join("proc/meminfo")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// Folder of the GPU's clock below `root`: `17000000.gpu` or `17000000.ga10b` on Orin, by release, and `gpu-gpc-0` on Thor.
#[must_use]
pub fn gpu_clock_folder(root: &Path) -> Option<PathBuf> {
    let entries = std::fs::read_dir(root.join("sys/class/devfreq")).ok()?;
    let is_gpu = |name: &str| name == "gpu-gpc-0" || name.ends_with(".gpu") || name.ends_with(".ga10b");
    let mut folders: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.file_name().and_then(|name| name.to_str()).is_some_and(is_gpu))
        .collect();
    folders.sort();
    folders.into_iter().next()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn machine(model: &str, mem_kib: u64) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("proc/device-tree")).unwrap();
        fs::write(root.path().join("proc/device-tree/model"), format!("{model}\0")).unwrap();
        fs::write(root.path().join("proc/meminfo"), format!("MemTotal:       {mem_kib} kB\n")).unwrap();
        root
    }

    fn shipped() -> [PathBuf; 1] {
        [Path::new(env!("CARGO_MANIFEST_DIR")).join("../jetson-configs")]
    }

    #[test]
    fn each_board_is_known_by_its_device_tree_and_memory() {
        for (model, mem_kib, file) in [
            ("NVIDIA Jetson AGX Thor Developer Kit", 128_830_000, "thor-128gb.toml"),
            ("NVIDIA Jetson AGX Orin Developer Kit", 64_350_000, "agx-orin-64gb.toml"),
            ("Jetson AGX Orin", 31_400_000, "agx-orin-32gb.toml"),
            ("NVIDIA Jetson Orin NX Engineering Reference Developer Kit", 16_000_000, "orin-nx-16gb.toml"),
            (
                "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super",
                7_802_000,
                "orin-nano-8gb.toml",
            ),
        ] {
            let root = machine(model, mem_kib);
            let found = find(&shipped(), root.path());
            assert!(found.is_match && found.faults.is_empty(), "{model}: {:?}", found.faults);
            assert!(found.file.unwrap().path.ends_with(file), "{model}");
        }
    }

    #[test]
    fn another_machine_gets_the_file_for_hosts_and_a_broken_file_is_told() {
        let root = machine("Raspberry Pi 5 Model B", 8_000_000);
        let found = find(&shipped(), root.path());
        assert!(!found.is_match);
        assert!(found.file.unwrap().path.ends_with("host.toml"));
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("mine.toml"), "[board]\nmodle = \"Raspberry\"\n").unwrap();
        fs::write(folder.path().join("theirs.toml"), "[board]\nmodel = \"raspberry pi\"\n").unwrap();
        let found = find(&[folder.path().join("not-there"), folder.path().to_owned()], root.path());
        assert!(found.faults[0].contains("mine.toml:2: unknown key `modle`"), "{:?}", found.faults);
        assert_eq!(found.file.unwrap().name(), "theirs");
        let nothing = find(&[folder.path().join("not-there")], root.path());
        assert!(nothing.file.is_none() && nothing.faults.is_empty());
    }
}
