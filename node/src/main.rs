//! The binary `takt`.

fn main() {}
