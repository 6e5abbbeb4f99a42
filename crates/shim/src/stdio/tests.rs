//! The rules of the module's table, with real fifos. "containerd" is this test.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::thread;

use rustix::fs::{FileType, Mode, OFlags, fcntl_getfl, mknodat};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::tcgetwinsize;
use tokio::task::LocalSet;
use tokio::time::timeout;

use super::*;

const SOON: Duration = Duration::from_secs(60);

struct Fifos {
    _dir: tempfile::TempDir,
    paths: Paths,
}

impl Fifos {
    fn new(terminal: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let make = |name: &str| {
            let path = dir.path().join(name);
            mknodat(rustix::fs::CWD, &path, FileType::Fifo, Mode::RWXU, 0).unwrap();
            path.display().to_string()
        };
        let stderr = if terminal {
            String::new()
        } else {
            make("stderr")
        };
        let paths = Paths {
            stdin: make("stdin"),
            stdout: make("stdout"),
            stderr,
            terminal,
        };
        Self { _dir: dir, paths }
    }

    /// containerd's read end of stdout.
    fn reader(&self) -> File {
        open(&self.paths.stdout, OFlags::RDONLY | OFlags::NONBLOCK)
    }

    /// containerd's write end of stdin.
    fn writer(&self) -> File {
        open(&self.paths.stdin, OFlags::WRONLY | OFlags::NONBLOCK)
    }
}

fn open(path: &str, flags: OFlags) -> File {
    rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty())
        .unwrap()
        .into()
}

/// Runs on the one thread that the daemon has.
fn run<F: Future>(test: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()
        .unwrap();
    LocalSet::new().block_on(&runtime, async { timeout(SOON, test).await.unwrap() })
}

#[test]
fn a_process_waits_until_containerd_reads_what_it_will_write() {
    run(async {
        let fifos = Fifos::new(false);
        let who = Who {
            namespace: "n",
            id: "c",
        };
        let begun = Instant::now();
        let opening = super::open(Process::Exec, &fifos.paths, None, who, SOON);
        tokio::pin!(opening);
        let early = timeout(Duration::from_millis(5), &mut opening).await;
        // On a machine that stood still for so long nobody is waited for any more.
        let patient = begun.elapsed() < fifo::READER_DEADLINE;
        assert!(early.is_err() || !patient, "nobody reads yet");
        let stdout = fifos.reader();
        let stderr = open(&fifos.paths.stderr, OFlags::RDONLY | OFlags::NONBLOCK);
        let (stdio, ends) = match early {
            Ok(opened) => opened.unwrap(),
            Err(_) => opening.await.unwrap(),
        };
        let mut process = File::from(stdio.stdout.unwrap());
        process.write_all(b"all").unwrap();
        drop((process, stdio.stderr));
        let (out, err, ()) = tokio::join!(all(&stdout), all(&stderr), ends.finish());
        assert_eq!((&out[..], &err[..]), (&b"all"[..], &b""[..]));
    });
}

#[test]
fn a_process_whose_output_nobody_reads_runs_all_the_same() {
    run(async {
        let fifos = Fifos::new(false);
        let who = Who {
            namespace: "n",
            id: "c",
        };
        let opened = super::open(Process::Container, &fifos.paths, None, who, SOON).await;
        let (stdio, _ends) = opened.unwrap();
        let mut process = File::from(stdio.stdout.unwrap());
        process.write_all(b"kept").unwrap();
        drop((process, stdio.stderr));
        assert_eq!(all(&fifos.reader()).await, b"kept");
    });
}

/// Everything up to end of file.
async fn all(reader: &File) -> Vec<u8> {
    // A process's own end waits; a test that waits in read(2) has no deadline.
    rustix::io::ioctl_fionbio(reader, true).unwrap();
    let fd = watch(
        reader.try_clone().unwrap().into(),
        Interest::READABLE,
        "reader",
    )
    .unwrap();
    let mut bytes = Vec::new();
    let mut chunk = vec![0; 4096];
    loop {
        let n = fd
            .async_io(Interest::READABLE, |fd| {
                Ok(rustix::io::read(fd, &mut *chunk)?)
            })
            .await
            .unwrap();
        if n == 0 {
            return bytes;
        }
        bytes.extend_from_slice(&chunk[..n]);
    }
}

