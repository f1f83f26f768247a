//! Cubins on disk.
