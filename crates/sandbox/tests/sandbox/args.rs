//! What few callers ask for: that a sandbox dies with them, that a process is given files, that its
//! terminal goes to a socket, that its user is told why it cannot run.

use std::fs::{File, Permissions};
use std::io::{IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use berm_sandbox::{
    Args, Config, ConsoleSocket, Donated, Error, PassFile, Record, UserLog, sweep_dead,
};
use berm_sys::Kind;
use berm_testkit::cases::Case;
use rustix::fs::{CWD, Mode, OFlags, fcntl_getfl, openat};
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::pty::{OpenptFlags, openpt};
use serde_json::json;

use crate::container::process;
use crate::dead::{MINUTE, Shim, assert_dead, clean, fill};
use crate::world::{NAMESPACE, Place, Pod, SOON, World, world, world_with};

pub(crate) const CASES: &[Case] = berm_testkit::cases![
    every_process_of_an_attached_sandbox_dies_with_its_caller_and_a_sweep_removes_the_rest,
    an_attached_sandbox_whose_caller_is_killed_at_any_moment_leaves_no_process,
    a_sandbox_that_is_not_attached_outlives_its_caller,
    a_pod_without_a_pid_namespace_of_its_own_cannot_be_attached,
    a_container_finds_the_files_it_is_passed_under_their_numbers_and_no_others,
    an_exec_finds_the_files_it_is_passed_under_their_numbers_and_no_others,
    files_change_places_without_one_being_lost,
    a_file_that_is_passed_as_a_stream_twice_or_beyond_the_limit_is_refused,
    a_process_that_fails_to_start_keeps_no_file_that_it_was_passed,
    the_program_is_the_file_that_is_donated_and_its_first_argument_as_given,
    a_donated_program_is_closed_when_it_runs_and_leaves_passed_files_their_numbers,
    a_script_cannot_be_a_donated_program_and_its_interpreter_can,
    what_cannot_be_executed_is_refused_as_a_donated_program,
    the_terminal_of_a_container_goes_to_the_console_socket_as_runc_sends_it,
    the_terminal_of_an_exec_goes_to_the_console_socket_as_runc_sends_it,
    a_console_socket_without_a_terminal_or_without_a_listener_is_refused,
    a_console_socket_that_takes_no_connection_is_given_up_at_the_deadline,
    a_terminal_for_somebody_who_has_gone_is_refused,
    the_record_keeps_the_oom_score_that_pid_1_was_born_with,
    a_root_and_mounts_that_are_donated_are_shown_whatever_the_spec_calls_them,
    a_donated_mount_that_is_attached_nowhere_is_shown,
    a_donated_file_of_no_bind_mount_is_refused,
    the_mounts_of_a_container_are_told_with_the_paths_that_they_have,
    a_mounts_file_that_takes_nothing_fails_the_container_and_leaves_nothing,
    why_something_cannot_run_is_told_to_the_user_in_a_line_each,
    a_cri_pod_tells_its_user_in_its_log_directory_if_the_node_says_so,
    a_log_of_a_pod_is_written_to_nothing_that_somebody_has_put_in_its_place,
    a_user_log_that_takes_nothing_holds_nobody_up_beyond_the_deadline,
];

async fn attached(w: &World) -> Result<Pod<'_>, Error> {
    let spec = w.sandbox_spec("pod1");
    w.sandbox_of("pod1", &spec, |args| args.attached = true)
        .await
}

fn every_process_of_an_attached_sandbox_dies_with_its_caller_and_a_sweep_removes_the_rest() {
    let place = Place::new();
    let config = place.config();
    let shim = Shim::start(&place, async |w| {
        let pod = attached(w).await.unwrap();
        pod.sandbox.start("pod1").await.unwrap();
        fill(pod).await;
    });
    assert!(shim.wait(MINUTE));
    assert_eq!(
        sweep_dead(&config, NAMESPACE).unwrap(),
        Vec::<String>::new()
    );
    shim.kill();
    // Nobody cleans up: the kernel alone has ended them, the paused ones too.
    assert_dead();
    assert_eq!(sweep_dead(&config, NAMESPACE).unwrap(), ["pod1"]);
    assert_eq!(
        sweep_dead(&config, NAMESPACE).unwrap(),
        Vec::<String>::new()
    );
    place.assert_clean(&config.state_dir);
}

fn an_attached_sandbox_whose_caller_is_killed_at_any_moment_leaves_no_process() {
    const ROUNDS: u32 = 40;
    let mut whole = MINUTE;
    for round in 0..ROUNDS {
        let place = Place::new();
        let begin = Instant::now();
        let shim = Shim::start(&place, async |w| {
            let pod: &Pod<'_> = Box::leak(Box::new(attached(w).await.unwrap()));
            let c = pod.container(&["/bin/sleep", "1000"]).create().await;
            std::mem::forget(c);
        });
        // The first is killed at its end; the others at moments spread over its time.
        if round == 0 {
            assert!(shim.wait(MINUTE));
            whole = begin.elapsed();
        } else {
            shim.wait(whole * round / ROUNDS);
        }
        shim.kill();
        assert_dead();
        clean(&place.config(), "pod1");
        clean(&place.config(), "c1");
        place.assert_clean(&place.config().state_dir);
    }
}

