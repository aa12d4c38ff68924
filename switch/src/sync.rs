//! What threads share: the standard library's types or, with `--cfg loom`, those of a model checker, which runs a test in every
//! order that the memory model allows.

#[cfg(loom)]
pub(crate) use weft_model::{AtomicU32, AtomicU64, AtomicUsize, Mutex, MutexGuard};

#[cfg(not(loom))]
pub(crate) use std::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicU32, AtomicU64, AtomicUsize},
};
