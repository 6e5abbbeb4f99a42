//! A process without free descriptors. One test: the limit is the whole process's.
#![allow(clippy::unwrap_used, clippy::expect_used)] // a test that cannot go on has failed
#![allow(dead_code)] // shares the fixture of the wire's tests and uses part of it

#[path = "wire/fixture.rs"]
mod fixture;

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use fixture::{Raw, Served, copies};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

#[test]
fn without_free_descriptors_the_server_refuses_and_recovers() {
    let served = Served::new();
    let mut held = served.raw();
    held.send(br#"{"method":"Test.Empty"}"#);
    held.reply();
    let waiting = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )
    .unwrap();
    // The lowest free number is the first that the limit forbids.
    let lowest = File::open("/dev/null").unwrap();
    let full = u64::try_from(lowest.as_raw_fd()).unwrap();
    let before = getrlimit(Resource::Nofile);
    drop(lowest);
    setrlimit(
        Resource::Nofile,
        Rlimit {
            current: Some(full),
            ..before
        },
    )
    .unwrap();

    rustix::net::connect(&waiting, &SocketAddrUnix::new(&served.path).unwrap()).unwrap();
    let mut waiting = Raw::over(UnixStream::from(waiting));
    waiting.send(br#"{"method":"Test.Empty"}"#);
    // A connection that is open is served; a descriptor that cannot be taken is not lost quietly.
    held.send(br#"{"method":"Test.Empty"}"#);
    assert_eq!(held.reply(), r#"{"success":true,"err":"","result":{}}"#);
    let stream = held.stream.try_clone();
    assert_eq!(stream.unwrap_err().raw_os_error(), Some(24));
    held.send_fds(br#"{"method":"Test.Count"}"#, &copies(&waiting.stream, 1));
    // Its end frees a number for the one that waits.
    held.is_refused("InvalidArgument", "too many files");
    assert_eq!(waiting.reply(), r#"{"success":true,"err":"","result":{}}"#);
    setrlimit(Resource::Nofile, before).unwrap();
    served.is_well();
}