fn a_sandbox_that_is_not_attached_outlives_its_caller() {
    let place = Place::new();
    let shim = Shim::start(&place, async |w| std::mem::forget(w.pod().await));
    assert!(shim.wait(MINUTE));
    shim.kill();
    let record = Record::load(&place.config().state_dir, NAMESPACE, "pod1").unwrap();
    assert!(record.init().is_alive());
    assert!(clean(&place.config(), "pod1"));
    assert_dead();
    place.assert_clean(&place.config().state_dir);
}

fn a_pod_without_a_pid_namespace_of_its_own_cannot_be_attached() {
    world(async |w| {
        let mut spec = w.sandbox_spec("pod1");
        let list = spec["linux"]["namespaces"].as_array_mut().unwrap();
        list.retain(|entry| entry["type"] != "pid");
        let made = w
            .sandbox_of("pod1", &spec, |args| args.attached = true)
            .await;
        let error = made.err().unwrap();
        assert_eq!(error.kind(), Kind::NotSupported);
        assert!(error.to_string().starts_with("attached: "), "{error}");
    });
}

/// Names every file that the shell has open, by a process of its own.
const FILES: &str = "ls /proc/$$/fd; true";

/// A pipe whose write end goes to a process.
fn told() -> (File, OwnedFd) {
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).unwrap();
    (File::from(reader), writer)
}

/// All that was written until the last writer closed.
fn all(mut reader: File) -> String {
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    text
}

fn pass(guest: i32, file: impl Into<OwnedFd>) -> PassFile {
    let file = file.into();
    PassFile { guest, file }
}

fn numbers(text: &str) -> Vec<i32> {
    let mut all: Vec<i32> = text.lines().map(|line| line.parse().unwrap()).collect();
    all.sort_unstable();
    all
}

fn a_container_finds_the_files_it_is_passed_under_their_numbers_and_no_others() {
    world(async |w| {
        let pod = w.pod().await;
        let file = w.dir.join("file");
        std::fs::write(&file, "of the host\n").unwrap();
        let (hears, says) = told();
        let script = format!("cat <&9 >&3; {FILES}");
        let container = pod.sh(&script).user(1000).donate(|donated| {
            let read = File::open(&file).unwrap();
            donated.pass_files = vec![pass(9, read), pass(3, says)];
        });
        let (status, text) = container.output().await;
        assert_eq!((status, numbers(&text)), (0, vec![0, 1, 2, 3, 9]));
        assert_eq!(all(hears), "of the host\n");
    });
}

fn an_exec_finds_the_files_it_is_passed_under_their_numbers_and_no_others() {
    world(async |w| {
        let pod = w.pod().await;
        let c = pod.container(&["/bin/sleep", "1000"]).run().await;
        let (hears, says) = told();
        let script = format!("echo said >&70; {FILES}");
        let donated = Donated {
            pass_files: vec![pass(70, says)],
            ..Donated::default()
        };
        let p = process(&["/bin/sh", "-c", &script]);
        let (status, text) = c.exec_with(&p, donated).await.unwrap();
        assert_eq!((status, numbers(&text)), (0, vec![0, 1, 2, 70]));
        assert_eq!(all(hears), "said\n");
        let (_, text) = c.exec_sh(FILES).await;
        assert_eq!(numbers(&text), [0, 1, 2], "the next one has none of it");
        c.end().await;
    });
}

/// The numbers that they have are the ones that others shall have.
fn files_change_places_without_one_being_lost() {
    world(async |w| {
        let pod = w.pod().await;
        let c = pod.container(&["/bin/sleep", "1000"]).run().await;
        let files: Vec<File> = (0..12)
            .map(|n| {
                let path = w.dir.join(format!("file{n}"));
                std::fs::write(&path, format!("{n}\n")).unwrap();
                File::open(path).unwrap()
            })
            .collect();
        let guests: Vec<i32> = files.iter().rev().map(AsRawFd::as_raw_fd).collect();
        let script = "for n; do cat /proc/$$/fd/$n; done";
        let mut args = vec![
            "/bin/sh".to_owned(),
            "-c".into(),
            script.into(),
            "sh".into(),
        ];
        args.extend(guests.iter().map(ToString::to_string));
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let donated = |files: Vec<File>| Donated {
            pass_files: guests.iter().zip(files).map(|(n, f)| pass(*n, f)).collect(),
            ..Donated::default()
        };
        let copies = files.iter().map(|f| f.try_clone().unwrap()).collect();
        let want: String = (0..12).map(|n| format!("{n}\n")).collect();
        let ended = c.exec_with(&process(&args), donated(copies)).await;
        assert_eq!(ended.unwrap(), (0, want.clone()));
        let gated = pod.container(&args).donate(|d| *d = donated(files));
        assert_eq!(gated.output().await, (0, want));
        c.end().await;
    });
}

