//! A pod's network namespace, as CNI hands it to a runtime: a bind-mounted file.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::mount::{UnmountFlags, unmount};

use super::Error;

/// A new, empty network namespace, kept by a mount of its nsfs file; gone when dropped.
#[derive(Debug)]
pub struct Netns {
    path: PathBuf,
}

impl Netns {
    /// Makes the namespace and mounts it on the new file `path`.
    ///
    /// A child does it (`unshare` of util-linux), because only a process that ends may leave its
    /// own network namespace behind.
    ///
    /// # Errors
    /// [`Error::Program`] without the right to make namespaces.
    pub fn new(path: impl Into<PathBuf>) -> Result<Self, Error> {
        let path = path.into();
        File::create_new(&path).map_err(Error::file("creat", &path))?;
        let netns = Self { path };
        let mut argument = std::ffi::OsString::from("--net=");
        argument.push(&netns.path);
        let program = PathBuf::from("unshare");
        let output = Command::new(&program)
            .arg(argument)
            .arg("true")
            .stdin(Stdio::null())
            .output()
            .map_err(|source| Error::Spawn {
                program: program.clone(),
                source,
            })?;
        if output.status.success() {
            return Ok(netns);
        }
        Err(Error::Program {
            program,
            action: format!("--net={}", netns.path.display()),
            status: output.status,
            output: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// The file to name in a spec.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        let _ = unmount(&self.path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
        let _ = fs::remove_file(&self.path);
    }
}