fn is_blocking(fd: impl AsFd) -> bool {
    !fcntl_getfl(fd).unwrap().contains(OFlags::NONBLOCK)
}

#[test]
fn a_container_gets_blocking_ends_of_its_own_and_no_open_waits() {
    run(async {
        let fifos = Fifos::new(false);
        let (stdio, _ends) = container(&fifos.paths, None).unwrap();
        for end in [&stdio.stdin, &stdio.stdout, &stdio.stderr] {
            assert!(is_blocking(end.as_ref().unwrap()));
        }
    });
}

#[test]
fn an_empty_path_is_dev_null() {
    let (stdio, _) = container(&Paths::default(), None).unwrap();
    assert!(stdio.stdin.is_none() && stdio.stdout.is_none() && stdio.stderr.is_none());
}

#[test]
fn end_of_file_reaches_containerd_when_the_last_writer_is_gone() {
    run(async {
        let fifos = Fifos::new(false);
        let reader = fifos.reader();
        let (stdio, _ends) = container(&fifos.paths, None).unwrap();
        let mut process = File::from(stdio.stdout.unwrap());
        let mut child = process.try_clone().unwrap();
        process.write_all(b"one ").unwrap();
        drop(process);
        child.write_all(b"two").unwrap();
        drop(child);
        assert_eq!(all(&reader).await, b"one two");
    });
}

#[test]
fn a_restart_of_containerd_breaks_no_writer_and_loses_no_byte() {
    run(async {
        let fifos = Fifos::new(false);
        let first = fifos.reader();
        let (stdio, _ends) = container(&fifos.paths, None).unwrap();
        let mut process = File::from(stdio.stdout.unwrap());
        process.write_all(b"before").unwrap();
        let mut six = [0; 6];
        (&first).read_exact(&mut six).unwrap();
        drop(first);
        process.write_all(b"while away, ").unwrap();
        process.write_all(b"and the end").unwrap();
        drop(process);
        assert_eq!(all(&fifos.reader()).await, b"while away, and the end");
    });
}

#[test]
fn stdin_ends_only_after_close_io_and_containerd() {
    run(async {
        let fifos = Fifos::new(false);
        let (stdio, mut ends) = container(&fifos.paths, None).unwrap();
        let process = File::from(stdio.stdin.unwrap());
        fifos.writer().write_all(b"typed").unwrap();
        let reading = all(&process);
        tokio::pin!(reading);
        // containerd's end is closed, the shim's is not: no end of file.
        let early = timeout(Duration::from_millis(20), &mut reading).await;
        assert!(early.is_err(), "{early:?}");
        ends.close_stdin();
        ends.close_stdin();
        assert_eq!(reading.await, b"typed");
    });
}

#[test]
fn stdin_can_be_opened_anew_when_nobody_writes_any_more() {
    run(async {
        let fifos = Fifos::new(false);
        let (stdio, mut ends) = exec(&fifos.paths, None).unwrap();
        let stdin = File::from(stdio.stdin.unwrap());
        fifos.writer().write_all(b"typed").unwrap();
        ends.close_stdin();
        // The pump has ended: whoever wrote is gone before the process looks.
        while !ends.input.as_ref().unwrap().has_ended() {
            tokio::task::yield_now().await;
        }
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&stdin));
        // A fifo's open would wait here.
        let mut anew = open(&path, OFlags::RDONLY);
        let mut typed = String::new();
        anew.read_to_string(&mut typed).unwrap();
        assert_eq!(typed, "typed");
    });
}

#[test]
fn close_io_that_overtakes_start_closes_stdin_all_the_same() {
    run(async {
        let fifos = Fifos::new(false);
        let mut kept = Ends::default();
        kept.close_stdin();
        let (stdio, ends) = exec_without_output(&fifos);
        kept.open(ends);
        let process = File::from(stdio.stdin.unwrap());
        assert_eq!(all(&process).await, b"");
    });
}

