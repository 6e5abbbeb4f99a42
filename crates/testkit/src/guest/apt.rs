//! Packages of the distribution, from the mirror that this machine's apt is set up with.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::command::{self, Output, insist};
use crate::error::{Error, file};
use crate::peers::apt_update;

/// Longest time for a download or an update.
const NET: Duration = Duration::from_secs(900);
/// Where packages of a newer kernel than the release's own are.
const BACKPORTS: &str = "trixie-backports";

/// The tools that make and run a guest, and their packages.
pub(super) const TOOLS: &[(&str, &str)] = &[
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("mmdebstrap", "mmdebstrap"),
    ("mke2fs", "e2fsprogs"),
    ("depmod", "kmod"),
    ("busybox", "busybox-static"),
    ("setpriv", "util-linux"),
    ("strip", "binutils"),
    ("xz", "xz-utils"),
    ("zstd", "zstd"),
    ("lz4", "lz4"),
];

/// A set of package lists: the machine's own, or those of another suite beside them.
#[derive(Debug)]
pub(super) struct Lists {
    options: Vec<String>,
}

impl Lists {
    /// The machine's own, brought up to date.
    pub(super) fn own() -> Result<Self, Error> {
        let options = Vec::new();
        apt_update(&options)?;
        Ok(Self { options })
    }

    /// Those of the backports of the next release, kept in `dir`.
    pub(super) fn backports(dir: &Path) -> Result<Self, Error> {
        for sub in ["lists/partial", "archives/partial"] {
            let sub = dir.join(sub);
            std::fs::create_dir_all(&sub).map_err(file("mkdir", &sub))?;
        }
        let source = dir.join("source.list");
        let keys = "/usr/share/keyrings/debian-archive-keyring.gpg";
        let line = format!("deb [signed-by={keys}] {} {BACKPORTS} main\n", mirror()?);
        std::fs::write(&source, line).map_err(file("write", &source))?;
        let dir = dir.display();
        let options = [
            format!("Dir::Etc::sourcelist={dir}/source.list"),
            "Dir::Etc::sourceparts=-".into(),
            format!("Dir::State::lists={dir}/lists"),
            format!("Dir::Cache={dir}"),
        ];
        apt_update(&options)?;
        Ok(Self {
            options: options.into(),
        })
    }

    /// The newest package whose name matches the extended regular expression.
    pub(super) fn newest(&self, pattern: &str) -> Result<Option<String>, Error> {
        let found = self.run("apt-cache", &["search", "--names-only", pattern])?;
        let names = found
            .stdout
            .lines()
            .filter_map(|line| line.split(' ').next());
        Ok(names.max_by_key(|name| numbers(name)).map(str::to_owned))
    }

    /// Downloads `package` and unpacks it into `dir`.
    pub(super) fn unpack(&self, package: &str, dir: &Path) -> Result<(), Error> {
        insist(|| {
            let mut download = self.command("apt-get", &["download", "-qq", package]);
            download.current_dir(dir);
            command::run(download, b"", NET)?.ok()
        })?;
        for archive in files(dir)?.iter().filter(|path| has_extension(path, "deb")) {
            let mut unpack = Command::new("dpkg-deb");
            unpack.arg("-x").arg(archive).arg(dir);
            command::run(unpack, b"", NET)?.ok()?;
            std::fs::remove_file(archive).map_err(file("unlink", archive))?;
        }
        Ok(())
    }

    fn run(&self, program: &str, args: &[&str]) -> Result<Output, Error> {
        command::run(self.command(program, args), b"", NET)?.ok()
    }

    fn command(&self, program: &str, args: &[&str]) -> Command {
        let mut command = Command::new(program);
        for option in &self.options {
            command.args(["-o", option]);
        }
        command.args(args);
        command
    }
}

/// The mirror of the release itself: what apt is set up with, so no name of a host stands here.
pub(super) fn mirror() -> Result<String, Error> {
    let mut command = Command::new("apt-get");
    command.args([
        "indextargets",
        "--format",
        "$(REPO_URI)",
        "Created-By: Packages",
    ]);
    let uris = command::run(command, b"", NET)?.ok()?.stdout;
    let found = uris
        .lines()
        .map(|uri| uri.trim_end_matches('/'))
        .find(|uri| uri.ends_with("/debian"));
    found.map(str::to_owned).ok_or_else(|| Error::Missing {
        what: "a Debian mirror in apt's sources".into(),
        way_out: "run the guest on Debian: its binaries are this machine's".into(),
    })
}

/// The release of this machine, such as `bookworm`: the guest has the same, so that what is
/// built here runs there.
pub(super) fn release() -> Result<String, Error> {
    let path = "/etc/os-release";
    let text = std::fs::read_to_string(path).map_err(file("read", path))?;
    let name = text
        .lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    name.map(str::to_owned).ok_or_else(|| Error::Data {
        path: path.into(),
        why: "no VERSION_CODENAME: the guest needs Debian".into(),
    })
}

pub(super) fn files(dir: &Path) -> Result<Vec<PathBuf>, Error> {
    let list = std::fs::read_dir(dir).map_err(file("opendir", dir))?;
    let mut paths: Vec<PathBuf> = list.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    Ok(paths)
}

pub(super) fn has_extension(path: &Path, extension: &str) -> bool {
    path.extension().is_some_and(|found| found == extension)
}

/// The numbers of a name, in order: enough to tell the newer of two names of one pattern.
fn numbers(name: &str) -> Vec<u64> {
    name.split(|c: char| !c.is_ascii_digit())
        .filter_map(|digits| digits.parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_of_two_packages_is_told_by_its_numbers() {
        let older = "linux-image-6.12.99+deb12-cloud-amd64";
        let newer = "linux-image-6.12.117+deb12-cloud-amd64";
        assert!(numbers(newer) > numbers(older));
    }
}
