//! Work that may take long, in a stage child: the pod's shim goes on meanwhile.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::time::Duration;

use rustix::fs::{MemfdFlags, memfd_create};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, call, io};
use crate::live::Live;
use crate::stage::{Forked, Outcome, Stage};

/// How long looking at a pod may take.
const DEADLINE: Duration = Duration::from_secs(5);
/// Most that is taken back, in bytes.
const MAX_ANSWER: u64 = 4 << 20;

/// A stage child that does one thing and ends; killed if it is dropped.
#[derive(Debug)]
pub(crate) struct Aside {
    stage: Stage,
    child: Forked,
}

impl Aside {
    /// Begins `what`: `spawn` gets the child's end of the channel and gives the child's pidfd.
    /// # Errors
    /// The errno of socketpair(2) or fork(2).
    pub(crate) fn begin(
        what: &'static str,
        deadline: Duration,
        spawn: impl FnOnce(BorrowedFd<'_>) -> Result<OwnedFd, berm_stage::Error>,
    ) -> Result<Self, Error> {
        let (stage, child_end) = Stage::new(what, deadline)?;
        let child = Forked::new(spawn(child_end.as_fd())?);
        Ok(Self { stage, child })
    }

    /// Waits until it has closed its end of the channel, and gives what it handed over.
    /// # Errors
    /// What it fails with; `DeadlineExceeded`.
    pub(crate) async fn end(self) -> Result<Outcome, Error> {
        let mut outcome = Outcome::default();
        self.stage.listen(&mut outcome).await?;
        self.child.reap();
        Ok(outcome)
    }

    /// Waits until it has ended, and gives what it handed over and its status.
    /// # Errors
    /// As [`Aside::end`].
    pub(crate) async fn end_with_status(self) -> Result<(Outcome, u32), Error> {
        let mut outcome = Outcome::default();
        self.stage.listen(&mut outcome).await?;
        let status = self.child.into_child()?.wait().await?.status;
        Ok((outcome, status))
    }

    /// Lets it end by itself: nobody waits for what it does.
    pub(crate) fn reap(self) {
        self.child.reap();
    }

    /// Waits until it has ended. One that something has killed has failed at `last`.
    /// # Errors
    /// As [`Aside::end`]; `Unavailable` if it was killed.
    pub(crate) async fn end_well(self, last: &'static str) -> Result<(), Error> {
        match self.end_with_status().await?.1 {
            0 => Ok(()),
            _ => Err(Error::Died { last }),
        }
    }
}

impl Live {
    /// What `look` finds, run in a child which may read of `/proc` what a pod's process can hold
    /// back: its command line may lie in a file of its own FUSE.
    /// # Errors
    /// `DeadlineExceeded`; `Unavailable` for an answer beyond [`MAX_ANSWER`]; the errno of fork(2).
    pub(crate) async fn aside<T: Serialize + DeserializeOwned>(
        &self,
        look: impl FnOnce(BorrowedFd<'_>) -> T,
    ) -> Result<T, Error> {
        let answer = memfd_create("berm-answer", MemfdFlags::CLOEXEC);
        let answer = File::from(answer.map_err(call("memfd_create()"))?);
        let proc = self.host.proc.as_fd();
        let act = || {
            let found = serde_json::to_vec(&look(proc)).map_err(std::io::Error::other);
            found
                .and_then(|bytes| answer.write_all_at(&bytes, 0))
                .map_err(|source| berm_stage::Error::Sys {
                    call: "write(memfd)",
                    source,
                })
        };
        let deadline = DEADLINE.min(self.host.config.stage_deadline);
        let looking = Aside::begin("Look", deadline, |report| {
            berm_stage::spawn_aside("Aside", report, &[proc, answer.as_fd()], act)
        })?;
        looking.end_well("Aside").await?;
        let len = answer.metadata().map_err(io("fstat(memfd)"))?.len();
        if len > MAX_ANSWER {
            return Err(Error::TooMuch { max: MAX_ANSWER });
        }
        let mut bytes = Vec::new();
        { answer }
            .read_to_end(&mut bytes)
            .map_err(io("read(memfd)"))?;
        serde_json::from_slice(&bytes).map_err(|e| io("read(memfd)")(e.into()))
    }
}
