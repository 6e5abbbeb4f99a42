//! The testing house of Berm: what is tested against a real containerd is tested from here.
//!
//! It trusts nothing that it drives, and owns what it starts: a [`node::Node`] is a machine of
//! its own (mount, network, IPC and cgroup namespaces below one keeper process), on which containerd
//! 2.3 runs with its default paths. On it a [`suite`] runs the pods of `test-pods/`, which are
//! data, on Berm, runc or crun, and after each a guard looks for what was left behind.
//! No other crate may depend on this one but for its tests.
#![forbid(unsafe_code)]

pub mod bench;
pub mod cases;
mod cgroups;
pub mod chaos;
pub mod command;
mod cpus;
pub mod cri;
pub mod critest;
pub mod crowd;
pub mod deny;
pub mod error;
pub mod flood;
pub mod guard;
pub mod guest;
pub mod image;
pub mod keeper;
pub mod metrics;
pub mod mounts;
pub mod neighbours;
pub mod node;
pub mod peers;
pub mod process;
mod readme;
pub mod registry;
pub mod shimclient;
pub mod suite;
mod tar;
pub mod total;
pub mod tour;
