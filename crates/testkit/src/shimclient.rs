//! Drives a shim binary as containerd 2.3 does, without containerd.
//!
//! A [`Node`] stands for containerd's side: state directory, namespace, the event endpoint, a
//! cgroup of its own. A [`Bundle`] is a container's directory; [`Shim::start`] runs the binary
//! there and connects; [`Task`] speaks the Task API, v3 or v2 as the shim answered. [`Pod`] and
//! [`Container`] do with real CRI specs what containerd's CRI plugin does with them.
//!
//! ```no_run
//! # async fn pod() -> Result<(), berm_testkit::shimclient::Error> {
//! use berm_testkit::shimclient::{Image, Node, Pod, ShimBinary};
//!
//! let node = Node::new("example").await?;
//! let image = Image::busybox(&node)?;
//! let binary = ShimBinary::new("/usr/local/bin/containerd-shim-berm-v1");
//! let mut pod = Pod::prepare(&node, &binary, &image)?;
//! pod.start_shim().await?;
//! pod.run().await?;
//! let mut app = pod.prepare_container(&image, &["/bin/sleep", "infinity"]).await?;
//! app.start().await?;
//! assert_eq!(app.exec("e1", &["/bin/true"]).await?.status, 0);
//! pod.stop(vec![app]).await
//! # }
//! ```
//!
//! Everything that a node made (processes, mounts, network namespaces, cgroups, files) is gone
//! when it is dropped, whatever state it was in. Orphans come back to this process, which makes
//! itself a child subreaper. No unsafe code, no thread: one tokio `current_thread` runtime.

mod answer;
mod binary;
mod bundle;
mod cgroup;
mod container;
mod error;
mod events;
mod image;
mod netns;
mod node;
mod pod;
mod processes;
mod program;
mod scratch;
mod shim;
mod spec;
mod stdio;
mod task;

pub use answer::{Answer, Generation, parse_answer};
pub use binary::ShimBinary;
pub use bundle::Bundle;
pub use cgroup::CgroupParent;
pub use container::{Container, ExecOutput};
pub use error::Error;
pub use events::{Body, Event, Events};
pub use image::{Image, Snapshot};
pub use netns::Netns;
pub use node::Node;
pub use pod::Pod;
pub use processes::Process;
pub use program::write_program;
pub use scratch::ScratchDir;
pub use shim::Shim;
pub use spec::{PodFiles, container_spec, sandbox_spec};
pub use stdio::{Fifos, Stdio};
pub use task::{CreateTask, Exit, Task};

/// The type of options, resources and process specs on the wire.
pub use containerd_shim_protos::protobuf::well_known_types::any::Any;
/// A mount of a container's rootfs, as containerd sends it in `Create`.
pub use containerd_shim_protos::types::mount::Mount;
