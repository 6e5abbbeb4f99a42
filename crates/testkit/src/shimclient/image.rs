//! Images and their snapshots, as containerd's overlayfs snapshotter lays them out.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};

use super::{Error, Mount, Node};

const APPLETS: [&str; 16] = [
    "cat", "dd", "echo", "env", "head", "id", "kill", "ls", "mount", "sh", "sleep", "stat", "stty",
    "tail", "true", "umount",
];
const DIRS: [&str; 12] = [
    "bin",
    "dev",
    "etc",
    "home",
    "proc",
    "root",
    "run",
    "sys",
    "tmp",
    "usr/share",
    "var/log",
    "var/run",
];
const PAUSE: &str = include_str!("pause.c");

/// An unpacked image: its layers as directories, the lowest first.
#[derive(Debug)]
pub struct Image {
    layers: Vec<PathBuf>,
    args: Vec<String>,
    snapshots: PathBuf,
    next: AtomicU64,
}

/// A container's writable layer on an image; its files are removed when dropped.
#[derive(Debug)]
pub struct Snapshot {
    dir: PathBuf,
    mounts: Vec<Mount>,
}

impl Image {
    /// A busybox in five layers; its command sleeps for ever.
    ///
    /// # Errors
    /// [`berm_sys::Kind::NotFound`] if no static `/bin/busybox` is installed; the errno of the
    /// file system.
    pub fn busybox(node: &Node) -> Result<Self, Error> {
        let image = Self::empty(node, "busybox", 5, &["/bin/sleep", "infinity"])?;
        base(&image.layers[0])?;
        for (number, layer) in image.layers.iter().enumerate().skip(1) {
            for file in 0..20 {
                write(
                    &layer.join(format!("usr/share/layer{number}/{file}")),
                    b"layer\n",
                )?;
            }
            // Each layer changes a file of the one below.
            write(
                &layer.join("etc/os-release"),
                format!("ID=bench\nLAYER={number}\n").as_bytes(),
            )?;
        }
        Ok(image)
    }

    /// A pause image of one layer: a small static C program, or busybox without a C compiler.
    ///
    /// # Errors
    /// As [`Image::busybox`].
    pub fn pause(node: &Node) -> Result<Self, Error> {
        let image = Self::empty(node, "pause", 1, &["/pause"])?;
        base(&image.layers[0])?;
        if compile_pause(node, &image.layers[0].join("pause")) {
            return Ok(image);
        }
        let args = ["/bin/sleep", "infinity"].map(str::to_owned).to_vec();
        Ok(Self { args, ..image })
    }

    fn empty(node: &Node, name: &str, layers: usize, args: &[&str]) -> Result<Self, Error> {
        let dir = node.dir().join("images").join(name);
        let layers: Vec<PathBuf> = (0..layers).map(|n| dir.join(format!("{n}/fs"))).collect();
        for layer in &layers {
            fs::create_dir_all(layer).map_err(Error::file("mkdir", layer))?;
        }
        let args = args.iter().map(|arg| (*arg).to_owned()).collect();
        Ok(Self {
            layers,
            args,
            snapshots: dir.join("snapshots"),
            next: AtomicU64::new(0),
        })
    }

    /// The command of the image.
    pub fn args(&self) -> &[String] {
        &self.args
    }

    /// The layers, the lowest first.
    pub fn layers(&self) -> &[PathBuf] {
        &self.layers
    }

    /// Makes a writable layer.
    ///
    /// # Errors
    /// The errno of mkdir(2).
    pub fn snapshot(&self) -> Result<Snapshot, Error> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let dir = self.snapshots.join(number.to_string());
        let (upper, work) = (dir.join("fs"), dir.join("work"));
        for made in [&upper, &work] {
            fs::create_dir_all(made).map_err(Error::file("mkdir", made))?;
        }
        let lower: Vec<String> = self
            .layers
            .iter()
            .rev()
            .map(|layer| layer.display().to_string())
            .collect();
        let mount = Mount {
            type_: "overlay".to_owned(),
            source: "overlay".to_owned(),
            options: vec![
                "index=off".to_owned(),
                format!("workdir={}", work.display()),
                format!("upperdir={}", upper.display()),
                format!("lowerdir={}", lower.join(":")),
            ],
            ..Mount::default()
        };
        Ok(Snapshot {
            dir,
            mounts: vec![mount],
        })
    }
}

impl Snapshot {
    /// The mounts that containerd sends for it.
    pub fn mounts(&self) -> &[Mount] {
        &self.mounts
    }

    /// What the container wrote.
    pub fn upper(&self) -> PathBuf {
        self.dir.join("fs")
    }
}

impl Drop for Snapshot {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// A root file system with busybox and the files that a libc looks for.
fn base(layer: &Path) -> Result<(), Error> {
    for dir in DIRS {
        fs::create_dir_all(layer.join(dir)).map_err(Error::file("mkdir", layer.join(dir)))?;
    }
    let busybox = layer.join("bin/busybox");
    fs::copy("/bin/busybox", &busybox).map_err(Error::file("copy", "/bin/busybox"))?;
    for applet in APPLETS {
        let link = layer.join("bin").join(applet);
        symlink("busybox", &link).map_err(Error::file("symlink", link))?;
    }
    write(
        &layer.join("etc/passwd"),
        b"root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/:/bin/sh\n",
    )?;
    write(&layer.join("etc/group"), b"root:x:0:\nuser:x:1000:\n")
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(Error::file("mkdir", parent))?;
    }
    fs::write(path, bytes).map_err(Error::file("write", path))
}

/// Compiles the pause program with the first C compiler that links statically.
fn compile_pause(node: &Node, output: &Path) -> bool {
    let source = node.dir().join("pause.c");
    write(&source, PAUSE.as_bytes()).is_ok()
        && ["musl-gcc", "cc"].iter().any(|compiler| {
            Command::new(compiler)
                .args(["-Os", "-static", "-s", "-o"])
                .args([output, &source])
                .stdin(Stdio::null())
                .output()
                .is_ok_and(|output| output.status.success())
        })
}
