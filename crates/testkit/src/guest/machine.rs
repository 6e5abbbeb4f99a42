//! One run of a guest: its command goes in with the initrd, its files on a disk of their own, its
//! output comes live over a serial line, its files on a tar.
//!
//! The disk of the root is a snapshot: what a guest writes is thrown away, and any number of
//! guests share the image. A guest ends with this process, at its deadline, and when its kernel
//! panics.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use super::cpio::Cpio;
use super::kernel::Kernel;
use super::{cache, root};
use crate::command;
use crate::error::{Error, file};
use crate::process::Process;

/// Time for boot and power-off, beside that of the script.
const AROUND: Duration = Duration::from_secs(120);
/// How many lines of the kernel's console are shown when a guest dies.
const CONSOLE_LINES: usize = 60;
/// Longest line of output that is handed on in one piece, and most of the console that is read.
const BYTES: usize = 64 * 1024;
/// Files that a guest may leave.
const OUT_BYTES: u64 = 1 << 31;

/// How often a guest is booted that the emulator lost before its job began.
const ATTEMPTS: u32 = 4;
/// qemu's TCG may run a breakpoint that the kernel put into its own code for a moment (a static
/// key that is switched while the other CPU executes it) after it was taken out: no kernel for
/// itself ever ends so.
const LOST: &str = "Oops: int3";

const KERNEL_ARGS: &str = "console=ttyS0 quiet panic=-1 mitigations=off psi=1 tsc=reliable \
    systemd.show_status=false";

/// A kernel and a disk, ready to boot.
#[derive(Debug)]
pub struct Guest {
    kernel: Kernel,
    disk: PathBuf,
}

/// What a guest is to do.
#[derive(Debug, Clone, Default)]
pub struct Job {
    /// A folder that it sees read-only as `/share`; `bin` in it is on its PATH.
    pub share: PathBuf,
    /// A script for bash, run as root in `/share`.
    pub script: String,
    /// How long the script may take.
    pub limit: Duration,
    /// Where the files go that the guest leaves in `/out`: its journal and dmesg at least.
    pub out: Option<PathBuf>,
}

impl Guest {
    /// The guest with the newest kernel of `line`, downloaded and built if it is not in the
    /// cache.
    /// # Errors
    /// [`Error::Missing`] a kernel or a tool, or what the tools say.
    pub fn ensure(line: &str, busybox: &Path) -> Result<Self, Error> {
        let kernel = Kernel::ensure(line, busybox)?;
        let disk = root::ensure(&kernel)?;
        Ok(Self { kernel, disk })
    }