fn a_file_that_is_passed_as_a_stream_twice_or_beyond_the_limit_is_refused() {
    world(async |w| {
        let pod = w.pod().await;
        let c = pod.container(&["/bin/sleep", "1000"]).run().await;
        let null = || File::open("/dev/null").unwrap();
        let limit = json!([{"type": "RLIMIT_NOFILE", "soft": 64, "hard": 64}]);
        for (guests, want) in [
            (vec![1], "pass_files 1: is a standard stream"),
            (vec![-4], "pass_files -4: is no number"),
            (vec![8, 9, 8], "pass_files 8: is there twice"),
            (vec![64], "pass_files 64: "),
            (
                vec![i32::MAX],
                "pass_files 2147483647: is beyond RLIMIT_NOFILE",
            ),
        ] {
            let donated = || Donated {
                pass_files: guests.iter().map(|n| pass(*n, null())).collect(),
                ..Donated::default()
            };
            let of_container = pod.sh("true").set("/process/rlimits", limit.clone());
            let of_container = of_container.donate(|d| *d = donated()).refused().await;
            let mut p = process(&["/bin/true"]);
            p["rlimits"] = limit.clone();
            let of_exec = c.exec_with(&p, donated()).await.unwrap_err();
            for error in [of_container, of_exec] {
                assert!(error.chain().contains(want), "{}", error.chain());
                assert_eq!(error.kind(), Kind::InvalidArgument, "{}", error.chain());
            }
        }
        c.end().await;
    });
}

fn a_process_that_fails_to_start_keeps_no_file_that_it_was_passed() {
    world(async |w| {
        let pod = w.pod().await;
        let c = pod.container(&["/bin/sleep", "1000"]).run().await;
        let (hears, says) = told();
        let donated = Donated {
            pass_files: vec![pass(5, says)],
            ..Donated::default()
        };
        let failed = c.exec_with(&process(&["/no/such"]), donated).await;
        assert_eq!(failed.unwrap_err().kind(), Kind::NotFound);
        assert_eq!(all(hears), "");
        let (hears, says) = told();
        let refused = pod
            .container(&["/no/such"])
            .donate(|d| d.pass_files = vec![pass(5, says)]);
        assert_eq!(refused.refused().await.kind(), Kind::NotFound);
        assert_eq!(all(hears), "");
        c.end().await;
    });
}

/// A program that is in no container.
fn program(w: &World) -> PathBuf {
    let path = w.dir.join("program");
    std::fs::copy("/bin/busybox", &path).unwrap();
    path
}

fn run_by(file: &Path) -> Donated {
    Donated {
        exec_file: Some(File::open(file).unwrap().into()),
        ..Donated::default()
    }
}

fn the_program_is_the_file_that_is_donated_and_its_first_argument_as_given() {
    world(async |w| {
        let pod = w.pod().await;
        let file = program(w);
        let c = pod.container(&["/bin/sleep", "1000"]).run().await;
        // Nothing of these names is in the container.
        let args = ["/no/such/readlink", "/proc/self/exe"];
        let want = (0, format!("{}\n", file.display()));
        let of_container = pod.container(&args).user(1000);
        let of_container = of_container.donate(|d| *d = run_by(&file));
        assert_eq!(of_container.output().await, want);
        let mut p = process(&args);
        p["env"] = json!(["PATH=/nowhere"]);
        assert_eq!(c.exec_with(&p, run_by(&file)).await.unwrap(), want);
        // The home directory is found as ever.
        let p = process(&["sh", "-c", "echo $0 $HOME"]);
        let ended = c.exec_with(&p, run_by(&file)).await.unwrap();
        assert_eq!(ended, (0, "sh /root\n".into()));
        c.end().await;
    });
}

fn a_donated_program_is_closed_when_it_runs_and_leaves_passed_files_their_numbers() {
    world(async |w| {
        let pod = w.pod().await;
        let file = program(w);
        let c = pod.container(&["/bin/sleep", "1000"]).run().await;
        let open = File::open(&file).unwrap();
        let number = open.as_raw_fd();
        let script = format!("{FILES}; cat <&{number}");
        let args = ["sh", "-c", script.as_str()];
        let other = w.dir.join("other");
        std::fs::write(&other, "7777\n").unwrap();
        let donated = |exec_file: File| Donated {
            pass_files: vec![pass(number, File::open(&other).unwrap())],
            exec_file: Some(exec_file.into()),
            ..Donated::default()
        };
        let want = [0, 1, 2, number, 7777];
        let copy = open.try_clone().unwrap();
        let (status, text) = c.exec_with(&process(&args), donated(copy)).await.unwrap();
        assert_eq!((status, numbers(&text)), (0, want.to_vec()));
        let of_container = pod.container(&args).donate(|d| *d = donated(open));
        let (status, text) = of_container.output().await;
        assert_eq!((status, numbers(&text)), (0, want.to_vec()));
        c.end().await;
    });
}

