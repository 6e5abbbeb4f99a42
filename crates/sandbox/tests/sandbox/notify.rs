//! SCMP_ACT_NOTIFY: an agent on the host answers system calls of a container.

use std::cell::RefCell;
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Instant;

use berm_sys::Kind;
use berm_testkit::cases::Case;
use libseccomp::{ScmpNotifReq, ScmpNotifResp, ScmpNotifRespFlags};
use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use serde_json::{Value, json};
use tokio::io::unix::AsyncFd;
use tokio::net::UnixListener;

use crate::container::Container;
use crate::world::{SOON, World, world};

pub(crate) const CASES: &[Case] = berm_testkit::cases![
    an_agent_answers_for_a_container_and_for_each_of_its_execs,
    calls_on_the_way_to_the_workload_may_be_notified_of,
    a_start_hook_is_notified_of_and_gets_no_descriptor,
    an_agent_that_goes_leaves_calls_unanswered,
    without_an_agent_the_process_does_not_start,
];

/// `ENOMEDIUM`, which nothing else here fails with.
const ENOMEDIUM: i32 = 123;

/// What an agent answers.
#[derive(Clone, Copy)]
enum Answer {
    Fail,
    Continue,
    /// It closes the listener.
    Go,
}

/// An agent, and the documents that came with each listener.
struct Agent {
    path: PathBuf,
    told: Rc<RefCell<Vec<Value>>>,
    serving: tokio::task::JoinHandle<()>,
}

impl Agent {
    fn new(w: &World, answer: Answer) -> Self {
        let path = w.dir.join(w.name("agent"));
        let socket = UnixListener::bind(&path).unwrap();
        let told = Rc::new(RefCell::new(Vec::new()));
        let to = Rc::clone(&told);
        let serving = tokio::task::spawn_local(async move {
            let mut all = tokio::task::JoinSet::new();
            loop {
                let (stream, _) = socket.accept().await.unwrap();
                stream.readable().await.unwrap();
                let stream: OwnedFd = stream.into_std().unwrap().into();
                rustix::io::ioctl_fionbio(&stream, false).unwrap();
                let (document, listener) = receive(&stream);
                to.borrow_mut().push(document);
                if !matches!(answer, Answer::Go) {
                    all.spawn_local(serve(listener, answer));
                }
            }
        });
        Self {
            path,
            told,
            serving,
        }
    }

    /// What it was told, once that is `count` documents. A process that makes no notified call
    /// waits for no agent: it may end before the agent has read of it.
    async fn told(&self, count: usize) -> Vec<Value> {
        let until = Instant::now() + SOON;
        while self.told.borrow().len() < count {
            assert!(Instant::now() < until, "{:?}", self.told.borrow());
            tokio::task::yield_now().await;
        }
        self.told.borrow().clone()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// A document with one descriptor, up to the end of the stream.
fn receive(stream: &OwnedFd) -> (Value, OwnedFd) {
    let (mut text, mut listener) = (Vec::new(), None);
    loop {
        let mut bytes = [0; 4096];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut iov = [IoSliceMut::new(&mut bytes)];
        let got = recvmsg(stream, &mut iov, &mut control, RecvFlags::CMSG_CLOEXEC).unwrap();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                for fd in fds {
                    assert!(listener.replace(fd).is_none(), "one descriptor");
                }
            }
        }
        if got.bytes == 0 {
            return (serde_json::from_slice(&text).unwrap(), listener.unwrap());
        }
        text.extend(&bytes[..got.bytes]);
    }
}

async fn serve(listener: OwnedFd, answer: Answer) {
    struct Raw(OwnedFd);
    impl AsRawFd for Raw {
        fn as_raw_fd(&self) -> RawFd {
            self.0.as_fd().as_raw_fd()
        }
    }
    #[allow(deprecated)]
    let listener = AsyncFd::new(Raw(listener)).unwrap();
    while let Ok(mut ready) = listener.readable().await {
        let fd = listener.as_raw_fd();
        let events = rustix::event::PollFlags::IN;
        let mut polled = [rustix::event::PollFd::new(&listener.get_ref().0, events)];
        let now = rustix::event::Timespec::default();
        match rustix::event::poll(&mut polled, Some(&now)) {
            Ok(0) | Err(Errno::INTR) => {
                ready.clear_ready();
                continue;
            }
            polled => drop(polled.unwrap()),
        }
        if !polled[0].revents().contains(events) {
            // No process has the filter any more.
            return;
        }
        // One that was interrupted is gone when it is asked for.
        let Ok(request) = ScmpNotifReq::receive(fd) else {
            continue;
        };
        let none = ScmpNotifRespFlags::empty();
        let response = match answer {
            Answer::Continue => ScmpNotifResp::new_continue(request.id, none),
            _ => ScmpNotifResp::new_error(request.id, -ENOMEDIUM, none),
        };
        let _ = response.respond(fd);
        ready.clear_ready();
    }
}

