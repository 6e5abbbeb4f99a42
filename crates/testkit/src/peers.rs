//! The programs that Berm is tested with, and their installation.
//!
//! Looked for in `$BERM_PEERS/bin` (default: `.cache/peers/bin` beside the workspace), then on
//! `PATH`. What is missing is installed once: distribution packages by `apt-get`, containerd and
//! crictl by `go install` in the versions named here. What a mirror does not answer is tried again.
//! A second call only looks at files.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::command::{self, insist};
use crate::error::{Error, file};

/// The containerd that the tests run, with its `ctr` and its shim for runc.
pub const CONTAINERD: &str = "v2.3.4";
/// The crictl that drives CRI.
pub const CRICTL: &str = "v1.36.0";
const CRI_TOOLS: &str = "sigs.k8s.io/cri-tools";

/// A program or file, and the distribution package that has it.
const PACKAGES: &[(&str, &str)] = &[
    ("runc", "runc"),
    ("crun", "crun"),
    ("ip", "iproute2"),
    ("iptables", "iptables"),
    ("nsenter", "util-linux"),
    ("script", "bsdutils"),
    ("pkg-config", "pkg-config"),
    ("cc", "gcc"),
    ("/usr/include/seccomp.h", "libseccomp-dev"),
    ("/usr/lib/cni/bridge", "containernetworking-plugins"),
    ("busybox", "busybox-static"),
    ("mke2fs", "e2fsprogs"),
    ("mkfs.erofs", "erofs-utils"),
    ("bindfs", "bindfs"),
    ("newuidmap", "uidmap"),
];

/// Longest time for a download or an installation.
const NET: Duration = Duration::from_secs(900);
/// And for a build with what it downloads.
const BUILD: Duration = Duration::from_secs(3600);

const GO_PROGRAMS: &[&str] = &["containerd", "ctr", "containerd-shim-runc-v2", "crictl"];

/// Where each program is.
#[derive(Debug, Clone)]
pub struct Peers {
    /// containerd, ctr, crictl, containerd-shim-runc-v2 are all in here or on `PATH`.
    bin: PathBuf,
}

impl Peers {
    /// Finds the programs, and installs those that are missing.
    /// # Errors
    /// [`Error::Missing`] with a way out, [`Error::Failed`] with the installer's words.
    pub fn ensure() -> Result<Self, Error> {
        let peers = Self {
            bin: root().join("bin"),
        };
        // In a guest, or for somebody who packages them, all is there but what builds Berm.
        if std::env::var_os("BERM_OFFLINE").is_none() {
            install(PACKAGES)?;
        }
        let missing = |program: &&&str| peers.find(program).is_err();
        if GO_PROGRAMS.iter().any(|program| missing(&program)) {
            install_go_programs(&peers.bin)?;
        }
        for program in GO_PROGRAMS {
            peers.find(program)?;
        }
        Ok(peers)
    }

    /// The path of `program`.
    /// # Errors
    /// [`Error::Missing`].
    pub fn find(&self, program: &str) -> Result<PathBuf, Error> {
        let ours = self.bin.join(program);
        if ours.exists() {
            return Ok(ours);
        }
        on_path(program).ok_or_else(|| Error::Missing {
            what: program.into(),
            way_out: "run `make try` or `berm-testkit peers` as root, or put it on PATH".into(),
        })
    }

    /// A static busybox, the content of the test images.
    /// # Errors
    /// [`Error::Missing`].
    pub fn busybox(&self) -> Result<PathBuf, Error> {
        self.find("busybox")
    }

    /// critest of the same version as crictl, built the first time that it is asked for.
    /// # Errors
    /// [`Error::Missing`] go, [`Error::Failed`] with its words.
    pub fn critest(&self) -> Result<PathBuf, Error> {
        if let Ok(found) = self.find("critest") {
            return Ok(found);
        }
        let output = self.bin.join("critest");
        eprintln!("building critest {CRICTL} (some minutes, once)");
        in_cri_tools_module(&go()?, &["test", "-c", "-o"], &output, "cmd/critest")?;
        Ok(output)
    }

    /// Prometheus and promtool, from Debian's package (19 MB), fetched the first time that they are
    /// asked for. It is unpacked, not installed: its service would start.
    /// # Errors
    /// [`Error::Missing`] without apt-get, [`Error::Failed`] with its words.
    pub fn prometheus(&self) -> Result<(PathBuf, PathBuf), Error> {
        let both = || Ok((self.find("prometheus")?, self.find("promtool")?));
        if let Ok(found) = both() {
            return Ok(found);
        }
        let Some(apt) = on_path("apt-get") else {
            return both();
        };
        eprintln!("fetching prometheus (once)");
        let dir = root().join("prometheus");
        std::fs::create_dir_all(&dir).map_err(file("mkdir", &dir))?;
        apt_update(&[])?;
        // apt's name of the file has the version in it.
        let script = "\"$0\" download -qq prometheus && dpkg-deb -x prometheus_*.deb . && rm prometheus_*.deb && \
                      cp usr/bin/prometheus usr/bin/promtool \"$1\" && rm -r usr etc lib var";
        insist(|| {
            let mut fetch = Command::new("sh");
            fetch.current_dir(&dir).args(["-c", script]);
            fetch.arg(&apt).arg(&self.bin);
            command::run(fetch, b"", NET)?.ok()
        })?;
        both()
    }

