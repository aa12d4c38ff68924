//! What threads share, and what the guest shares with them: ordinary types or, with `--cfg loom`, those of a model checker, which runs
//! a test in every order that the memory model allows.

#[cfg(loom)]
pub(crate) use weft_model::{AtomicU16, AtomicU64, Parker, Unparker, fence};

#[cfg(not(loom))]
pub(crate) use {
    crossbeam::sync::{Parker, Unparker},
    std::sync::atomic::{AtomicU16, AtomicU64, fence},
};
