//! The file in which a container's own writable layer lies.

use std::fs::File;
use std::io::{Read, Seek};
use std::os::fd::{AsFd, OwnedFd};

use berm_plan::UpperFile;
use berm_stage::UpperFileJob;
use rustix::fs::{MemfdFlags, memfd_create};

use crate::aside::Aside;
use crate::error::{Error, call, io};
use crate::live::Live;

/// How much of mkfs.ext4's complaints an error shows, in bytes.
const SHOWN: u64 = 512;

impl Live {
    /// Makes a file without a name that holds an empty ext4.
    /// # Errors
    /// `NotSupported` where this node has no mkfs.ext4, or the directory's file system no unnamed
    /// files; what the program complains of; `DeadlineExceeded`.
    pub(crate) async fn make_upper_file(&self, file: &UpperFile) -> Result<OwnedFd, Error> {
        let errors = memfd_create("mkfs", MemfdFlags::CLOEXEC);
        let mut errors = File::from(errors.map_err(call("memfd_create()"))?);
        let making = Aside::begin("UpperFile", self.host.config.stage_deadline, |report| {
            berm_stage::spawn_upper_file(&UpperFileJob {
                file,
                errors: errors.as_fd(),
                report,
            })
        })?;
        let (outcome, status) = making.end_with_status().await?;
        match (status, outcome.made) {
            (0, Some(made)) => Ok(made),
            (status, _) => {
                let mut text = Vec::new();
                errors.rewind().map_err(io("lseek(memfd)"))?;
                let read = errors.take(SHOWN).read_to_end(&mut text);
                read.map_err(io("read(memfd)"))?;
                let text = String::from_utf8_lossy(&text);
                Err(Error::Mkfs {
                    dir: file.dir.clone(),
                    status,
                    text: text.trim().escape_debug().to_string(),
                })
            }
        }
    }
}