fn exec_without_output(fifos: &Fifos) -> (Stdio, Ends) {
    let paths = Paths {
        stdin: fifos.paths.stdin.clone(),
        ..Paths::default()
    };
    exec(&paths, None).unwrap()
}

#[test]
fn an_execs_output_is_carried_whole() {
    run(async {
        let fifos = Fifos::new(false);
        let reader = fifos.reader();
        let (stdio, _ends) = exec(&fifos.paths, None).unwrap();
        assert!(is_blocking(stdio.stdout.as_ref().unwrap()));
        let mut process = File::from(stdio.stdout.unwrap());
        let sent: Vec<u8> = (0..1_000_000u32)
            .map(|n| u8::try_from(n % 251).unwrap())
            .collect();
        let copy = sent.clone();
        let writer = thread::spawn(move || process.write_all(&copy).unwrap());
        assert!(all(&reader).await == sent, "bytes differ");
        writer.join().unwrap();
    });
}

#[test]
fn delete_of_an_exec_ends_its_fifos_while_a_child_holds_the_pipe() {
    run(async {
        let fifos = Fifos::new(false);
        let reader = fifos.reader();
        let (stdio, ends) = exec(&fifos.paths, None).unwrap();
        let mut child = File::from(stdio.stdout.unwrap());
        child.write_all(b"last words").unwrap();
        ends.finish().await;
        assert_eq!(all(&reader).await, b"last words");
        assert_eq!(
            child.write(b"x").unwrap_err().kind(),
            std::io::ErrorKind::BrokenPipe
        );
    });
}

#[test]
fn delete_of_an_exec_waits_for_a_slow_reader_but_not_for_ever() {
    run(async {
        let fifos = Fifos::new(false);
        let reader = fifos.reader();
        let (stdio, ends) = exec(&fifos.paths, None).unwrap();
        let child = File::from(stdio.stdout.unwrap());
        rustix::fs::fcntl_setfl(&child, OFlags::NONBLOCK).unwrap();
        // Until the fifo and the pipe before it are full.
        let mut sent = 0;
        loop {
            match (&child).write(&[7; 4096]) {
                Ok(n) => sent += n,
                Err(_) if sent > 2 * 65_536 - 4096 => break,
                Err(_) => tokio::task::yield_now().await,
            }
        }
        let mut took = 0;
        let late = async {
            let mut chunk = [0; 8192];
            while took < sent - 65_536 {
                took += (&reader).read(&mut chunk).unwrap_or(0);
                tokio::task::yield_now().await;
            }
        };
        tokio::join!(ends.finish(), late);
        assert_eq!(took + all(&reader).await.len(), sent);

        let (stdio, ends) = exec(&fifos.paths, None).unwrap();
        let child = File::from(stdio.stdout.unwrap());
        rustix::fs::fcntl_setfl(&child, OFlags::NONBLOCK).unwrap();
        let mut sent = 0;
        loop {
            match (&child).write(&[7; 4096]) {
                Ok(n) => sent += n,
                Err(_) if sent > 2 * 65_536 - 4096 => break,
                Err(_) => tokio::task::yield_now().await,
            }
        }
        ends.finish_by(Instant::now() + Duration::from_millis(50))
            .await;
        assert_eq!(all(&reader).await.len(), 65_536);
    });
}

#[test]
fn what_is_no_fifo_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    let missing: PathBuf = dir.path().join("missing");
    let with = |stdout: &str| Paths {
        stdout: stdout.into(),
        ..Paths::default()
    };
    let e = with("ttrpc+unix:///run/x?streaming_id=a").check();
    assert_eq!(e.unwrap_err().kind(), berm_sys::Kind::NotSupported);
    let e = with("relative").check().unwrap_err();
    assert_eq!(e.kind(), berm_sys::Kind::InvalidArgument);
    for path in [file, missing] {
        let path = path.display().to_string();
        let e = container(&with(&path), None).unwrap_err();
        assert!(e.to_string().contains(&path), "{e}");
        assert_eq!(e.kind(), berm_sys::Kind::InvalidArgument);
    }
}