    /// What `uname -r` says in it.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.kernel.version
    }

    /// Boots the guest, does the job and gives its exit code; each line of its output goes to
    /// `told` at once.
    /// # Errors
    /// [`Error::Guest`] with the end of its console when it died or hung.
    pub fn run(&self, job: &Job, told: &mut dyn FnMut(&str)) -> Result<i32, Error> {
        let mut attempt = 1;
        loop {
            let mut begun = false;
            let result = self.boot(job, &mut |line| {
                begun = true;
                told(line);
            });
            match result {
                Err(Error::Guest { emulator: true, .. }) if !begun && attempt < ATTEMPTS => {
                    eprintln!("the emulator lost its guest during boot: once more");
                    attempt += 1;
                }
                ended => return ended,
            }
        }
    }

    fn boot(&self, job: &Job, told: &mut dyn FnMut(&str)) -> Result<i32, Error> {
        let dir = Scratch::new()?;
        self.prepare(job, &dir.0)?;
        let mut qemu = self.start(&dir.0)?;
        let limit = job.limit + AROUND;
        let ended = qemu.listen(Instant::now() + limit, told)?;
        drop(qemu);
        let died = |how: String| {
            let console = console_tail(&dir.0);
            let emulator = console.contains(LOST);
            Error::Guest {
                how,
                console,
                emulator,
            }
        };
        match ended {
            Ended::Exit(code) => {
                if let Some(out) = &job.out {
                    unpack(&dir.0, out)?;
                }
                Ok(code)
            }
            Ended::Silent => Err(died("died before its job was done".into())),
            Ended::Hung => Err(died(format!("did not end within {limit:?}"))),
        }
    }

    fn prepare(&self, job: &Job, dir: &Path) -> Result<(), Error> {
        let mut initrd = read(&self.kernel.dir.join("initrd"))?;
        let mut command = Cpio::default();
        command.file("cmd", script(job).as_bytes());
        initrd.extend(command.finish());
        write(&dir.join("initrd"), &initrd)?;
        let out = dir.join("out.tar");
        let created = File::create(&out).map_err(file("open", &out))?;
        created.set_len(OUT_BYTES).map_err(file("truncate", out))?;
        let megabytes = size(&job.share)? / (1 << 20);
        let size = format!("{}M", megabytes * 21 / 20 + 64);
        root::filesystem(&job.share, &dir.join("share.ext4"), &size)
    }

    fn start(&self, dir: &Path) -> Result<Qemu, Error> {
        let drive = |path: &Path, more: &str| {
            let path = path.display();
            format!("file={path},format=raw,if=virtio,cache=unsafe{more}")
        };
        // If this process is killed, so is the guest.
        let mut qemu = Command::new("setpriv");
        qemu.args(["--pdeathsig", "KILL", "qemu-system-x86_64"])
            .args(["-nodefaults", "-no-user-config", "-no-reboot"])
            .args(["-display", "none", "-M", "q35"])
            .args(["-accel", "tcg,thread=multi", "-cpu", "max,la57=off,svm=off"])
            .args(["-smp", "2", "-m", "4096"])
            .arg("-kernel")
            .arg(self.kernel.dir.join("vmlinux"))
            .arg("-initrd")
            .arg(dir.join("initrd"))
            .args(["-append", KERNEL_ARGS, "-drive"])
            .arg(drive(&self.disk, ",snapshot=on"))
            .arg("-drive")
            .arg(drive(&dir.join("out.tar"), ""))
            .arg("-drive")
            .arg(drive(&dir.join("share.ext4"), ",readonly=on"))
            .arg("-serial")
            .arg(format!("file:{}", dir.join("console.log").display()))
            .args([
                "-chardev",
                "stdio,id=job,signal=off",
                "-serial",
                "chardev:job",
            ]);
        // The snapshot is written there: on the disk, not in memory.
        qemu.env("TMPDIR", dir)
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        let mut child = qemu.spawn().map_err(|source| Error::Exec {
            program: "setpriv".into(),
            source,
        })?;
        let output = child.stdout.take().ok_or_else(|| Error::Missing {
            what: "qemu's output".into(),
            way_out: "it was piped".into(),
        })?;
        Ok(Qemu { child, output })
    }
}

/// The script with its own deadline, which is kept in the guest so that its files are not lost.
fn script(job: &Job) -> String {
    let limit = job.limit.as_secs();
    let text = job.script.replace('\'', "'\\''");
    format!("exec timeout -k 5 {limit} bash -c '{text}'\n")
}

/// How a guest went.
enum Ended {
    /// Its job had this exit code; 124 at its deadline.
    Exit(i32),
    /// Without a word: a panic ends qemu.
    Silent,
    Hung,
}

/// A running guest; dropping it ends it.
struct Qemu {
    child: Child,
    output: ChildStdout,
}

impl Qemu {
    fn listen(&mut self, end: Instant, told: &mut dyn FnMut(&str)) -> Result<Ended, Error> {
        let mut unread = Vec::new();
        let mut code = None;
        let mut bytes = vec![0; BYTES];
        loop {
            if !command::readable(&self.output, end)? {
                return Ok(Ended::Hung);
            }
            let count = self.output.read(&mut bytes).unwrap_or_default();
            unread.extend_from_slice(&bytes[..count]);
            while let Some(line) = line(&mut unread, count == 0) {
                match line.strip_prefix("guest-exit ") {
                    Some(number) => code = number.trim().parse().ok(),
                    None => told(&line),
                }
            }
            if count == 0 {
                return Ok(code.map_or(Ended::Silent, Ended::Exit));
            }
        }
    }
}

