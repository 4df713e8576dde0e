//! The zoo: text tasks whose answers a program can check, and the trainer of the built-in models.
//!
//! | module | holds |
//! |---|---|
//! | [`tasks`] | problems, drawn from a seed, and their checkers |

pub mod tasks;
