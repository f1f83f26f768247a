//! A plan becomes executions that are put into a stream.
//!
//! | module | concept |
//! |---|---|
//! | `plan` | a plan in device memory: what goes in and comes out, its profiles, memory and weights |
//! | `refit` | weights that a plan is given, and the plan with them |
//! | `execution` | a plan in one profile, with its memory and shapes |
//!
//! Architecture invariant: an execution holds its plan, and a plan the runtime and the CUDA context it was loaded in, so that they are destroyed in
//! the order TensorRT asks for; the context is made current before every call, destructors too. What lives in a lost context is left to go with it.

mod execution;
mod plan;
mod refit;

pub use execution::Execution;
pub use plan::Plan;
pub use refit::Weights;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plans_and_executions_move_to_a_worker_thread() {
        fn moves<T: Send>() {}
        moves::<Plan>();
        moves::<Execution>();
        moves::<crate::TensorRt>();
    }
}
