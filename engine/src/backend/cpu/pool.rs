//! Persistent worker threads: a job is a number of tasks in a row. Each thread has its share of them, next to each other, and whoever is done
//! takes half of what another has left.
#![expect(
    unsafe_code,
    reason = "workers borrow the caller's closure for the time of one call, which lifetimes cannot express"
)]

use std::{
    any::Any,
    cell::UnsafeCell,
    hint, mem,
    ops::Range,
    panic::{self, AssertUnwindSafe},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use crate::{EngineError, Result};

/// How long a thread looks for work before it sleeps: longer than the serial work between two matrices of a decode step, short
/// enough not to heat an idle robot. Waking a thread costs tens of microseconds in a virtual machine.
const SPIN: Duration = Duration::from_micros(50);
/// Looks between two readings of the clock: a `pause` takes from a few to 140 cycles, so counting them alone says little.
const LOOKS_PER_READING: u32 = 32;
/// Most threads of one pool; the gate counts them in 16 bits.
const MAX_THREADS: usize = 1 << 10;

/// Gate bits `[0, 16)`: workers inside the current job.
const INSIDE: u64 = 0xffff;
/// Gate bit 16: the job accepts workers.
const OPEN: u64 = 1 << 16;
/// Gate bits `[17, 64)`: the job's number.
const NEXT_JOB: u64 = 1 << 17;

/// The calling thread's share.
const CALLER: usize = 0;

type Task = dyn Fn(usize) + Sync;

/// Threads that share the tasks of one job at a time. The calling thread works too, so `num_threads` counts it.
///
/// A call allocates nothing and waits only for workers that entered the job: a worker that the system has not
/// scheduled in time is left out instead of being waited for.
pub struct ThreadPool {
    shared: Arc<Shared>,
    /// Held during a job; a second caller, or a task that calls [`ThreadPool::run`], runs its tasks itself.
    caller: Mutex<()>,
    workers: Vec<JoinHandle<()>>,
}

struct Shared {
    gate: AtomicU64,
    job: UnsafeCell<Job>,
    /// What is left of each thread's share, the caller's first.
    shares: Vec<Share>,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    stopping: AtomicBool,
    sleep: Mutex<()>,
    num_sleeping: AtomicUsize,
    wake: Condvar,
    caller_waits: AtomicBool,
    done: Condvar,
}

#[derive(Clone, Copy)]
struct Job {
    task: *const Task,
}

/// A range of tasks that nobody has begun: its owner takes from the front, others from the back.
///
/// Tasks next to each other are matrix rows next to each other: a thread that goes on where it was has asked for their weights already. While
/// tasks were handed out in turn, what it had asked for was the other thread's (decoding took 1.07 to 1.09 times as long, AMD EPYC, 2 cores; 2026-11-22).
#[repr(align(64))]
struct Share(AtomicU64);

impl Share {
    fn put(&self, tasks: Range<usize>) {
        self.0.store(Self::pack(tasks.start as u64, tasks.end as u64), Ordering::Relaxed);
    }

    /// The first task.
    fn pop(&self) -> Option<usize> {
        let pop =
            |(start, end): (u64, u64)| (start < end).then(|| (Self::pack(start + 1, end), start as usize));
        self.update(pop)
    }

    /// The later half of the tasks, the larger one.
    fn split(&self) -> Option<Range<usize>> {
        let split = |(start, end): (u64, u64)| {
            let middle = start + (end.checked_sub(start)?) / 2;
            (start < end).then(|| (Self::pack(start, middle), middle as usize..end as usize))
        };
        self.update(split)
    }

    /// Replaces the packed range by the first part of what `change` makes of it and returns the second. A range says all about the tasks it
    /// stands for, so that one which went and came again does no harm.
    fn update<T>(&self, change: impl Fn((u64, u64)) -> Option<(u64, T)>) -> Option<T> {
        let mut found = self.0.load(Ordering::Relaxed);
        loop {
            let (left, taken) = change((found >> 32, found & 0xffff_ffff))?;
            match self.0.compare_exchange_weak(found, left, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Some(taken),
                Err(now) => found = now,
            }
        }
    }

    fn pack(start: u64, end: u64) -> u64 {
        start << 32 | end
    }
}

// SAFETY: `job` is written only by the caller that holds `ThreadPool::caller`, while the gate is closed and nobody is
// inside; workers read it only between entering the open gate and leaving it. Everything else is atomic or locked.
unsafe impl Sync for Shared {}
// SAFETY: the raw pointer in `job` is only dereferenced under the protocol above, on any thread; `Task` is `Sync`.
unsafe impl Send for Shared {}

impl ThreadPool {
    /// A pool of `num_threads` threads, the caller's included: `num_threads - 1` workers start now and sleep.
    ///
    /// # Errors
    /// [`EngineError::Input`] for 0 or more than 1024 threads; [`EngineError::Backend`] when the system refuses a thread.
    pub fn new(num_threads: usize) -> Result<Self> {
        if num_threads == 0 || num_threads > MAX_THREADS {
            return Err(EngineError::Input(format!(
                "{num_threads} threads asked, expected 1..={MAX_THREADS}"
            )));
        }
        let shared = Arc::new(Shared::new(num_threads));
        let mut pool = Self { shared, caller: Mutex::new(()), workers: Vec::with_capacity(num_threads - 1) };
        for worker_idx in 1..num_threads {
            let shared = Arc::clone(&pool.shared);
            let worker = thread::Builder::new()
                .name(format!("takt-cpu-{worker_idx}"))
                .spawn(move || shared.work(worker_idx))
                .map_err(|e| {
                    EngineError::Backend(format!("cannot start thread {worker_idx} of {num_threads}: {e}"))
                })?;
            pool.workers.push(worker);
        }
        Ok(pool)
    }

    /// Threads that share a job, the caller's included.
    #[must_use]
    pub fn num_threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `task(0)`, …, `task(num_tasks - 1)`, each once, in any order and on any thread, and returns when all are done.
    ///
    /// # Panics
    /// With the payload of a task that panicked, after every thread has left the job; the pool stays usable.
    pub fn run(&self, num_tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        let alone = self.workers.is_empty() || num_tasks <= 1;
        let Some(_caller) = (if alone { None } else { self.try_become_caller() }) else {
            (0..num_tasks).for_each(task);
            return;
        };
        // SAFETY: only the lifetime is erased; `close` below returns after the last worker has left the job, so no
        // worker uses the pointer once this call has returned.
        let task_ptr = unsafe { mem::transmute::<*const (dyn Fn(usize) + Sync + '_), *const Task>(task) };
        self.shared.open(Job { task: task_ptr }, num_tasks);
        let own = panic::catch_unwind(AssertUnwindSafe(|| self.shared.take_tasks(CALLER, task)));
        if own.is_err() {
            self.shared.drop_tasks();
        }
        self.shared.close();
        let theirs = lock(&self.shared.panic).take();
        if let Some(payload) = own.err().or(theirs) {
            panic::resume_unwind(payload);
        }
    }

    fn try_become_caller(&self) -> Option<MutexGuard<'_, ()>> {
        match self.caller.try_lock() {
            Ok(guard) => Some(guard),
            // A task panicked during an earlier call; the lock guards no data.
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }
}

impl Drop for ThreadPool {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        self.shared.wake_sleepers();
        for worker in self.workers.drain(..) {
            // A worker never panics outside a task, and tasks are caught.
            let _ = worker.join();
        }
    }
}

impl std::fmt::Debug for ThreadPool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ThreadPool").field("num_threads", &self.num_threads()).finish_non_exhaustive()
    }
}