fn profile<'p>(container: Container<'p>, agent: &std::path::Path, names: &[&str]) -> Container<'p> {
    container.set(
        "/linux/seccomp",
        json!({"defaultAction": "SCMP_ACT_ALLOW",
            "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
            "listenerPath": agent, "listenerMetadata": "of the test",
            "flags": ["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV", "SECCOMP_FILTER_FLAG_LOG"],
            "syscalls": [{"names": names, "action": "SCMP_ACT_NOTIFY"}]}),
    )
}

const MKDIR: &[&str] = &["mkdir", "mkdirat"];

fn an_agent_answers_for_a_container_and_for_each_of_its_execs() {
    for no_new_privs in [false, true] {
        world(async |w| {
            let pod = w.pod().await;
            let agent = Agent::new(w, Answer::Fail);
            let container = pod.sh("mkdir /tmp/x; echo made; exec sleep 1000");
            let mut container = profile(container, &agent.path, MKDIR);
            container.spec["process"]["noNewPrivileges"] = json!(no_new_privs);
            container.spec["annotations"]["who"] = json!("me");
            let mut made = container.run().await;
            assert!(made.line().await.contains("No medium found"));
            assert_eq!(made.line().await, "made");
            let (_, text) = made.exec_sh("mkdir /tmp/y").await;
            assert!(text.contains("No medium found"), "{text}");
            let told = agent.told(2).await;
            let [first, exec] = &told[..] else {
                panic!("{told:?}")
            };
            for document in [first, exec] {
                assert_eq!(document["ociVersion"], "1.2.0");
                assert_eq!(document["fds"], json!(["seccompFd"]));
                assert_eq!(document["metadata"], "of the test");
                assert_eq!(document["state"]["id"], made.id.as_str());
                assert_eq!(document["state"]["pid"], made.pid);
                assert_eq!(document["state"]["bundle"], json!(w.dir));
                assert_eq!(document["state"]["annotations"]["who"], "me");
            }
            assert_eq!(
                (&first["pid"], &first["state"]["status"]),
                (&json!(made.pid), &json!("created"))
            );
            assert_eq!(exec["state"]["status"], "running");
            assert_ne!(exec["pid"], made.pid);
            made.end().await;
        });
    }
}

fn calls_on_the_way_to_the_workload_may_be_notified_of() {
    world(async |w| {
        let pod = w.pod().await;
        let agent = Agent::new(w, Answer::Continue);
        let names = [
            "read", "close", "execve", "openat", "mmap", "brk", "sendmsg",
        ];
        let container = profile(pod.sh("cat /etc/group | head -n 1"), &agent.path, &names);
        assert_eq!(container.output().await, (0, "root:x:0:\n".into()));
    });
}

fn a_start_hook_is_notified_of_and_gets_no_descriptor() {
    world(async |w| {
        let pod = w.pod().await;
        let agent = Agent::new(w, Answer::Fail);
        let script = "ls /proc/self/fd > /tmp/fds; mkdir /tmp/x 2> /tmp/said; true";
        let hook = json!({"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/bin"]});
        let container = pod
            .sh("cat /tmp/fds /tmp/said")
            .set("/hooks/startContainer", json!([hook]));
        let (status, text) = profile(container, &agent.path, MKDIR).output().await;
        assert!(
            text.starts_with("0\n1\n2\n3\n") && text.contains("No medium found"),
            "{text}"
        );
        assert_eq!((status, agent.told(2).await.len()), (0, 2));
    });
}

fn an_agent_that_goes_leaves_calls_unanswered() {
    world(async |w| {
        let pod = w.pod().await;
        let agent = Agent::new(w, Answer::Go);
        let container = pod.sh("mkdir /tmp/x; echo on");
        let (_, text) = profile(container, &agent.path, MKDIR).output().await;
        assert!(
            text.contains("Function not implemented") && text.ends_with("on\n"),
            "{text}"
        );
    });
}

fn without_an_agent_the_process_does_not_start() {
    world(async |w| {
        let pod = w.pod().await;
        let gone = w.dir.join("no-agent");
        let error = profile(pod.sh("echo ran"), &gone, MKDIR).refused().await;
        assert_eq!(error.kind(), Kind::NotFound);
        let want = format!("linux.seccomp.listenerPath {gone:?}: connect(): No such file");
        assert!(error.to_string().starts_with(&want), "{error}");
        let agent = Agent::new(w, Answer::Fail);
        let container = pod.container(&["/bin/sleep", "1000"]);
        let made = profile(container, &agent.path, MKDIR).run().await;
        let path = agent.path.clone();
        drop(agent);
        std::fs::remove_file(path).unwrap();
        let exec = crate::container::process(&["/bin/true"]);
        let error = made.exec_of(&exec).await.unwrap_err();
        assert!(
            error.to_string().starts_with("linux.seccomp.listenerPath"),
            "{error}"
        );
        made.end().await;
    });
}