/// Takes the next whole line, or what has grown too long, or at the end the rest.
fn line(unread: &mut Vec<u8>, at_end: bool) -> Option<String> {
    let end = unread.iter().position(|byte| *byte == b'\n');
    let rest = (unread.len() >= BYTES || (at_end && !unread.is_empty())).then_some(unread.len());
    let bytes: Vec<u8> = match end {
        Some(at) => unread.drain(..=at).collect(),
        None => unread.drain(..rest?).collect(),
    };
    let text = String::from_utf8_lossy(&bytes);
    Some(text.trim_end_matches(['\n', '\r']).to_owned())
}

impl Drop for Qemu {
    fn drop(&mut self) {
        // It may have ended by itself: both calls may fail then, as they should.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The files of one run, gone with it.
pub(super) struct Scratch(PathBuf);

impl Scratch {
    pub(super) fn new() -> Result<Self, Error> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        sweep();
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("run-{}-{number}", std::process::id());
        let dir = cache::root().join(name);
        std::fs::create_dir_all(&dir).map_err(file("mkdir", &dir))?;
        Ok(Self(dir))
    }

    pub(super) fn dir(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            eprintln!("testkit: rm -r {}: {error}", self.0.display());
        }
    }
}

/// Removes what runs left that were killed.
fn sweep() {
    for entry in std::fs::read_dir(cache::root())
        .into_iter()
        .flatten()
        .flatten()
    {
        let name = entry.file_name().to_string_lossy().into_owned();
        let pid = name
            .strip_prefix("run-")
            .and_then(|rest| rest.split('-').next()?.parse().ok());
        if pid.is_some_and(|pid| Process::read(pid).is_none()) {
            // Another run may sweep at the same time.
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

fn console_tail(dir: &Path) -> String {
    let bytes = std::fs::read(dir.join("console.log")).unwrap_or_default();
    let tail = &bytes[bytes.len().saturating_sub(BYTES)..];
    let text = String::from_utf8_lossy(tail);
    let lines: Vec<&str> = text.lines().collect();
    let shown = &lines[lines.len().saturating_sub(CONSOLE_LINES)..];
    // A terminal's escapes have no business in a report.
    shown.join("\n").replace('\u{1b}', "")
}

fn unpack(dir: &Path, out: &Path) -> Result<(), Error> {
    std::fs::create_dir_all(out).map_err(file("mkdir", out))?;
    let mut tar = Command::new("tar");
    tar.arg("-xf").arg(dir.join("out.tar")).arg("-C").arg(out);
    command::run(tar, b"", AROUND)?.ok().map(drop)
}

fn size(dir: &Path) -> Result<u64, Error> {
    let mut sum = 0;
    for entry in std::fs::read_dir(dir)
        .map_err(file("opendir", dir))?
        .flatten()
    {
        let path = entry.path();
        let data = std::fs::symlink_metadata(&path).map_err(file("lstat", &path))?;
        sum += if data.is_dir() {
            size(&path)?
        } else {
            data.len()
        };
    }
    Ok(sum)
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    std::fs::read(path).map_err(file("read", path))
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let mut created = File::create(path).map_err(file("open", path))?;
    created.write_all(bytes).map_err(file("write", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_is_cut_into_lines_and_the_rest_comes_at_the_end() {
        let mut unread = b"one\r\ntwo".to_vec();
        assert_eq!(line(&mut unread, false).as_deref(), Some("one"));
        assert_eq!(line(&mut unread, false), None);
        assert_eq!(line(&mut unread, true).as_deref(), Some("two"));
        assert_eq!(line(&mut unread, true), None);
    }

    #[test]
    fn a_line_without_an_end_is_handed_on_before_it_fills_the_memory() {
        let mut unread = vec![b'x'; BYTES];
        assert_eq!(line(&mut unread, false).map(|line| line.len()), Some(BYTES));
    }

    #[test]
    fn a_quote_in_a_script_is_no_end_of_it() {
        let job = Job {
            script: "echo 'a b'".into(),
            limit: Duration::from_secs(50),
            ..Job::default()
        };
        let mut bash = Command::new("bash");
        bash.arg("-c").arg(script(&job));
        let output = command::run(bash, b"", Duration::from_secs(60)).unwrap();
        assert_eq!(output.stdout, "a b\n");
    }
}
