//! The whole command against a scripted server.
