use std::{env, os::unix::fs::PermissionsExt, process::Command, thread};

use super::*;

const SOURCE: Source = Source { name: "fixture", text: "first" };
const CUBIN: &[u8] = include_bytes!("../../tests/fixtures/cubin/sm_87.cubin");
const VERSION: CompilerVersion = CompilerVersion { major: 13, minor: 0, library_bytes: 1000 };

fn image() -> Image {
    Image::parse(CUBIN.to_vec(), Target::Orin).unwrap()
}

/// Builds with a compiler that counts: whether it was asked, and the result.
fn build(cache: &Cache, source: &Source, version: CompilerVersion) -> (bool, Cached) {
    let mut compiled = false;
    let compile = || {
        compiled = true;
        Ok(image())
    };
    let cached = cache.build_with(source, Target::Orin, version, compile).unwrap();
    assert_eq!(cached.image, image());
    (compiled, cached)
}

#[test]
fn a_cubin_is_compiled_once_and_then_found() {
    let folder = tempfile::tempdir().unwrap();
    let cache = Cache::new(folder.path().join("made/on/demand"));
    let (compiled, cached) = build(&cache, &SOURCE, VERSION);
    assert!(compiled && matches!(cached.origin, Origin::Compiled));
    let (compiled, cached) = build(&cache, &SOURCE, VERSION);
    assert!(!compiled && matches!(cached.origin, Origin::Found));
    let names: Vec<_> =
        fs::read_dir(cache.folder()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["fixture.sm_87.nvrtc-13.0-3e8.cubin"], "and no temporary file stays");
}

#[test]
fn another_text_or_compiler_is_compiled_anew() {
    let folder = tempfile::tempdir().unwrap();
    let cache = Cache::new(folder.path());
    build(&cache, &SOURCE, VERSION);
    assert!(build(&cache, &Source { text: "second", ..SOURCE }, VERSION).0);
    assert!(build(&cache, &SOURCE, CompilerVersion { minor: 1, ..VERSION }).0);
    assert!(build(&cache, &SOURCE, CompilerVersion { library_bytes: 1001, ..VERSION }).0);
}

#[test]
fn a_damaged_file_is_made_again_wherever_it_is_damaged() {
    let folder = tempfile::tempdir().unwrap();
    let cache = Cache::new(folder.path());
    build(&cache, &SOURCE, VERSION);
    let path = folder.path().join(file_name(&SOURCE, Target::Orin, VERSION));
    let whole = fs::read(&path).unwrap();
    assert_eq!(whole.len(), CUBIN.len() + SEAL_LEN);
    let mut damaged: Vec<Vec<u8>> = [0, 64, CUBIN.len() - 1, CUBIN.len(), whole.len() - 1]
        .into_iter()
        .map(|position| {
            let mut bytes = whole.clone();
            bytes[position] ^= 1;
            bytes
        })
        .collect();
    damaged.extend([0, 10, SEAL_LEN, CUBIN.len(), whole.len() - 1].map(|len| whole[..len].to_vec()));
    for bytes in damaged {
        fs::write(&path, &bytes).unwrap();
        assert!(cache.find(&SOURCE, Target::Orin, None).is_none());
        assert!(build(&cache, &SOURCE, VERSION).0, "{} bytes", bytes.len());
        assert_eq!(fs::read(&path).unwrap(), whole);
    }
}

#[test]
fn a_file_under_another_name_is_not_taken() {
    let folder = tempfile::tempdir().unwrap();
    let cache = Cache::new(folder.path());
    build(&cache, &SOURCE, VERSION);
    let other = CompilerVersion { minor: 5, ..VERSION };
    let from = folder.path().join(file_name(&SOURCE, Target::Orin, VERSION));
    fs::rename(from, folder.path().join(file_name(&SOURCE, Target::Orin, other))).unwrap();
    assert!(build(&cache, &SOURCE, other).0);
}

