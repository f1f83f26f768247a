//! Every kernel for every target: compiled, and its registers, memory and instructions looked at.

mod check;
mod expected;
mod sass;
mod table;

use std::{
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use anyhow::{Context, bail};
use clap::Args;
use takt_kernels_cu::{
    BuildError, Target,
    cache::Cache,
    compiler::Compiler,
    image::Image,
    source::{self, Source},
};

use crate::{cuda_root, target_folder};
use sass::Instructions;

/// What to compile, and with what.
#[derive(Args)]
pub struct Options {
    #[command(flatten)]
    cuda: cuda_root::Compiler,
    /// Only this target: sm_87, sm_90a, sm_110a, sm_120a
    #[arg(long)]
    target: Option<Target>,
    /// Only this source, by the name of its file without .cu
    #[arg(long)]
    source: Option<String>,
    /// Also prints the instructions of kernels whose name begins so, and how often each stands there
    #[arg(long, value_name = "KERNEL")]
    instructions: Option<String>,
    /// Compilations at a time
    #[arg(long, default_value_t = default_jobs())]
    jobs: usize,
    /// Where cubins are kept; those that are there are not compiled again
    #[arg(long)]
    cache: Option<PathBuf>,
}

/// A source compiled for a target, and disassembled.
pub struct Built {
    pub source: &'static Source,
    pub image: Image,
    pub instructions: Instructions,
}

/// Compiles, prints a table, and fails if anything is not as it should be.
pub fn run(options: &Options) -> anyhow::Result<()> {
    let compiler = Compiler::open(&options.cuda.folder()?)?;
    let tools = cuda_root::tools()?;
    let cache = Cache::new(options.cache.clone().unwrap_or_else(default_cache));
    let work = options.work(&compiler)?;
    eprintln!("NVRTC {}, {} cubins", compiler.version(), work.len());

    let done = in_parallel(options.jobs, &work, |&(source, target)| -> anyhow::Result<Built> {
        let image = build(&compiler, &cache, source, target)?;
        let instructions = sass::disassemble(&tools, &image)?;
        check::same_figures(&tools, &image)?;
        Ok(Built { source, image, instructions })
    });
    let (mut built, mut faults) = (Vec::new(), Vec::new());
    for result in done {
        match result {
            Ok(one) => built.push(one),
            Err(error) => faults.push(format!("{error:#}")),
        }
    }
    table::print(&built);
    if let Some(prefix) = &options.instructions {
        table::print_instructions(&built, prefix);
    }
    faults.extend(built.iter().flat_map(check::faults));
    faults.extend(check::duplicate_names(&built));
    // A part of the kernels cannot be asked whether some kernel is missing.
    let whole = options.target.is_none() && options.source.is_none() && faults.is_empty();
    faults.extend(expected::faults(&built, whole));
    report(&faults)
}

/// Compiles everything for `target`, without looking at it.
pub fn compile_for(cuda_root: &Path, target: Target) -> anyhow::Result<()> {
    let compiler = Compiler::open(cuda_root)?;
    let cache = Cache::new(default_cache());
    let work: Vec<&'static Source> = source::all().collect();
    let done = in_parallel(default_jobs(), &work, |source| build(&compiler, &cache, source, target));
    done.into_iter().try_for_each(|result| result.map(drop))
}

fn default_cache() -> PathBuf {
    target_folder().join("cuda/cubins")
}

fn default_jobs() -> usize {
    thread::available_parallelism().map_or(1, |cores| cores.get())
}

impl Options {
    /// Every source for every target the compiler knows, restricted as asked.
    fn work(&self, compiler: &Compiler) -> anyhow::Result<Vec<(&'static Source, Target)>> {
        let targets: Vec<Target> = match self.target {
            Some(target) if !compiler.knows(target) => {
                return Err(BuildError::UnknownTarget { version: compiler.version(), target }.into());
            }
            Some(target) => vec![target],
            None => Target::ALL.into_iter().filter(|&target| compiler.knows(target)).collect(),
        };
        let is_asked = |source: &&Source| self.source.as_ref().is_none_or(|name| source.name == name);
        let sources: Vec<_> = source::all().filter(is_asked).collect();
        if sources.is_empty() {
            let names: Vec<_> = source::all().map(|source| source.name).collect();
            bail!("no source of that name; there are {}", names.join(", "));
        }
        Ok(sources.iter().flat_map(|&source| targets.iter().map(move |&target| (source, target))).collect())
    }
}

/// The cubin from the cache, or compiled. One with warnings is an error, and is not kept.
fn build(
    compiler: &Compiler,
    cache: &Cache,
    source: &'static Source,
    target: Target,
) -> anyhow::Result<Image> {
    if let Some(image) = cache.load(source, target, compiler.version()) {
        return Ok(image);
    }
    eprintln!("compiling {}.cu for {target}", source.name);
    let compiled = compiler.compile(source, target)?;
    if !compiled.warnings.is_empty() {
        bail!("{}.cu for {target}: {}", source.name, compiled.warnings);
    }
    match cache.store(source, compiler.version(), &compiled.image) {
        Ok(()) | Err(BuildError::Io { .. }) => Ok(compiled.image),
        Err(error) => Err(error).context(source.name),
    }
}

/// `task` of every item on `jobs` threads; results in the order of the items.
fn in_parallel<I: Sync, R: Send>(jobs: usize, items: &[I], task: impl Fn(&I) -> R + Sync) -> Vec<R> {
    let next = AtomicUsize::new(0);
    let results: Mutex<Vec<(usize, R)>> = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..jobs.clamp(1, items.len().max(1)) {
            scope.spawn(|| {
                loop {
                    let idx = next.fetch_add(1, Ordering::Relaxed);
                    let Some(item) = items.get(idx) else { break };
                    let result = task(item);
                    results.lock().unwrap_or_else(PoisonError::into_inner).push((idx, result));
                }
            });
        }
    });
    let mut results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
    results.sort_by_key(|&(idx, _)| idx);
    results.into_iter().map(|(_, result)| result).collect()
}

fn report(faults: &[String]) -> anyhow::Result<()> {
    if faults.is_empty() {
        println!("no spills, no local memory, every expected instruction is there");
        return Ok(());
    }
    for fault in faults {
        println!("error: {fault}");
    }
    bail!("{} faults", faults.len());
}
