//! The CPU emulator of the kernels and its loader.
