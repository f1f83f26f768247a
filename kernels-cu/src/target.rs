//! The boards kernels are compiled for.
