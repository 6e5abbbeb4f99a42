//! Who is measured.

use std::path::Path;

use super::{Args, Bed, Error, Other};
use crate::peers::Peers;
use crate::shimclient::{self, Pod, ShimBinary};

const BERM: &str = "berm";

/// One shim with its runtime.
#[derive(Clone, Debug)]
pub(super) struct Peer {
    name: &'static str,
    binary: ShimBinary,
}

impl Peer {
    /// Its name in the table.
    pub(super) fn name(&self) -> &'static str {
        self.name
    }

    /// Whether there is a metric server for it.
    pub(super) fn has_metrics(&self) -> bool {
        self.name == BERM
    }

    /// Its shim.
    pub(super) fn path(&self) -> &Path {
        self.binary.path()
    }

    /// The same with this configuration of Berm.
    pub(super) fn with_config(&self, toml: &str) -> Self {
        Self {
            name: self.name,
            binary: self.binary.clone().config(toml),
        }
    }

    /// Says of an error whose it was, and in which row.
    pub(super) fn failed(&self, what: &'static str) -> impl FnOnce(shimclient::Error) -> Error {
        let peer = self.name.to_owned();
        move |source| Error::Peer {
            peer,
            what,
            source: Box::new(source),
        }
    }

    /// A pod, prepared but not started.
    pub(super) fn prepare<'b>(&self, bed: &'b Bed) -> Result<Pod<'b>, shimclient::Error> {
        Pod::prepare(&bed.node, &self.binary, &bed.pause)
    }

    /// A running pod without containers.
    pub(super) async fn pod<'b>(&self, bed: &'b Bed) -> Result<Pod<'b>, shimclient::Error> {
        let mut pod = self.prepare(bed)?;
        pod.start_shim().await?;
        pod.run().await?;
        Ok(pod)
    }
}

/// Berm if its shim was named, then the others in the order asked for, installed if need be.
pub(super) fn find(args: &Args) -> Result<Vec<Peer>, Error> {
    let mut found = Vec::new();
    if let Some(path) = &args.shim {
        let path = path.canonicalize().map_err(|source| Error::NoShim {
            path: path.clone(),
            source,
        })?;
        found.push(Peer {
            name: BERM,
            binary: ShimBinary::new(path),
        });
    }
    if !args.peers.is_empty() {
        let programs = Peers::ensure().map_err(|source| Error::Install(Box::new(source)))?;
        for other in &args.peers {
            found.push(other.find(&programs)?);
        }
    }
    Ok(found)
}

impl Other {
    fn find(self, programs: &Peers) -> Result<Peer, Error> {
        let name = match self {
            Self::Runc => "runc",
            Self::Crun => "crun",
        };
        let path = |program: &str| {
            programs
                .find(program)
                .map_err(|source| Error::Install(Box::new(source)))
        };
        let shim = path("containerd-shim-runc-v2")?;
        let binary = ShimBinary::new(shim).runc_options(&path(name)?.display().to_string());
        Ok(Peer { name, binary })
    }
}
