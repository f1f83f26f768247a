//! Python packages as archives of files: fetched with pip, installed into a folder of their own.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{self, Command},
};

use anyhow::{Context, bail};

/// One package of PyPI, pinned.
pub struct Package {
    pub name: &'static str,
    pub version: &'static str,
    /// Of the download.
    pub megabytes: u32,
}

/// The folder `name` of `parent` with `packages` installed in it, and arranged by `arrange`; made if it is not there. It appears whole or
/// not at all.
pub fn installed(
    parent: &Path,
    name: &str,
    packages: &[Package],
    arrange: impl FnOnce(&Path) -> anyhow::Result<()>,
) -> anyhow::Result<PathBuf> {
    let folder = parent.join(name);
    if folder.is_dir() {
        return Ok(folder);
    }
    fs::create_dir_all(parent).with_context(|| parent.display().to_string())?;
    let temporary = parent.join(format!(".{name}.{}", process::id()));
    let made = install(parent, &temporary, packages).and_then(|()| arrange(&temporary));
    if let Err(error) = made {
        // What is left of it is of no use; the error says more than a failure to remove it.
        drop(fs::remove_dir_all(&temporary));
        return Err(error);
    }
    match fs::rename(&temporary, &folder) {
        Err(_) if folder.is_dir() => fs::remove_dir_all(&temporary)?,
        renamed => renamed.with_context(|| folder.display().to_string())?,
    }
    Ok(folder)
}

fn install(parent: &Path, folder: &Path, packages: &[Package]) -> anyhow::Result<()> {
    let python = virtual_environment(&parent.join("venv"))?;
    let mut pip = Command::new(&python);
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--only-binary", ":all:"]);
    pip.args(["--no-deps", "--no-compile", "--target"]).arg(folder);
    // One call: a second would not add to folders that the first one made.
    for package in packages {
        eprintln!("fetching {} {} ({} MB)", package.name, package.version, package.megabytes);
        pip.arg(format!("{}=={}", package.name, package.version));
    }
    run(&mut pip)
}

/// The interpreter of a virtual environment in `folder`: the system's own pip may be missing, or refuse.
fn virtual_environment(folder: &Path) -> anyhow::Result<PathBuf> {
    let python = folder.join("bin/python");
    if !folder.join("bin/pip").is_file() {
        run(Command::new("python3").args(["-m", "venv"]).arg(folder))
            .context("Python 3.9 or newer with venv is needed (Debian: apt install python3-venv)")?;
    }
    Ok(python)
}

/// Runs a command whose output is not of interest unless it fails: then pip has said why.
fn run(command: &mut Command) -> anyhow::Result<()> {
    let status = command.stdout(process::Stdio::null()).status();
    let status = status.with_context(|| command.get_program().display().to_string())?;
    if !status.success() {
        bail!("{} {}: {status}", command.get_program().display(), last_argument(command));
    }
    Ok(())
}

fn last_argument(command: &Command) -> String {
    command.get_args().last().map(|argument| argument.display().to_string()).unwrap_or_default()
}