    /// The directory of the CNI plugins.
    #[must_use]
    pub fn cni(&self) -> &'static Path {
        Path::new("/usr/lib/cni")
    }
}

/// The directory for what is downloaded or built once and kept.
#[must_use]
pub fn root() -> PathBuf {
    match std::env::var_os("BERM_PEERS") {
        Some(dir) => dir.into(),
        None => workspace().join(".cache/peers"),
    }
}

/// The root of the workspace that this program was built from.
#[must_use]
pub fn workspace() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here).to_owned()
}

fn on_path(program: &str) -> Option<PathBuf> {
    if program.starts_with('/') {
        return Some(program.into()).filter(|path: &PathBuf| path.exists());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/usr/local/sbin", "/usr/local/go/bin"].map(PathBuf::from))
        .map(|dir| dir.join(program))
        .find(|path| path.exists())
}

/// Installs the package of each program or file that is not there.
/// # Errors
/// [`Error::Missing`] without apt-get, [`Error::Failed`] with its words.
pub(crate) fn install(wanted: &[(&str, &str)]) -> Result<(), Error> {
    let missing: Vec<&str> = wanted
        .iter()
        .filter(|(name, _)| on_path(name).is_none())
        .map(|(_, pkg)| *pkg)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let Some(apt) = on_path("apt-get") else {
        return Err(Error::Missing {
            what: missing.join(", "),
            way_out: "install these packages under your distribution's names for them".into(),
        });
    };
    eprintln!("installing {}", missing.join(" "));
    apt_update(&[])?;
    insist(|| {
        let mut install = Command::new(&apt);
        install.env("DEBIAN_FRONTEND", "noninteractive");
        // Somebody else may be installing.
        install.args(["-o", "DPkg::Lock::Timeout=300", "install", "-y", "-qq"]);
        install.arg("--no-install-recommends").args(&missing);
        command::run(install, b"", NET)?.ok().map(drop)
    })
}

/// Brings apt's package lists up to date, with more `options`. A source that cannot be had, try
/// after try, is left as it is.
/// # Errors
/// [`Error::Failed`] with apt's words.
pub(crate) fn apt_update(options: &[String]) -> Result<(), Error> {
    let update = |mode: &str| {
        let mut update = Command::new("apt-get");
        for option in options.iter().map(String::as_str).chain([mode]) {
            update.args(["-o", option]);
        }
        update.args(["update", "-qq"]);
        command::run(update, b"", NET)?.ok().map(drop)
    };
    // Without it apt takes it for good if a list could not be fetched.
    insist(|| update("APT::Update::Error-Mode=any"))
        .or_else(|_| update("APT::Update::Error-Mode=persistent-failure"))
}

fn go() -> Result<PathBuf, Error> {
    on_path("go").ok_or_else(|| Error::Missing {
        what: "go".into(),
        way_out: format!("install Go 1.21 or later, or containerd {CONTAINERD} on PATH"),
    })
}

fn install_go_programs(bin: &Path) -> Result<(), Error> {
    let go = go()?;
    std::fs::create_dir_all(bin).map_err(file("mkdir", bin))?;
    eprintln!("building containerd {CONTAINERD} and crictl {CRICTL} (some minutes, once)");
    insist(|| {
        let mut containerd = Command::new(&go);
        containerd.env("GOBIN", bin).arg("install");
        containerd.args(
            ["containerd", "ctr", "containerd-shim-runc-v2"].map(|program| {
                format!("github.com/containerd/containerd/v2/cmd/{program}@{CONTAINERD}")
            }),
        );
        command::run(containerd, b"", BUILD)?.ok()
    })?;
    install_crictl(&go, bin)
}

/// crictl's go.mod has `replace` lines, which `go install` of a version refuses: it is built as
/// a dependency of a module of our own.
fn install_crictl(go: &Path, bin: &Path) -> Result<(), Error> {
    let output = bin.join("crictl");
    in_cri_tools_module(go, &["build", "-o"], &output, "cmd/crictl")
}

/// Runs go with `verb`, to make `output` of `package` of cri-tools.
fn in_cri_tools_module(
    go: &Path,
    verb: &[&str],
    output: &Path,
    package: &str,
) -> Result<(), Error> {
    let dir = root().join("crictl");
    std::fs::create_dir_all(&dir).map_err(file("mkdir", &dir))?;
    let module = format!("module peers\ngo 1.26\nrequire {CRI_TOOLS} {CRICTL}\n");
    let main = format!("package main\nimport _ \"{CRI_TOOLS}/pkg/validate\"\nfunc main() {{}}\n");
    for (name, text) in [("go.mod", &module), ("main.go", &main)] {
        let path = dir.join(name);
        std::fs::write(&path, text).map_err(file("write", path))?;
    }
    insist(|| {
        let mut tidy = Command::new(go);
        tidy.current_dir(&dir).args(["mod", "tidy"]);
        command::run(tidy, b"", NET)?.ok()
    })?;
    insist(|| {
        let mut build = Command::new(go);
        build.current_dir(&dir).env("GOFLAGS", "-mod=mod");
        build.args(verb).arg(output);
        build.arg(format!("{CRI_TOOLS}/{package}"));
        command::run(build, b"", BUILD)?.ok().map(drop)
    })
}