fn a_script_cannot_be_a_donated_program_and_its_interpreter_can() {
    world(async |w| {
        let pod = w.pod().await;
        let c = pod.container(&["/bin/sleep", "1000"]).run().await;
        let script = w.dir.join("script");
        std::fs::write(&script, "#!/bin/sh\necho the script\n").unwrap();
        std::fs::set_permissions(&script, Permissions::from_mode(0o755)).unwrap();
        let of_container = pod.sh("true").donate(|d| *d = run_by(&script));
        let nothing = process(&["/bin/true"]);
        let of_exec = c.exec_with(&nothing, run_by(&script));
        for error in [of_container.refused().await, of_exec.await.unwrap_err()] {
            assert_eq!(error.kind(), Kind::NotSupported);
            assert!(error.chain().contains("exec_file: is a script"), "{error}");
        }
        // The kernel's own refusal, of one that cannot be looked into.
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let unread = openat(CWD, &script, flags, Mode::empty()).unwrap();
        let donated = Donated {
            exec_file: Some(unread),
            ..Donated::default()
        };
        let error = c.exec_with(&nothing, donated).await;
        let error = error.unwrap_err().chain();
        assert!(error.starts_with("exec_file: its interpreter"), "{error}");
        let mut by_number = run_by(&program(w));
        by_number.pass_files = vec![pass(3, File::open(&script).unwrap())];
        let p = process(&["sh", "/proc/self/fd/3"]);
        let ended = c.exec_with(&p, by_number).await.unwrap();
        assert_eq!(ended, (0, "the script\n".into()));
        c.end().await;
    });
}

fn what_cannot_be_executed_is_refused_as_a_donated_program() {
    world(async |w| {
        let pod = w.pod().await;
        let c = pod.container(&["/bin/sleep", "1000"]).run().await;
        let make = |name: &str, mode: u32| {
            let path = w.dir.join(name);
            std::fs::copy("/bin/busybox", &path).unwrap();
            std::fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            path
        };
        let text = make("text", 0o755);
        std::fs::write(&text, "no program").unwrap();
        let busy = make("busy", 0o755);
        let mut nothing = process(&["/bin/true"]);
        nothing["user"] = json!({"uid": 1000, "gid": 1000});
        // CAP_DAC_OVERRIDE would execute what is somebody else's.
        nothing["capabilities"] = json!({});
        let _writer = File::options().append(true).open(&busy).unwrap();
        for (file, want, kind) in [
            (w.dir.clone(), "is no regular file", Kind::InvalidArgument),
            (make("data", 0o644), "has no permission", Kind::Denied),
            (make("roots", 0o700), "permission denied", Kind::Denied),
            (text, "exec format error", Kind::InvalidArgument),
            (
                busy,
                "somebody has it open for writing",
                Kind::InvalidArgument,
            ),
        ] {
            let of_container = pod.sh("true").set("/process", nothing.clone());
            let of_container = of_container.donate(|d| *d = run_by(&file));
            let of_exec = c.exec_with(&nothing, run_by(&file));
            for error in [of_container.refused().await, of_exec.await.unwrap_err()] {
                let said = error.chain();
                assert!(said.contains(&format!("exec_file: {want}")), "{said}");
                assert_eq!(error.kind(), kind, "{said}");
            }
        }
        c.end().await;
    });
}

/// Somebody who waits for a terminal.
struct Console {
    path: PathBuf,
    listener: UnixListener,
}

impl Console {
    fn new(w: &World) -> Self {
        let path = w.dir.join("console.sock");
        let listener = UnixListener::bind(&path).unwrap();
        Self { path, listener }
    }

    fn ask(&self) -> Donated {
        Donated {
            console_socket: Some(self.path.clone()),
            ..Donated::default()
        }
    }

    /// The terminal and the name that came with it.
    fn terminal(self) -> (String, File) {
        std::fs::remove_file(&self.path).unwrap();
        let (stream, _) = self.listener.accept().unwrap();
        let mut bytes = [0; 64];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut iov = [IoSliceMut::new(&mut bytes)];
        let flags = RecvFlags::CMSG_CLOEXEC;
        let got = recvmsg(&stream, &mut iov, &mut control, flags).unwrap();
        let mut fds = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(more) = message {
                fds.extend(more);
            }
        }
        assert_eq!(fds.len(), 1);
        let mut rest = Vec::new();
        (&stream).read_to_end(&mut rest).unwrap();
        assert_eq!(rest, [0; 0], "one message and the end");
        let name = String::from_utf8_lossy(&bytes[..got.bytes]).into_owned();
        (name, File::from(fds.remove(0)))
    }
}

