//! A damaged engine directory is refused with a clear error, whatever the damage; nothing panics.

use std::{
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
};

use serde_json::{Value, json};
use takt_engine::{
    dir::{EngineDir, Manifest, blake3_hex},
    quant::{MatrixData, WeightKind},
};
use takt_engine_builder::BuildOptions;
use takt_tests::checkpoint::{build_with, engine_bytes, fixtures, read_tensors, write_tensors};
use tempfile::TempDir;

/// A good engine in a temporary folder.
struct Engine {
    dir: TempDir,
}

impl Engine {
    fn of(kind: WeightKind) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let source = fixtures().join("families/qwen2-window");
        build_with(&source, &dir.path().join("engine"), &BuildOptions::new(kind)).unwrap();
        Self { dir }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("engine")
    }

    fn file(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    /// Opens it; a panic is a failure of the test, naming `damage`.
    fn error(&self, damage: &str) -> String {
        match catch_unwind(AssertUnwindSafe(|| EngineDir::open(&self.path()))) {
            Ok(Ok(_)) => panic!("opened although {damage}"),
            Ok(Err(error)) => error.to_string(),
            Err(_) => panic!("panicked: {damage}"),
        }
    }

    fn assert_refused(&self, facts: &[&str]) {
        let message = self.error(&facts.join(", "));
        for fact in facts {
            assert!(message.contains(fact), "{message:?} does not say {fact:?}");
        }
    }

    fn edit_manifest(&self, edit: impl FnOnce(&mut Value)) -> &Self {
        let mut manifest: Value =
            serde_json::from_slice(&fs::read(self.file("engine.json")).unwrap()).unwrap();
        edit(&mut manifest);
        fs::write(self.file("engine.json"), manifest.to_string()).unwrap();
        self
    }

    /// Replaces a file and makes size and hash in the manifest right again, so that later checks have to find the damage.
    fn replace(&self, name: &str, bytes: &[u8]) -> &Self {
        fs::write(self.file(name), bytes).unwrap();
        self.edit_manifest(|manifest| {
            let files = manifest["files"].as_array_mut().unwrap();
            let entry = files.iter_mut().find(|entry| entry["name"] == name).unwrap();
            entry["size_bytes"] = json!(bytes.len());
            entry["blake3"] = json!(blake3_hex(bytes));
        })
    }
}

