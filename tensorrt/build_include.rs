//! Folders of headers that a compiler is not told of. Part of the build script, and of the crate's tests.

use std::path::Path;

/// The folder that compilers search by themselves, behind the C++ library's own.
const SYSTEM: &str = "/usr/include";

/// Whether `folder` is `/usr/include` by any name. With `-isystem` it would come before the C++ library's headers, which find C's by `#include_next`:
/// `<cstdlib>` then has no `stdlib.h`.
pub fn is_searched_last(folder: &Path) -> bool {
    let system = Path::new(SYSTEM);
    folder == system || folder.canonicalize().is_ok_and(|folder| folder == system)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_systems_folder_is_known_by_any_name_and_no_other_is() {
        for name in ["/usr/include", "/usr/include/", "/usr/./include", "/usr/bin/../include"] {
            assert!(is_searched_last(Path::new(name)), "{name}");
        }
        let folder = tempfile::tempdir().unwrap();
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(SYSTEM, &link).unwrap();
        assert!(is_searched_last(&link));
        for name in
            [folder.path(), Path::new("/usr"), Path::new("/usr/include/nowhere"), Path::new("/nowhere")]
        {
            assert!(!is_searched_last(name), "{}", name.display());
        }
    }
}