/// Reads a terminal until its other side hangs up.
fn shown(mut master: File) -> String {
    let mut text = Vec::new();
    let mut some = [0; 1024];
    loop {
        match master.read(&mut some) {
            Ok(len) => text.extend_from_slice(&some[..len]),
            Err(e) => {
                assert_eq!(e.raw_os_error(), Some(Errno::IO.raw_os_error()));
                return String::from_utf8(text).unwrap();
            }
        }
    }
}

/// Reads a line of the terminal, then says how large it is.
const AT_TERMINAL: &str = "read line; echo got $line; stty size; exit 3";

fn the_terminal_of_a_container_goes_to_the_console_socket_as_runc_sends_it() {
    world(async |w| {
        let pod = w.pod().await;
        let console = Console::new(w);
        let container = pod.sh(AT_TERMINAL).terminal(20, 50);
        let made = container.donate(|d| *d = console.ask()).create().await;
        let made = made.unwrap();
        assert!(made.terminal.is_none(), "it went to the socket");
        // It is there before the container is started.
        let (name, mut master) = console.terminal();
        assert_eq!(name, "/dev/ptmx");
        assert!(!fcntl_getfl(&master).unwrap().contains(OFlags::NONBLOCK));
        made.start().await.unwrap();
        master.write_all(b"hello\r").unwrap();
        assert_eq!(made.wait().await.status, 3);
        assert_eq!(shown(master), "hello\r\ngot hello\r\n20 50\r\n");
        made.delete().await.unwrap();
    });
}

fn the_terminal_of_an_exec_goes_to_the_console_socket_as_runc_sends_it() {
    world(async |w| {
        let pod = w.pod().await;
        let c = pod.container(&["/bin/sleep", "1000"]).run().await;
        let console = Console::new(w);
        let mut p = process(&["/bin/sh", "-c", AT_TERMINAL]);
        p["terminal"] = json!(true);
        p["consoleSize"] = json!({"height": 7, "width": 9});
        c.start_exec_with("e", &p, console.ask()).await.unwrap();
        let (name, mut master) = console.terminal();
        assert_eq!(name, "/dev/ptmx");
        master.write_all(b"hello\r").unwrap();
        let sandbox = &pod.sandbox;
        assert_eq!(sandbox.wait(&c.id, Some("e")).await.unwrap().status, 3);
        assert_eq!(shown(master), "hello\r\ngot hello\r\n7 9\r\n");
        sandbox.delete(&c.id, Some("e")).await.unwrap();
        c.end().await;
    });
}

fn a_console_socket_without_a_terminal_or_without_a_listener_is_refused() {
    world(async |w| {
        let pod = w.pod().await;
        let c = pod.container(&["/bin/sleep", "1000"]).run().await;
        let deaf = w.dir.join("deaf.sock");
        drop(UnixListener::bind(&deaf).unwrap());
        let packets = w.dir.join("packets.sock");
        let _datagrams = UnixDatagram::bind(&packets).unwrap();
        let long = w.dir.join("x".repeat(120));
        for (path, terminal, want, kind) in [
            (
                &deaf,
                false,
                "the process has no terminal",
                Kind::InvalidArgument,
            ),
            (
                &deaf,
                true,
                "connect(): Connection refused",
                Kind::Unavailable,
            ),
            (
                &w.dir.join("none"),
                true,
                "connect(): No such file",
                Kind::NotFound,
            ),
            (
                &packets,
                true,
                "connect(): Protocol wrong type",
                Kind::InvalidArgument,
            ),
            (
                &long,
                true,
                "sockaddr_un: File name too long",
                Kind::InvalidArgument,
            ),
        ] {
            let donated = || Donated {
                console_socket: Some(path.clone()),
                ..Donated::default()
            };
            let mut container = pod.sh("true").donate(|d| *d = donated());
            let mut p = process(&["/bin/true"]);
            if terminal {
                container = container.terminal(1, 1);
                p["terminal"] = json!(true);
            }
            let of_exec = c.exec_with(&p, donated()).await.unwrap_err();
            for error in [container.refused().await, of_exec] {
                let said = error.chain();
                assert!(said.contains(want), "{said}");
                assert!(said.starts_with("console_socket \"/"), "{said}");
                assert_eq!(error.kind(), kind, "{said}");
            }
        }
        c.end().await;
    });
}

fn a_console_socket_that_takes_no_connection_is_given_up_at_the_deadline() {
    let soon = |config: &mut Config| config.stage_deadline = Duration::from_secs(3);
    world_with(soon, async |w| {
        let pod = w.pod().await;
        let console = Console::new(w);
        // With no room in its queue the next one waits.
        rustix::net::listen(&console.listener, 0).unwrap();
        let _first = UnixStream::connect(&console.path).unwrap();
        let container = pod.sh("true").terminal(1, 1);
        let error = container.donate(|d| *d = console.ask()).refused().await;
        assert_eq!(error.kind(), Kind::DeadlineExceeded, "{error}");
        let want = "nobody took the connection within 3 s";
        assert!(error.chain().contains(want), "{error}");
    });
}

