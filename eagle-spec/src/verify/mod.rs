//! What is accepted of a tree, so that the output is the target's own: *choose, then match*.

mod walk;

#[cfg(test)]
mod tests;

pub use walk::walk;