#[test]
fn stdio_belongs_to_the_ids_that_the_options_name() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    run(async {
        let fifos = Fifos::new(false);
        let (stdio, _ends) = exec(&fifos.paths, Some((1_000_000, 1_000_001))).unwrap();
        for fd in [stdio.stdin.unwrap(), stdio.stdout.unwrap()] {
            let stat = rustix::fs::fstat(&fd).unwrap();
            assert_eq!((stat.st_uid, stat.st_gid), (1_000_000, 1_000_001));
        }
    });
}

/// A pty as the sandbox makes it: the master does not block.
fn pty() -> (OwnedFd, File) {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let master = openpt(flags).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let name = ptsname(&master, Vec::new()).unwrap();
    rustix::fs::fcntl_setfl(&master, OFlags::RDWR | OFlags::NONBLOCK).unwrap();
    let slave = open(name.to_str().unwrap(), OFlags::RDWR | OFlags::NOCTTY);
    (master, slave)
}

#[test]
fn a_terminals_output_ends_when_the_last_process_has_closed_it() {
    run(async {
        let fifos = Fifos::new(true);
        let reader = fifos.reader();
        let (stdio, mut ends) = container(&fifos.paths, None).unwrap();
        assert!(stdio.stdout.is_none() && stdio.stdin.is_none());
        let (master, mut slave) = pty();
        ends.attach(Some(master)).unwrap();
        slave.write_all(b"hello\n").unwrap();
        drop(slave);
        assert_eq!(all(&reader).await, b"hello\r\n");
        ends.finish().await;
    });
}

#[test]
fn a_terminal_gets_input_and_a_size() {
    run(async {
        let fifos = Fifos::new(true);
        let (_stdio, mut ends) = exec(&fifos.paths, None).unwrap();
        let (master, slave) = pty();
        ends.attach(Some(master)).unwrap();
        fifos.writer().write_all(b"typed\n").unwrap();
        rustix::fs::fcntl_setfl(&slave, OFlags::RDWR | OFlags::NONBLOCK).unwrap();
        let mut line = [0; 16];
        let n = loop {
            match rustix::io::read(&slave, &mut line) {
                Ok(n) => break n,
                Err(_) => tokio::task::yield_now().await,
            }
        };
        assert_eq!(&line[..n], b"typed\n");
        ends.terminal().unwrap().resize(80, 24).unwrap();
        let size = tcgetwinsize(&slave).unwrap();
        assert_eq!((size.ws_col, size.ws_row), (80, 24));
    });
}

#[test]
fn the_end_of_input_hangs_up_a_terminal_after_its_output() {
    run(async {
        let fifos = Fifos::new(true);
        let reader = fifos.reader();
        let (_stdio, mut ends) = exec(&fifos.paths, None).unwrap();
        let (master, mut slave) = pty();
        ends.attach(Some(master)).unwrap();
        slave.write_all(b"prompt").unwrap();
        ends.close_stdin();
        assert_eq!(all(&reader).await, b"prompt");
        assert_eq!(slave.write(b"x").unwrap_err().raw_os_error(), Some(5));
        // After the hang-up there is nothing to resize, and that is no error.
        ends.terminal().unwrap().resize(1, 1).unwrap();
        ends.finish().await;
    });
}

#[test]
fn delete_of_an_exec_with_a_terminal_ends_its_fifo_while_a_child_holds_it() {
    run(async {
        let fifos = Fifos::new(true);
        let reader = fifos.reader();
        let (_stdio, mut ends) = exec(&fifos.paths, None).unwrap();
        let (master, mut slave) = pty();
        ends.attach(Some(master)).unwrap();
        slave.write_all(b"last words").unwrap();
        ends.finish().await;
        assert_eq!(all(&reader).await, b"last words");
    });
}