fn a_terminal_for_somebody_who_has_gone_is_refused() {
    world(async |w| {
        let console = Console::new(w);
        let socket = ConsoleSocket::connect(&console.path, MINUTE).await.unwrap();
        drop(console);
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC);
        let error = socket.send(master.unwrap()).unwrap_err();
        assert_eq!(error.kind(), Kind::Unavailable);
        assert!(error.to_string().contains("console.sock"), "{error}");
    });
}

fn to_user(args: &mut Args, file: OwnedFd) {
    args.user_log = Some(UserLog::File(file));
}

/// The lines of a log without their times, which are in order.
fn told_user(path: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(path).unwrap();
    assert!(text.is_empty() || text.ends_with('\n'), "{text:?}");
    let lines = text.lines().map(|line| line.split_once(' ').unwrap());
    let (times, lines): (Vec<&str>, Vec<&str>) = lines.unzip();
    let year = |time: &&str| time.len() == "1970-01-01T00:00:00.000Z".len() && time.ends_with('Z');
    assert!(times.iter().all(year) && times.is_sorted(), "{times:?}");
    lines.into_iter().map(str::to_owned).collect()
}

fn why_something_cannot_run_is_told_to_the_user_in_a_line_each() {
    world(async |w| {
        let path = w.dir.join("user.log");
        let log = || File::options().append(true).create(true).open(&path);
        let spec = w.sandbox_spec("pod1");
        let pod = w.sandbox_of("pod1", &spec, |args| to_user(args, log().unwrap().into()));
        let pod = pod.await.unwrap();
        pod.sandbox.start("pod1").await.unwrap();
        let c = pod.container(&["/bin/sleep", "1000"]).run().await;
        let refused = pod.sh("true").set("/hostname", json!("another"));
        let text = pod.container(&["/text"]);
        std::fs::write(text.root.join("text"), "no program").unwrap();
        let mode = Permissions::from_mode(0o755);
        std::fs::set_permissions(text.root.join("text"), mode).unwrap();
        let ids = [refused.id.clone(), text.id.clone(), c.id.clone()];
        let said = [
            refused.refused().await.chain(),
            text.refused().await.chain(),
            c.exec_of(&process(&["/no\nsuch"]))
                .await
                .unwrap_err()
                .chain(),
        ];
        // What is only called at a wrong time is none of the user's.
        assert!(pod.sandbox.start(&c.id).await.is_err());
        assert!(pod.sandbox.start("unknown").await.is_err());
        let line = |what: &str, n: usize| {
            let why = said[n].replace('\n', "\\n");
            format!("{what} container {:?} failed: {why}", ids[n])
        };
        let mut want = vec![line("create", 0), line("start", 1), line("exec in", 2)];
        assert_eq!(told_user(&path), want);
        // A refusal of an exec is told although nobody waits for it.
        let mut p = process(&["/bin/true"]);
        p["oomScoreAdj"] = json!(5000);
        let refused = c.exec_of(&p).await.unwrap_err().chain();
        want.push(format!("exec in container {:?} failed: {refused}", c.id));
        let until = Instant::now() + SOON;
        while told_user(&path).len() < want.len() {
            assert!(Instant::now() < until);
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(told_user(&path), want);
        c.end().await;
    });
}

/// A pod whose log directory is `logs`.
fn logging(w: &World, id: &str, logs: &Path) -> serde_json::Value {
    let mut spec = w.sandbox_spec(id);
    spec["annotations"]["io.kubernetes.cri.sandbox-log-directory"] = json!(logs);
    spec
}

fn a_cri_pod_tells_its_user_in_its_log_directory_if_the_node_says_so() {
    world_with(
        |config| config.user_log = true,
        async |w| {
            let logs = w.dir("logs");
            let log = logs.join("berm.log");
            let pod = w.sandbox("pod1", &logging(w, "pod1", &logs)).await.unwrap();
            pod.sandbox.start("pod1").await.unwrap();
            assert_eq!(pod.sh("exit 3").output().await.0, 3);
            assert!(!log.exists(), "there was nothing to tell");
            let name = "/annotations/io.kubernetes.cri.container-name";
            let named = pod.container(&["/no/such"]);
            let id = named.id.clone();
            named.set(name, json!("web")).refused().await;
            let mut bad = logging(w, "pod2", &logs);
            bad["hostname"] = json!("x".repeat(65));
            assert!(w.sandbox("pod2", &bad).await.is_err());
            let told = told_user(&log);
            assert_eq!(told.len(), 2, "{told:?}");
            let want = "stat /no/such: no such file or directory";
            assert!(told[0].ends_with(want), "{told:?}");
            let want = format!("create container \"web\" ({id}) failed: ");
            assert!(told[0].starts_with(&want), "{told:?}");
            let want = "create sandbox \"pod2\" failed: hostname: ";
            assert!(told[1].starts_with(want), "{told:?}");
            assert_eq!(log.metadata().unwrap().permissions().mode() & 0o027, 0);
            let relative = logging(w, "pod3", Path::new("logs"));
            let error = w.sandbox("pod3", &relative).await.err().unwrap();
            assert_eq!(error.kind(), Kind::InvalidArgument, "{error}");
        },
    );
    world(async |w| {
        let logs = w.dir("logs");
        let pod = w.sandbox("pod1", &logging(w, "pod1", &logs)).await.unwrap();
        pod.sandbox.start("pod1").await.unwrap();
        pod.container(&["/no/such"]).refused().await;
        assert!(!logs.join("berm.log").exists(), "the default is off");
    });
}

fn a_log_of_a_pod_is_written_to_nothing_that_somebody_has_put_in_its_place() {
    world_with(
        |config| config.user_log = true,
        async |w| {
            let logs = w.dir("logs");
            let victim = w.dir.join("victim");
            std::fs::write(&victim, "kept").unwrap();
            let log = logs.join("berm.log");
            let pod = w.sandbox("pod1", &logging(w, "pod1", &logs)).await.unwrap();
            pod.sandbox.start("pod1").await.unwrap();
            let link = || std::os::unix::fs::symlink(&victim, &log);
            let second = || std::fs::hard_link(&victim, &log);
            for put in [&link as &dyn Fn() -> std::io::Result<()>, &second] {
                put().unwrap();
                let error = pod.container(&["/no/such"]).refused().await;
                assert_eq!(error.kind(), Kind::NotFound, "{error}");
                assert_eq!(std::fs::read_to_string(&victim).unwrap(), "kept");
                std::fs::remove_file(&log).unwrap();
            }
        },
    );
}

fn a_user_log_that_takes_nothing_holds_nobody_up_beyond_the_deadline() {
    let soon = |config: &mut Config| config.stage_deadline = Duration::from_secs(3);
    world_with(soon, async |w| {
        let (_reader, writer) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        rustix::io::ioctl_fionbio(&writer, true).unwrap();
        while rustix::io::write(&writer, &[b'x'; 4096]).is_ok() {}
        rustix::io::ioctl_fionbio(&writer, false).unwrap();
        let spec = w.sandbox_spec("pod1");
        let pod = w.sandbox_of("pod1", &spec, |args| to_user(args, writer));
        let pod = pod.await.unwrap();
        pod.sandbox.start("pod1").await.unwrap();
        let error = pod.container(&["/no/such"]).refused().await;
        assert_eq!(error.kind(), Kind::NotFound, "its own error: {error}");
        assert_eq!(pod.sh("exit 3").output().await.0, 3);
    });
}

fn the_mounts_of_a_container_are_told_with_the_paths_that_they_have() {
    world(async |w| {
        let pod = w.pod().await;
        let real = w.dir("real");
        let link = w.dir.join("link");
        std::os::unix::fs::symlink(&real, &link).unwrap();
        let (hears, says) = told();
        let covered = w.dir("covered");
        let container = pod
            .sh("exit 3")
            .mount("/linked/inside", "bind", &link, &["rbind", "ro"])
            .mount("/absolute", "tmpfs", Path::new("tmpfs"), &["size=64k"])
            .mount("/over/covered", "bind", &covered, &["bind"])
            .mount("/over", "tmpfs", Path::new("tmpfs"), &[])
            .mounts_file(says);
        let root = container.root.clone();
        for (name, to) in [("linked", "var/to"), ("absolute", "/run/here")] {
            std::os::unix::fs::symlink(to, root.join(name)).unwrap();
        }
        std::fs::create_dir_all(root.join("var/to")).unwrap();
        std::fs::create_dir_all(root.join("run/here")).unwrap();
        let given = container.spec["mounts"].clone();
        let made = container.create().await.unwrap();
        // All of it is there once the container is created.
        let text = all(hears);
        let mut want = given.as_array().unwrap().clone();
        let last = want.len() - 4;
        want[last]["destination"] = json!("/var/to/inside");
        want[last]["source"] = json!(real);
        want[last + 1]["destination"] = json!("/run/here");
        let told: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap();
        assert_eq!(told, want);
        // And it is true.
        let mounted = std::fs::read_to_string(format!("/proc/{}/mountinfo", made.pid)).unwrap();
        for entry in &told {
            let path = entry["destination"].as_str().unwrap();
            let is = mounted.contains(&format!(" {path} "));
            assert!(
                is || path.starts_with("/sys/fs/cgroup"),
                "{path}: {mounted}"
            );
        }
        made.start().await.unwrap();
        assert_eq!(made.wait().await.status, 3);
        made.delete().await.unwrap();
    });
}

fn a_mounts_file_that_takes_nothing_fails_the_container_and_leaves_nothing() {
    world(async |w| {
        let pod = w.pod().await;
        let unwritable = File::open("/dev/null").unwrap();
        let error = pod.sh("true").mounts_file(unwritable).refused().await;
        let want = "MountsFile: write(mounts_file)";
        assert!(error.chain().contains(want), "{}", error.chain());
        let full = File::options().write(true).open("/dev/full").unwrap();
        let error = pod.sh("true").mounts_file(full).refused().await;
        assert_eq!(error.kind(), Kind::Unavailable, "{}", error.chain());
    });
}

fn the_record_keeps_the_oom_score_that_pid_1_was_born_with() {
    world(async |w| {
        let score = |of: &str| std::fs::read_to_string(format!("/proc/{of}/oom_score_adj"));
        // Higher is for everybody; the test has a process of its own.
        std::fs::write("/proc/self/oom_score_adj", "321").unwrap();
        let pod = w
            .pod_with(|spec| spec["process"]["oomScoreAdj"] = json!(654))
            .await;
        assert_eq!(score(&pod.init().to_string()).unwrap(), "654\n");
        let path = w.host.config().state_dir.join(NAMESPACE).join(pod.id());
        let record = std::fs::read_to_string(path.join("sandbox.json")).unwrap();
        let record: serde_json::Value = serde_json::from_str(&record).unwrap();
        assert_eq!(record["originalOomScoreAdj"], 321);
    });
}

fn by_path(path: &Path) -> OwnedFd {
    openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap()
}

fn a_root_and_mounts_that_are_donated_are_shown_whatever_the_spec_calls_them() {
    world(async |w| {
        let pod = w.pod().await;
        let (dir, file) = (w.dir("dir"), w.dir.join("file"));
        std::fs::write(dir.join("word"), "of the directory\n").unwrap();
        std::fs::write(&file, "of the file\n").unwrap();
        let none = Path::new("/no/such/source");
        let script = "test -e /kernel/mm || echo none; cat /dir/word /file; stat -c %u /dir/word; echo x > /dir/new; \
            echo x 2>/dev/null > /file || ls /proc/$$/fd; true";
        let (hears, says) = told();
        let mut container = pod
            .sh(script)
            .mount("/dir", "bind", none, &["rbind"])
            .source(false, by_path(&dir))
            .mount("/file", "bind", none, &["bind", "ro"])
            .source(false, by_path(&file))
            // Of a file system that is put together mount by mount.
            .mount("/kernel", "bind", none, &["rbind"])
            .source(false, by_path(Path::new("/sys/kernel")))
            .mounts_file(says);
        let root = by_path(&container.root);
        container = container.source(true, root).set("/root/path", json!(none));
        let (status, text) = container.output().await;
        let want = "of the directory\nof the file\n0\n0\n1\n2\n";
        assert_eq!(
            (status, text.as_str()),
            (0, want),
            "ids, and no file left open"
        );
        assert_eq!(std::fs::read_to_string(dir.join("new")).unwrap(), "x\n");
        let told: serde_json::Value = serde_json::from_str(&all(hears)).unwrap();
        let sources: Vec<_> = told.as_array().unwrap().iter().rev().skip(1).collect();
        assert_eq!(sources[0]["source"], json!(file));
        assert_eq!(sources[1]["source"], json!(dir));
    });
}

fn a_donated_mount_that_is_attached_nowhere_is_shown() {
    world(async |w| {
        if !w.host.kernel().detached_layers {
            return;
        }
        let pod = w.pod().await;
        let dir = w.dir("dir");
        std::fs::write(dir.join("word"), "of the mount\n").unwrap();
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let detached = open_tree(CWD, &dir, flags).unwrap();
        let container = pod
            .sh("cat /mnt/word; stat -c %u /mnt/word")
            .mount("/mnt", "bind", Path::new("/no/such/source"), &["bind"])
            .source(false, detached);
        assert_eq!(container.output().await, (0, "of the mount\n0\n".into()));
    });
}

fn a_donated_file_of_no_bind_mount_is_refused() {
    world(async |w| {
        let pod = w.pod().await;
        let dir = w.dir("dir");
        let tmpfs = pod.sh("true").mount("/t", "tmpfs", Path::new("tmpfs"), &[]);
        let of_tmpfs = tmpfs.source(false, by_path(&dir));
        let mut beyond = pod.sh("true");
        let mounts = beyond.spec["mounts"].take();
        beyond = beyond.set("/mounts", mounts).source(false, by_path(&dir));
        beyond.spec["mounts"].as_array_mut().unwrap().pop();
        for container in [of_tmpfs, beyond] {
            let error = container.refused().await;
            assert_eq!(error.kind(), Kind::InvalidArgument, "{error}");
            assert!(error.to_string().starts_with("io_files["), "{error}");
        }
    });
}
