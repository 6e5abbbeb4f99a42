//! The wire between real sockets.
#![allow(clippy::unwrap_used, clippy::expect_used)] // a test that cannot go on has failed

mod client;
mod fixture;
mod server;
mod socket;
