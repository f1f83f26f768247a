//! Every shipped board file against what its recommended engines take, by the sizes the engine itself goes by.

use std::path::{Path, PathBuf};

use takt_engine::memory::EngineMemory;

use super::served_engine::engine_options;
use crate::board::BoardFile;

const MIB: u64 = 1 << 20;

fn boards() -> Vec<BoardFile> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../jetson-configs");
    let mut paths: Vec<PathBuf> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| {
        path.extension().is_some_and(|extension| extension == "toml") && !path.ends_with("host.toml")
    });
    paths.sort();
    paths.iter().map(|path| BoardFile::read(path).unwrap()).collect()
}

#[test]
fn recommended_engines_fit_their_board_and_its_budget_also_while_they_load() {
    let boards = boards();
    assert_eq!(boards.len(), 5);
    for board in boards {
        let options = engine_options(&board.config).unwrap();
        let whole = |section, name| board.config.whole(section, name);
        let (memory, reserve) =
            (whole("board", "memory_gib") * 1024 * MIB, whole("board", "reserve_mib") * MIB);
        let budget = whole("memory", "budget_mib") * MIB;
        assert!(budget > 0 && budget + reserve <= memory, "{}", board.name());
        let engines = board.engines().unwrap();
        assert!(!engines.is_empty(), "{}", board.name());
        for ((spec, quantization), name) in engines.iter().zip(board.config.texts("board", "engines")) {
            let needed = EngineMemory::of(spec, quantization, None, &options).unwrap();
            let mib = |bytes: u64| bytes.div_ceil(MIB);
            println!(
                "{}, {name}: {} MiB (weights {}, KV cache {}, snapshots {}, workspace {})",
                board.name(),
                mib(needed.total_bytes()),
                mib(needed.weight_bytes),
                mib(needed.kv_bytes),
                mib(needed.snapshot_bytes),
                mib(needed.workspace_bytes)
            );
            needed.check(budget, &options).unwrap();
            // The engine's file is mapped until its weights are packed, and locked where memory is.
            let loading = needed.total_bytes() + needed.weight_bytes;
            assert!(
                loading + reserve <= memory,
                "{}, {name}: {} MiB while loading",
                board.name(),
                mib(loading)
            );
        }
    }
}

#[test]
fn every_value_of_a_board_file_says_where_it_is_from() {
    for board in boards() {
        let text = std::fs::read_to_string(&board.path).unwrap();
        for (number, line) in text.lines().enumerate().filter(|(_, line)| line.contains(" = ")) {
            let key = line.split(" = ").next().unwrap_or_default();
            let has_origin =
                ["[sheet]", "[nvpmodel]", "[reported]", "[reasoned]", "[built-in]", "not compared"]
                    .iter()
                    .any(|origin| line.contains(origin));
            let follows_another = key == "gpu_mhz" && line.contains("read yours");
            assert!(
                key.starts_with('#') || key == "name" || has_origin || follows_another,
                "{}:{}: {line}",
                board.path.display(),
                number + 1
            );
        }
    }
}
