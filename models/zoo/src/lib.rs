//! The zoo: text tasks whose answers a program can check, and the trainer of the built-in models.
//!
//! | module | holds |
//! |---|---|
//! | [`tasks`] | problems, drawn from a seed, and their checkers |
//! | [`text`] | the tokenizer, trained on the tasks, and the chat format |
//! | [`lab`] | ways to mix rows against each other on small problems |
//! | [`net`] | the network with gradients, over packed rows |
//! | [`train`] | the training loop and its recipes |
//! | [`plan`] | how each built-in model was trained |
//! | [`export`] | a network as a model folder |

mod error;
pub mod export;
pub mod lab;
pub mod net;
mod optim;
pub mod plan;
pub mod tasks;
pub mod text;
pub mod train;

pub use error::ZooError;
pub use net::{Mixer, Net, Rows, Shape};
pub use optim::Optimizer;
pub use text::Text;
