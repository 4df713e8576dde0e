//! What every request passes before its handler.

pub(crate) mod auth;
pub mod host_guard;
pub(crate) mod observe;
