//! Chores of this repository: `cargo run -p xtask -- kernels`.

fn main() {}