impl Shared {
    fn new(num_threads: usize) -> Self {
        Self {
            gate: AtomicU64::new(0),
            job: UnsafeCell::new(Job { task: &|_| () }),
            shares: (0..num_threads).map(|_| Share(AtomicU64::new(0))).collect(),
            panic: Mutex::new(None),
            stopping: AtomicBool::new(false),
            sleep: Mutex::new(()),
            num_sleeping: AtomicUsize::new(0),
            wake: Condvar::new(),
            caller_waits: AtomicBool::new(false),
            done: Condvar::new(),
        }
    }

    fn open(&self, job: Job, num_tasks: usize) {
        // SAFETY: the gate is closed with nobody inside since the last `close`, so no worker reads `job` now.
        unsafe { *self.job.get() = job };
        let num_shares = self.shares.len();
        for (idx, share) in self.shares.iter().enumerate() {
            share.put(idx * num_tasks / num_shares..(idx + 1) * num_tasks / num_shares);
        }
        // SYNC POINT: publishes `job` and the shares; SeqCst orders it against `num_sleeping` in `wake_sleepers` and `sleep_until_open`.
        self.gate.fetch_add(NEXT_JOB | OPEN, Ordering::SeqCst);
        self.wake_sleepers();
    }

    /// Lets no further worker in and waits until the last one has left.
    fn close(&self) {
        self.gate.fetch_and(!OPEN, Ordering::SeqCst);
        let is_empty = || self.gate.load(Ordering::SeqCst) & INSIDE == 0;
        if spin_until(is_empty) {
            return;
        }
        let mut guard = lock(&self.sleep);
        self.caller_waits.store(true, Ordering::SeqCst);
        while !is_empty() {
            guard = self.done.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
        self.caller_waits.store(false, Ordering::SeqCst);
    }

    /// Runs the tasks of the thread's own share, then of what it takes from the others'.
    fn take_tasks(&self, thread_idx: usize, task: &(dyn Fn(usize) + Sync)) {
        let own = &self.shares[thread_idx];
        loop {
            while let Some(task_idx) = own.pop() {
                task(task_idx);
            }
            let others = (1..self.shares.len()).map(|step| (thread_idx + step) % self.shares.len());
            let Some(taken) = others.filter_map(|idx| self.shares[idx].split()).next() else { return };
            own.put(taken);
        }
    }

    /// After a panic: what has not begun need not.
    fn drop_tasks(&self) {
        for share in &self.shares {
            share.put(0..0);
        }
    }

    /// A worker's life: wait for an open job it has not been in, enter, take tasks, leave.
    fn work(&self, thread_idx: usize) {
        let mut last_job = 0;
        loop {
            let is_new = |gate: u64| gate & OPEN != 0 && gate / NEXT_JOB != last_job;
            let has_work =
                || is_new(self.gate.load(Ordering::SeqCst)) || self.stopping.load(Ordering::SeqCst);
            if !spin_until(has_work) {
                self.sleep_until(has_work);
            }
            if self.stopping.load(Ordering::SeqCst) {
                return;
            }
            let gate = self.gate.load(Ordering::SeqCst);
            // SYNC POINT: entering (a successful exchange on an open gate) makes `job` readable until leaving.
            let entered = is_new(gate)
                && self.gate.compare_exchange(gate, gate + 1, Ordering::SeqCst, Ordering::SeqCst).is_ok();
            if entered {
                last_job = gate / NEXT_JOB;
                self.work_inside(thread_idx);
                self.leave();
            }
        }
    }

    fn work_inside(&self, thread_idx: usize) {
        // SAFETY: this worker is inside an open job, so the caller neither writes `job` nor returns before `leave`.
        let task = unsafe { &*(*self.job.get()).task };
        if let Err(payload) = panic::catch_unwind(AssertUnwindSafe(|| self.take_tasks(thread_idx, task))) {
            self.drop_tasks();
            lock(&self.panic).get_or_insert(payload);
        }
    }

    fn leave(&self) {
        let left = self.gate.fetch_sub(1, Ordering::SeqCst) - 1;
        if left & (INSIDE | OPEN) == 0 && self.caller_waits.load(Ordering::SeqCst) {
            let _guard = lock(&self.sleep);
            self.done.notify_one();
        }
    }

    fn sleep_until(&self, condition: impl Fn() -> bool) {
        let mut guard = lock(&self.sleep);
        self.num_sleeping.fetch_add(1, Ordering::SeqCst);
        while !condition() {
            guard = self.wake.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
        self.num_sleeping.fetch_sub(1, Ordering::SeqCst);
    }

    fn wake_sleepers(&self) {
        if self.num_sleeping.load(Ordering::SeqCst) > 0 {
            let _guard = lock(&self.sleep);
            self.wake.notify_all();
        }
    }
}

/// Whether `condition` came true before it was time to sleep.
fn spin_until(condition: impl Fn() -> bool) -> bool {
    let mut start = None;
    loop {
        for _ in 0..LOOKS_PER_READING {
            if condition() {
                return true;
            }
            hint::spin_loop();
        }
        if start.get_or_insert_with(Instant::now).elapsed() >= SPIN {
            return condition();
        }
    }
}

/// The locks guard no data that a panic could leave half-written.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_exactly_once_for_any_number_of_threads_and_tasks() {
        for num_threads in [1, 2, 3, 8] {
            let pool = ThreadPool::new(num_threads).unwrap();
            for num_tasks in [0, 1, 2, 7, 100, 1000] {
                let counts: Vec<_> = (0..num_tasks).map(|_| AtomicUsize::new(0)).collect();
                pool.run(num_tasks, &|task_idx| {
                    counts[task_idx].fetch_add(1, Ordering::Relaxed);
                });
                assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 1));
            }
        }
    }

    #[test]
    fn thousands_of_short_jobs_lose_no_task() {
        let pool = ThreadPool::new(4).unwrap();
        let sum = AtomicUsize::new(0);
        for _ in 0..5_000 {
            pool.run(5, &|task_idx| {
                sum.fetch_add(task_idx, Ordering::Relaxed);
            });
        }
        assert_eq!(sum.into_inner(), 5_000 * 10);
    }

    #[test]
    fn tasks_behind_one_that_takes_long_are_taken_by_another_thread() {
        let pool = ThreadPool::new(2).unwrap();
        for long_idx in [0, 3, 7] {
            let num_done = AtomicUsize::new(0);
            pool.run(8, &|task_idx| {
                let start = Instant::now();
                while task_idx == long_idx && num_done.load(Ordering::SeqCst) < 7 {
                    assert!(start.elapsed() < Duration::from_secs(60), "tasks wait for a busy thread");
                    thread::yield_now();
                }
                num_done.fetch_add(1, Ordering::SeqCst);
            });
        }
    }

    #[test]
    fn a_panicking_task_reaches_the_caller_and_leaves_the_pool_usable() {
        for num_threads in [1, 3] {
            let pool = ThreadPool::new(num_threads).unwrap();
            for bad_idx in [0, 5, 49] {
                let run = || pool.run(50, &|task_idx| assert_ne!(task_idx, bad_idx, "task failed"));
                assert!(panic::catch_unwind(AssertUnwindSafe(run)).is_err());
            }
            let count = AtomicUsize::new(0);
            pool.run(50, &|_| {
                count.fetch_add(1, Ordering::Relaxed);
            });
            assert_eq!(count.into_inner(), 50);
        }
    }

    #[test]
    fn a_task_may_run_a_nested_job() {
        let pool = ThreadPool::new(3).unwrap();
        let count = AtomicUsize::new(0);
        pool.run(4, &|_| {
            pool.run(4, &|_| {
                count.fetch_add(1, Ordering::Relaxed);
            });
        });
        assert_eq!(count.into_inner(), 16);
    }

    #[test]
    fn two_callers_of_one_pool_both_get_their_tasks_done() {
        let pool = ThreadPool::new(3).unwrap();
        let count = AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    for _ in 0..500 {
                        pool.run(8, &|_| {
                            count.fetch_add(1, Ordering::Relaxed);
                        });
                    }
                });
            }
        });
        assert_eq!(count.into_inner(), 8_000);
    }

    #[test]
    fn zero_threads_are_refused() {
        assert!(ThreadPool::new(0).unwrap_err().to_string().contains("0 threads"));
    }
}