/// A small generator of positions (splitmix64), so that a failure can be repeated.
fn positions(seed: u64) -> impl Iterator<Item = u64> {
    (1..).map(move |step: u64| {
        let mut z = seed.wrapping_add(step.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    })
}

#[test]
fn every_file_truncated_at_any_length_is_refused() {
    let engine = Engine::of(WeightKind::Nvfp4);
    for (name, bytes) in engine_bytes(&engine.path()) {
        let lengths = [0, 1, 7, 8, 9, 100, bytes.len() / 3, bytes.len() / 2, bytes.len() - 1];
        let some = positions(7).take(10).map(|position| position as usize % bytes.len());
        for len in lengths.into_iter().filter(|&len| len < bytes.len()).chain(some) {
            fs::write(engine.file(&name), &bytes[..len]).unwrap();
            // The manifest may lose its last newline.
            if name != "engine.json" || len < bytes.len() - 1 {
                engine.error(&format!("{name} was cut to {len} bytes"));
            }
        }
        fs::write(engine.file(&name), &bytes).unwrap();
    }
    EngineDir::open(&engine.path()).unwrap();
}

#[test]
fn a_flipped_bit_anywhere_in_a_listed_file_is_found() {
    let engine = Engine::of(WeightKind::Fp8);
    for (name, bytes) in engine_bytes(&engine.path()).into_iter().filter(|(name, _)| name != "engine.json") {
        for position in positions(11).take(25) {
            let mut damaged = bytes.clone();
            damaged[position as usize / 8 % bytes.len()] ^= 1 << (position % 8);
            fs::write(engine.file(&name), damaged).unwrap();
            engine.error(&format!("bit {position} of {name} was flipped"));
        }
        fs::write(engine.file(&name), &bytes).unwrap();
    }
}

#[test]
fn a_damaged_manifest_never_panics_and_opens_only_when_it_still_describes_the_files() {
    let engine = Engine::of(WeightKind::Int4);
    let bytes = fs::read(engine.file("engine.json")).unwrap();
    let good = Manifest::read(&engine.path()).unwrap();
    let mut refused = 0;
    for position in positions(13).take(400) {
        let mut damaged = bytes.clone();
        damaged[(position >> 8) as usize % bytes.len()] = position as u8;
        fs::write(engine.file("engine.json"), damaged).unwrap();
        match catch_unwind(AssertUnwindSafe(|| EngineDir::open(&engine.path()))) {
            // Only white space, or numbers that describe no tensor or file (a constant, a version for people), may differ.
            Ok(Ok(opened)) => {
                let manifest = opened.manifest();
                assert_eq!(
                    (&manifest.files, &manifest.quantization.weights),
                    (&good.files, &good.quantization.weights)
                );
                assert_eq!(manifest.spec.hidden_size, good.spec.hidden_size);
            }
            Ok(Err(_)) => refused += 1,
            Err(_) => panic!("panicked on byte {position}"),
        }
    }
    assert!(refused > 200, "only {refused} of 400");
}

#[test]
fn a_damaged_header_with_a_right_hash_is_refused_without_panic() {
    let engine = Engine::of(WeightKind::Nvfp4);
    let bytes = fs::read(engine.file("weights.safetensors")).unwrap();
    let header_len = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut harmless = 0;
    for position in positions(17).take(150) {
        let mut damaged = bytes.clone();
        damaged[(position >> 8) as usize % header_len] = position as u8;
        engine.replace("weights.safetensors", &damaged);
        match catch_unwind(AssertUnwindSafe(|| EngineDir::open(&engine.path()))) {
            // The byte was the same, or padding was exchanged for other white space.
            Ok(Ok(_)) => harmless += 1,
            Ok(Err(_)) => {}
            Err(_) => panic!("panicked on byte {position}"),
        }
    }
    assert!(harmless < 8, "{harmless} of 150 damaged headers opened");
}

#[test]
fn wrong_missing_extra_and_moved_tensors_are_named() {
    let name = "model.layers.1.mlp.up_proj.weight";
    let rewrite = |edit: &dyn Fn(&mut takt_tests::checkpoint::Tensors)| {
        let engine = Engine::of(WeightKind::Bf16);
        let mut tensors = read_tensors(&engine.file("weights.safetensors"));
        edit(&mut tensors);
        let path = engine.dir.path().join("rewritten");
        write_tensors(&path, &tensors);
        engine.replace("weights.safetensors", &fs::read(path).unwrap());
        engine
    };
    rewrite(&|tensors| drop(tensors.remove(name))).assert_refused(&[name, "missing"]);
    rewrite(&|tensors| tensors.get_mut(name).unwrap().1.reverse()).assert_refused(&[
        name,
        "[64, 160]",
        "[160, 64]",
    ]);
    rewrite(&|tensors| tensors.get_mut(name).unwrap().0 = safetensors::Dtype::F16)
        .assert_refused(&[name, "F16"]);
    rewrite(&|tensors| drop(tensors.insert("zzz".into(), (safetensors::Dtype::U8, vec![1], vec![0]))))
        .assert_refused(&["unknown tensor \"zzz\""]);
    // Written by another tool, or by an earlier version: another order is as good, where every tensor begins at an element.
    let reordered = rewrite(&|_| {});
    let (before, after) = (Engine::of(WeightKind::Bf16), EngineDir::open(&reordered.path()).unwrap());
    assert_ne!(
        fs::read(reordered.file("weights.safetensors")).unwrap(),
        fs::read(before.file("weights.safetensors")).unwrap()
    );
    let before = EngineDir::open(&before.path()).unwrap();
    let bytes = |dir: &EngineDir| match dir.matrix("model.layers.1.mlp.up_proj").unwrap().data {
        MatrixData::Bf16(bytes) => bytes.to_vec(),
        _ => panic!("another format"),
    };
    assert_eq!(bytes(&before), bytes(&after));
}

#[test]
fn tensors_that_do_not_begin_at_an_element_are_refused() {
    let engine = Engine::of(WeightKind::Bf16);
    let mut bytes = fs::read(engine.file("weights.safetensors")).unwrap();
    let header_len = u64::from_le_bytes(*bytes.first_chunk().unwrap());
    let data_start = 8 + header_len as usize;
    assert_eq!(data_start % 64, 0);
    // One more space behind the header, which is padded with them.
    bytes[..8].copy_from_slice(&(header_len + 1).to_le_bytes());
    bytes.insert(data_start, b' ');
    engine
        .replace("weights.safetensors", &bytes)
        .assert_refused(&["starts at byte", "expected a multiple of"]);
}

#[test]
fn values_that_are_not_numbers_are_refused_in_every_format() {
    for (kind, tensor, damage) in [
        (WeightKind::Bf16, "model.layers.0.mlp.up_proj.weight", &[0x80u8, 0x7f][..]),
        (WeightKind::Fp8, "model.layers.0.mlp.up_proj.weight", &[0xff]),
        (WeightKind::Fp8, "model.layers.0.mlp.up_proj.weight_scale", &[0, 0, 0xc0, 0x7f]),
        (WeightKind::Nvfp4, "model.layers.0.mlp.up_proj.weight_scale", &[0x7f]),
        (WeightKind::Nvfp4, "model.layers.0.mlp.up_proj.weight_scale_2", &[0, 0, 0x80, 0x7f]),
        (WeightKind::Int4, "model.layers.0.mlp.up_proj.weight_scale", &[0, 0x7c]),
        (WeightKind::Int4, "model.norm.weight", &[0, 0, 0x80, 0xff]),
    ] {
        let engine = Engine::of(kind);
        let mut bytes = fs::read(engine.file("weights.safetensors")).unwrap();
        let header_len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let header: Value = serde_json::from_slice(&bytes[8..8 + header_len]).unwrap();
        let start = 8 + header_len + header[tensor]["data_offsets"][0].as_u64().unwrap() as usize;
        bytes[start..start + damage.len()].copy_from_slice(damage);
        engine.replace("weights.safetensors", &bytes);
        engine.assert_refused(&[tensor, "NaN or infinity"]);
    }
}

#[test]
fn a_manifest_that_lies_is_refused_with_the_field() {
    let cases: [(&str, Value, &str); 14] = [
        ("/schema_version", json!(4), "written by a newer builder"),
        ("/schema_version", json!(1), "build the engine again"),
        ("/surprise", json!(1), "unknown field `surprise`"),
        ("/spec/num_layers", json!(0), "num_layers is 0"),
        ("/spec/num_layers", json!(4), "3 attention windows for 4 layers"),
        ("/spec/hidden_size", json!(u64::MAX), "hidden_size"),
        ("/spec/vocab_size", json!(97), "expected BF16 [97, 64]"),
        ("/spec/qk_norm", json!(true), "q_norm"),
        ("/quantization/weights", json!("fp8"), "weight_scale\" is missing"),
        ("/quantization/weights", json!("int3"), "unknown variant"),
        ("/eos_token_ids/0", json!(96), "end token 96"),
        ("/files/0/size_bytes", json!(u64::MAX), "truncated or changed"),
        ("/files/0/blake3", json!("00"), "64 lower-case hexadecimal digits"),
        ("/files/0/blake3", json!("0".repeat(64)), "BLAKE3 is"),
    ];
    for (pointer, value, fact) in cases {
        let engine = Engine::of(WeightKind::Bf16);
        engine.edit_manifest(|manifest| match manifest.pointer_mut(pointer) {
            Some(field) => *field = value,
            None => manifest[&pointer[1..]] = value,
        });
        engine.assert_refused(&["corrupt engine", fact]);
    }
}

#[test]
fn file_names_cannot_lead_out_of_the_engine() {
    for name in [
        "../secret",
        "/etc/passwd",
        "draft/../../x",
        "draft//x",
        "draft/..",
        "draft/",
        "draft",
        "other.bin",
        "",
    ] {
        let engine = Engine::of(WeightKind::Bf16);
        engine.edit_manifest(|manifest| manifest["files"][0]["name"] = json!(name));
        engine.assert_refused(&["is not one an engine has"]);
    }
}

#[test]
fn files_listed_twice_missing_or_unknown_are_refused() {
    let engine = Engine::of(WeightKind::Bf16);
    engine.edit_manifest(|manifest| {
        let first = manifest["files"][0].clone();
        manifest["files"].as_array_mut().unwrap().push(first);
    });
    engine.assert_refused(&["listed twice"]);

    let engine = Engine::of(WeightKind::Bf16);
    fs::remove_file(engine.file("tokenizer.json")).unwrap();
    engine.assert_refused(&["tokenizer.json", "missing"]);

    let engine = Engine::of(WeightKind::Bf16);
    engine.edit_manifest(|manifest| manifest["files"] = json!([]));
    engine.assert_refused(&["weights.safetensors is not among the listed files"]);

    let engine = Engine::of(WeightKind::Bf16);
    fs::write(engine.file("notes.txt"), "").unwrap();
    engine.assert_refused(&["notes.txt", "does not list"]);
    fs::remove_file(engine.file("notes.txt")).unwrap();
    for reserved in ["draft", "kernels", "plans", "costs"] {
        fs::create_dir(engine.file(reserved)).unwrap();
        fs::write(engine.file(reserved).join("anything"), "x").unwrap();
    }
    EngineDir::open(&engine.path()).unwrap();

    let engine = Engine::of(WeightKind::Bf16);
    fs::remove_file(engine.file("weights.safetensors")).unwrap();
    fs::create_dir(engine.file("weights.safetensors")).unwrap();
    engine.assert_refused(&["not a regular file"]);
}

#[test]
fn what_is_no_engine_is_called_so() {
    let dir = tempfile::tempdir().unwrap();
    for (path, fact) in [
        (dir.path().join("nothing"), "does not exist"),
        (dir.path().to_path_buf(), "not an engine"),
        (fixtures().join("README.md"), "is not a directory"),
    ] {
        let error = EngineDir::open(&path).unwrap_err();
        assert!(error.is_corrupt(), "{error}");
        assert!(error.to_string().contains(fact) && error.to_string().contains("takt build"), "{error}");
    }
}

#[test]
fn inspection_reports_each_file_without_stopping_at_the_first_bad_one() {
    let engine = Engine::of(WeightKind::Bf16);
    let manifest = Manifest::read(&engine.path()).unwrap();
    assert!(manifest.check_files(&engine.path()).iter().all(|check| check.outcome.is_ok()));
    fs::write(engine.file("generation.json"), "{}").unwrap();
    fs::remove_file(engine.file("tokenizer.json")).unwrap();
    let bad: Vec<String> = manifest
        .check_files(&engine.path())
        .into_iter()
        .filter(|check| check.outcome.is_err())
        .map(|check| check.entry.name)
        .collect();
    assert_eq!(bad, ["generation.json", "tokenizer.json"]);
}
