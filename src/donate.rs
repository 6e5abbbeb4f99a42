//! Files of berm's caller for a command inside.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use berm_sandbox::{Donated, PassFile};
use rustix::fs::OFlags;

use crate::error::Error;
use crate::terminal;

/// What a command is given beside its streams.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct Donate {
    /// HOST:GUEST, berm's open file HOST becomes the command's file GUEST; may be given several
    /// times
    #[arg(long, value_name = "HOST:GUEST", value_parser = pass_fd)]
    pass_fd: Vec<(i32, i32)>,
    /// A program of the host that is run in place of the one that the command names
    #[arg(long, value_name = "PATH")]
    exec_file: Option<PathBuf>,
    /// Give the command's terminal to who listens on this unix socket, instead of connecting it to
    /// this one
    #[arg(long, value_name = "PATH", requires = "tty")]
    console_socket: Option<PathBuf>,
}

impl Donate {
    /// Refuses a terminal that nobody would have: neither this one nor a socket takes it.
    pub(crate) fn require_terminal(&self, tty: bool) -> Result<(), Error> {
        match (tty, &self.console_socket) {
            (true, None) => terminal::require(),
            _ => Ok(()),
        }
    }

    /// The files themselves. To be called first: what berm opens has a number as well.
    pub(crate) fn take(&self) -> Result<Donated, Error> {
        let pass = |&(host, guest): &(i32, i32)| {
            let file = berm_sys::process::inherited(host).map_err(|source| Error::PassFd {
                host,
                guest,
                source,
            })?;
            Ok::<_, Error>(PassFile { guest, file })
        };
        Ok(Donated {
            pass_files: self.pass_fd.iter().map(pass).collect::<Result<_, _>>()?,
            exec_file: self.exec_file.as_deref().map(open).transpose()?,
            console_socket: self.console_socket.clone(),
        })
    }
}

/// Without waiting for whoever writes to a fifo; that is refused later.
fn open(path: &Path) -> Result<OwnedFd, Error> {
    let file = File::options()
        .read(true)
        .custom_flags(OFlags::NONBLOCK.bits().cast_signed())
        .open(path);
    file.map(OwnedFd::from).map_err(|source| Error::File {
        path: path.to_owned(),
        source,
    })
}

/// `HOST:GUEST`
fn pass_fd(text: &str) -> Result<(i32, i32), String> {
    let (host, guest) = text.split_once(':').ok_or("not HOST:GUEST")?;
    let number = |text: &str| {
        let number = text.parse::<i32>().ok().filter(|number| *number >= 0);
        number.ok_or_else(|| format!("{text:?} is no number of a file"))
    };
    Ok((number(host)?, number(guest)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_passed_file_is_two_numbers() {
        assert_eq!(pass_fd("5:7"), Ok((5, 7)));
        assert_eq!(pass_fd("0:3"), Ok((0, 3)));
        for bad in ["5", "5:", ":5", "-1:5", "5:-1", "a:5", "5:6:7", ""] {
            assert!(pass_fd(bad).is_err(), "{bad:?}");
        }
    }
}