#[test]
fn without_a_compiler_the_newest_whole_cubin_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let cache = Cache::new(folder.path());
    assert!(cache.find(&SOURCE, Target::Orin, None).is_none());
    let newer = CompilerVersion { major: 13, minor: 2, library_bytes: 7 };
    for version in [VERSION, newer] {
        cache.store(&SOURCE, version, &image()).unwrap();
    }
    fs::write(folder.path().join("fixture.sm_87.nvrtc-x.cubin"), "none").unwrap();
    assert_eq!(cache.find(&SOURCE, Target::Orin, None), Some(image()));
    fs::write(folder.path().join(file_name(&SOURCE, Target::Orin, newer)), "damaged").unwrap();
    assert_eq!(cache.find(&SOURCE, Target::Orin, None), Some(image()), "the older one");
    assert!(cache.find(&SOURCE, Target::Thor, None).is_none());
    assert!(cache.find(&Source { text: "second", ..SOURCE }, Target::Orin, None).is_none());
}

#[test]
fn of_several_compilers_cubins_the_newest_that_the_driver_takes_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let cache = Cache::new(folder.path());
    let older = CompilerVersion { major: 12, minor: 6, library_bytes: 7 };
    for version in [VERSION, older] {
        cache.store(&SOURCE, version, &image()).unwrap();
    }
    // Both are the same cubin: which one is taken shows when the other is damaged.
    let is_found = |driver: Option<CudaVersion>| cache.find(&SOURCE, Target::Orin, driver).is_some();
    let (of_jetpack_6, of_jetpack_7) = (CudaVersion::new(12, 6), CudaVersion::new(13, 0));
    assert_eq!(cache.versions(&SOURCE, Target::Orin), [older, VERSION]);
    let damage =
        |version| fs::write(folder.path().join(file_name(&SOURCE, Target::Orin, version)), "damaged");
    damage(VERSION).unwrap();
    assert!(is_found(Some(of_jetpack_6)) && is_found(Some(of_jetpack_7)) && is_found(None));
    damage(older).unwrap();
    assert!(!is_found(Some(of_jetpack_6)) && !is_found(None));
    cache.store(&SOURCE, VERSION, &image()).unwrap();
    assert!(!is_found(Some(of_jetpack_6)) && is_found(Some(of_jetpack_7)) && is_found(None));
}

#[test]
fn a_folder_that_cannot_be_written_costs_no_more_than_the_time() {
    let folder = tempfile::tempdir().unwrap();
    // Also for root, whom permissions do not stop.
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    let (compiled, cached) = build(&Cache::new(file.join("cache")), &SOURCE, VERSION);
    assert!(compiled);
    let Origin::NotStored(error) = cached.origin else { panic!("{:?}", cached.origin) };
    assert!(error.to_string().contains("fixture.sm_87"), "{error}");

    let read_only = folder.path().join("read-only");
    let cache = Cache::new(&read_only);
    build(&cache, &SOURCE, VERSION);
    fs::set_permissions(&read_only, fs::Permissions::from_mode(0o555)).unwrap();
    assert!(!build(&cache, &SOURCE, VERSION).0, "what is there is read");
    fs::set_permissions(&read_only, fs::Permissions::from_mode(0o755)).unwrap();
}

const CHILD: &str = "TAKT_TEST_CACHE_CHILD";

/// Damages and builds the same file over and over; also the body of the second process below.
fn damage_and_build(folder: &Path) {
    let cache = Cache::new(folder);
    let path = folder.join(file_name(&SOURCE, Target::Orin, VERSION));
    for turn in 0..100 {
        if turn % 3 == 0 {
            drop(fs::remove_file(&path));
        }
        build(&cache, &SOURCE, VERSION);
        assert!(fs::read(&path).map_or(true, |bytes| bytes.len() == CUBIN.len() + SEAL_LEN));
    }
}

#[test]
fn two_processes_at_once_see_whole_files_only() {
    if let Some(folder) = env::var_os(CHILD) {
        return damage_and_build(Path::new(&folder));
    }
    let folder = tempfile::tempdir().unwrap();
    let name = "cache::tests::two_processes_at_once_see_whole_files_only";
    let mut child = Command::new(env::current_exe().unwrap());
    let mut child = child.args(["--exact", name]).env(CHILD, folder.path()).spawn().unwrap();
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| damage_and_build(folder.path()));
        }
    });
    assert!(child.wait().unwrap().success());
}
