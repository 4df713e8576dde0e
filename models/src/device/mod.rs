//! Models on a device: the same families as on the processor, from the same config and the same files.
//!
//! | module | holds |
//! |---|---|
//! | `transformer` | the model: weights, a pass, scores |
//! | `layer` | what a layer gives to the device |
//! | `room` | everything a pass needs beside the weights, allocated once |
//! | `recordings` | passes that are replayed as a graph |
//!
//! # A pass
//!
//! The launches of a pass follow from the shape of its batch alone (rows, tiles of attention, scored rows). Tokens,
//! positions, page tables and the parameters of sampling are written to arrays before. So a shape that comes again is
//! replayed as one graph, and what the host does while the device works is to prepare the queries of the scores. One
//! small record a scored row comes back.
//!
//! The residual stream and all sums are f32; inputs of matrix products, queries, keys and values are in the 16-bit type
//! of the model ([`Precision`](crate::Precision)); systems of local linear attention are solved in f32. The order of every sum depends on the shape of the weights and on
//! positions, never on the number of rows: a row has the same bits whatever else is in the batch.

mod layer;
mod recordings;
mod room;
mod transformer;

pub use transformer::DeviceTransformer;
