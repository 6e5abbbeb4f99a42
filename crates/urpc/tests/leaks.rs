//! No misbehaviour of a client leaves a descriptor behind. One test: it counts the process's own.
#![allow(clippy::unwrap_used, clippy::expect_used)] // a test that cannot go on has failed
#![allow(dead_code)] // shares the fixture of the wire's tests and uses part of it

#[path = "wire/fixture.rs"]
mod fixture;

use std::fs::File;
use std::net::Shutdown;
use std::time::Duration;

use berm_urpc::{Bounds, Client, Empty};
use fixture::{Served, copies};

fn open_fds() -> Vec<(String, String)> {
    let mut fds: Vec<_> = std::fs::read_dir("/proc/self/fd")
        .unwrap()
        .filter_map(|entry| {
            let entry = entry.unwrap();
            let target = std::fs::read_link(entry.path()).ok()?;
            let name = entry.file_name().into_string().unwrap();
            Some((name, target.to_string_lossy().into_owned()))
        })
        .filter(|(_, target)| !target.ends_with("/fd"))
        .collect();
    fds.sort();
    fds
}

/// Counts what the server holds of `file`, which nobody else has open but the caller.
fn copies_open(path: &str) -> usize {
    open_fds()
        .iter()
        .filter(|(_, target)| target == path)
        .count()
}

fn misbehave(served: &Served, file: &File) {
    let message: &[u8] = br#"{"method":"Test.Count","arg":1}"#;
    let mut raw = served.raw();
    raw.send_fds(message, &copies(file, 128));
    raw.reply();
    for n in [129, 253] {
        let mut raw = served.raw();
        raw.send_fds(message, &copies(file, n));
        raw.is_refused("InvalidArgument", "too many");
    }
    let mut raw = served.raw();
    raw.send_fds(b"garbage", &copies(file, 5));
    raw.is_refused("InvalidArgument", "byte 1");
    let mut raw = served.raw();
    raw.send_fds(br#"{"method":"Test.Count","what":1}"#, &copies(file, 5));
    raw.is_refused("InvalidArgument", "unknown field");
    let mut raw = served.raw();
    raw.send_fds(&message[..9], &copies(file, 5));
    raw.stream.shutdown(Shutdown::Write).unwrap();
    raw.is_refused("InvalidArgument", "cut off");
    let mut raw = served.raw();
    raw.send(&message[..9]);
    raw.send_fds(&message[9..], &copies(file, 5));
    raw.is_refused("InvalidArgument", "in the middle");
    // Vanishes with a call running and another one, with descriptors, unread.
    let mut raw = served.raw();
    raw.send_fds(br#"{"method":"Test.Gate"}"#, &copies(file, 5));
    raw.send_fds(message, &copies(file, 5));
    assert_eq!(served.event(), "entered");
    drop(raw);
    served.gate.notify_one();
    assert_eq!(served.event(), "left");
    let mut client = Client::connect(&served.path).unwrap();
    let (_, fds): (Empty, _) = client.call("Test.Fds", &128, &[]).unwrap();
    assert_eq!(fds.len(), 128);
}

/// Sends half a request and waits, with a server that does not.
fn dawdle(served: &Served, file: &File) {
    let mut raw = served.raw();
    raw.send_fds(br#"{"method":"#, &copies(file, 5));
    raw.is_refused("DeadlineExceeded", "not complete");
}

#[test]
fn no_client_leaves_a_descriptor_behind() {
    // The first runtime of a process opens descriptors that stay (tokio's signal pipe).
    drop(
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap(),
    );
    let before = open_fds();
    {
        let served = Served::new();
        // Its deadline is for nobody else: whoever sends in two parts may be held up between them.
        let hasty = Served::with(Bounds {
            deadline: Duration::from_millis(50),
            ..Bounds::default()
        });
        let path = served.path.with_file_name("marked");
        let file = File::create(&path).unwrap();
        for _ in 0..3 {
            misbehave(&served, &file);
            dawdle(&hasty, &file);
        }
        // One more round trip: the servers have seen the end of those before it.
        served.is_well();
        hasty.is_well();
        assert_eq!(copies_open(path.to_str().unwrap()), 1);
    }
    assert_eq!(open_fds(), before);
}
