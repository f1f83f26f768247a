//! What the real library leaves undefined when it is used wrongly, and the stand-in finds: so that a test that uses it rightly shows so.

use std::sync::{Arc, Barrier, Condvar, Mutex};

use takt_kernels_cu::driver::stream::Stream;
use takt_tensorrt::{build::PlanFlags, runtime::Execution};

use crate::bench::{Bench, Memory, on_device, profiles};

/// An execution that can be enqueued.
fn ready(bench: &Bench, memory: &Memory, plan: &takt_tensorrt::runtime::Plan) -> Execution {
    let mut execution = memory.bind(bench, plan, 1).unwrap();
    execution.set_shape("ids", &[1, 1]).unwrap();
    execution.set_shape("past", &[1, 2, 8, 16]).unwrap();
    execution
}

#[test]
fn scratch_memory_of_two_executions_that_run_together() {
    on_device("faults::scratch_memory_of_two_executions_that_run_together", |bench| {
        let together = Barrier::new(2);
        bench.standin.set_executor(move |_, _| {
            together.wait();
            Ok(())
        });
        let plan = bench.plan(PlanFlags::default(), &profiles());
        let (memory, other) = (Memory::new(bench), Stream::new(&bench.context).unwrap());
        bench.stream.synchronize().unwrap();
        let (mut first, mut second) = (ready(bench, &memory, &plan), ready(bench, &memory, &plan));
        first.enqueue(&bench.stream).unwrap();
        second.enqueue(&other).unwrap();
        bench.stream.synchronize().unwrap();
        other.synchronize().unwrap();
        let faults = bench.standin.faults();
        let [fault] = &faults[..] else { panic!("{faults:?}") };
        assert!(fault.ends_with("ran while another execution had the same scratch memory"), "{fault}");
    });
}

#[test]
fn a_capture_of_the_first_run_with_new_shapes() {
    on_device("faults::a_capture_of_the_first_run_with_new_shapes", |bench| {
        let plan = bench.plan(PlanFlags::default(), &profiles());
        let memory = Memory::new(bench);
        let mut execution = ready(bench, &memory, &plan);
        let capture = |execution: &mut Execution| {
            let mut error = String::new();
            let graph = bench.stream.capture(|stream| {
                error = execution.enqueue(stream).map_or_else(|error| error.to_string(), |()| String::new());
                Ok(())
            });
            drop(graph);
            error
        };
        let refused = capture(&mut execution);
        assert!(refused.contains("the first run with new shapes cannot be captured"), "{refused}");
        execution.enqueue(&bench.stream).unwrap();
        bench.stream.synchronize().unwrap();
        assert_eq!(capture(&mut execution), "");
        execution.set_shape("ids", &[1, 1]).unwrap();
        assert_eq!(capture(&mut execution), "", "the same shape");
        execution.set_shape("ids", &[2, 1]).unwrap();
        execution.set_shape("past", &[2, 2, 8, 16]).unwrap();
        assert_ne!(capture(&mut execution), "");
    });
}

#[test]
fn an_execution_that_is_destroyed_before_its_work_is_done() {
    on_device("faults::an_execution_that_is_destroyed_before_its_work_is_done", |bench| {
        let gate = Arc::new((Mutex::new(false), Condvar::new()));
        let inner = Arc::clone(&gate);
        bench.standin.set_executor(move |_, _| {
            let is_open = inner.0.lock().unwrap();
            drop(inner.1.wait_while(is_open, |is_open| !*is_open).unwrap());
            Ok(())
        });
        let plan = bench.plan(PlanFlags::default(), &profiles());
        let memory = Memory::new(bench);
        let (mut first, mut second) = (ready(bench, &memory, &plan), ready(bench, &memory, &plan));
        first.enqueue(&bench.stream).unwrap();
        second.enqueue(&bench.stream).unwrap();
        drop(second);
        *gate.0.lock().unwrap() = true;
        gate.1.notify_all();
        bench.stream.synchronize().unwrap();
        assert_eq!(
            bench.standin.faults(),
            ["IExecutionContext#2 was destroyed before what it had enqueued ran"]
        );
    });
}
