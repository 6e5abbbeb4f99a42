//! What the server promises to every client, and to itself against bad ones.

use std::fs::File;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::time::Duration;

use berm_urpc::{Bounds, Client, Limits};

use crate::fixture::{Directory, PATIENCE, Raw, Served, copies};

#[test]
fn replies_are_gvisors_bytes() {
    let served = Served::new();
    let mut raw = served.raw();
    let cases = [
        (
            r#"{"method":"Test.Empty","arg":null}"#,
            r#"{"success":true,"err":"","result":{}}"#,
        ),
        (
            r#"{"method":"Test.Empty"}"#,
            r#"{"success":true,"err":"","result":{}}"#,
        ),
        (
            r#"{"method":"Test.Echo","arg":null}"#,
            r#"{"success":true,"err":"","result":null}"#,
        ),
        (
            r#"{"arg":[1,"a"],"method":"Test.Echo"}"#,
            r#"{"success":true,"err":"","result":[1,"a"]}"#,
        ),
        (
            r#"{"method":"Test.Fail","arg":"x"}"#,
            r#"{"success":false,"err":"container \"x\" not found","kind":"NotFound","result":null}"#,
        ),
        (
            r#"{"method":"Test.None","arg":null}"#,
            r#"{"success":false,"err":"unknown method","kind":"NotSupported","result":null}"#,
        ),
    ];
    for (request, reply) in cases {
        raw.send(request.as_bytes());
        assert_eq!(raw.reply(), reply, "{request}");
    }
}

#[test]
fn requests_written_in_one_go_are_answered_in_order() {
    let served = Served::new();
    let mut raw = served.raw();
    let many: String = (0..500)
        .map(|n| format!("{{\"method\":\"Test.Echo\",\"arg\":{n}}}\n"))
        .collect();
    raw.send(many.as_bytes());
    for n in 0..500 {
        assert_eq!(
            raw.reply(),
            format!(r#"{{"success":true,"err":"","result":{n}}}"#)
        );
    }
}

#[test]
fn a_request_may_come_byte_by_byte_with_white_space_around() {
    let served = Served::new();
    let mut raw = served.raw();
    for _ in 0..3 {
        for byte in b" \r\n{\"method\":\"Test.Echo\",\"arg\":\"\\\"}\"}\n\n" {
            raw.send(&[*byte]);
        }
        assert_eq!(raw.reply(), r#"{"success":true,"err":"","result":"\"}"}"#);
    }
}

#[test]
fn descriptors_belong_to_the_message_whose_first_byte_they_came_with() {
    let served = Served::new();
    let mut raw = served.raw();
    let null = File::open("/dev/null").unwrap();
    // Sent before the server reads any: glued together in its queue.
    raw.send(b"{\"method\":\"Test.Count\",\"arg\":\"a\"}\n");
    raw.send_fds(
        b"{\"method\":\"Test.Count\",\"arg\":\"b\"}",
        &copies(&null, 2),
    );
    raw.send(b"{\"method\":\"Test.Count\",\"arg\":\"c\"}");
    raw.send_fds(
        b" {\"method\":\"Test.Count\",\"arg\":\"d\"}{\"method\":\"Test.Count\",\"arg\":\"e\"}",
        &copies(&null, 128),
    );
    for (arg, fds) in [("a", 0), ("b", 2), ("c", 0), ("d", 128), ("e", 0)] {
        assert_eq!(
            raw.reply(),
            format!(r#"{{"success":true,"err":"","result":["{arg}",{fds}]}}"#)
        );
    }
}

#[test]
fn descriptors_pass_both_ways() {
    let served = Served::new();
    let mut client = Client::connect(&served.path).unwrap();
    let (mut reader, writer) = std::io::pipe().unwrap();
    let (text, mut fds): (String, _) = client.call("Test.Echo", "hi", &[writer.as_fd()]).unwrap();
    drop(writer);
    assert_eq!((text.as_str(), fds.len()), ("hi", 1));
    let flags = rustix::io::fcntl_getfd(&fds[0]).unwrap();
    assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
    File::from(fds.remove(0))
        .write_all(b"through two sockets")
        .unwrap();
    // The end of file proves that the server kept no copy.
    let mut got = String::new();
    reader.read_to_string(&mut got).unwrap();
    assert_eq!(got, "through two sockets");
}

#[test]
fn more_than_128_descriptors_are_refused() {
    let served = Served::new();
    let null = File::open("/dev/null").unwrap();
    for n in [129, 130, 253] {
        let mut raw = served.raw();
        raw.send_fds(br#"{"method":"Test.Count","arg":1}"#, &copies(&null, n));
        raw.is_refused("InvalidArgument", "too many files");
    }
    // In several sends before the message starts as well.
    let mut raw = served.raw();
    raw.send_fds(b"\n", &copies(&null, 100));
    raw.send_fds(br#"{"method":"Test.Count","arg":1}"#, &copies(&null, 29));
    raw.is_refused("InvalidArgument", "too many files");
    served.is_well();
}

#[test]
fn descriptors_in_the_middle_of_a_message_are_refused() {
    let served = Served::new();
    let null = File::open("/dev/null").unwrap();
    let mut raw = served.raw();
    raw.send(br#"{"method":"#);
    raw.send_fds(br#""Test.Count","arg":1}"#, &copies(&null, 1));
    raw.is_refused("InvalidArgument", "in the middle of a message");
    served.is_well();
}

#[test]
fn malformed_messages_get_an_error_and_the_connection_is_closed() {
    let served = Served::new();
    let deep = |n: usize| {
        let (open, close) = ("[".repeat(n), "]".repeat(n));
        format!(r#"{{"method":"Test.Count","arg":{open}{close}}}"#)
    };
    let wide = format!(
        r#"{{"method":"Test.Count","arg":[{}0]}}"#,
        "0,".repeat(70_000)
    );
    let large = format!(
        r#"{{"method":"Test.Count","arg":"{}"}}"#,
        "x".repeat(1 << 20)
    );
    let cases: [(&str, &str); 12] = [
        ("garbage", "byte 1"),
        ("\0\0\0\0", "byte 1"),
        ("[]", "byte 1"),
        ("GET / HTTP/1.1\r\n\r\n", "byte 1"),
        (r#"{"method":"Test.Empty"]"#, "byte 23"),
        (r#"{"method":"Test.Empty",}"#, "not well formed"),
        (
            r#"{"method":"Test.Empty","argument":1}"#,
            "unknown field `argument`",
        ),
        (r#"{"method":7}"#, "invalid type"),
        (r#"{"arg":7}"#, "missing field `method`"),
        (&deep(64), "nested more than 64 deep"),
        (&wide, "more than 65536 values"),
        (&large, "more than 1048576 bytes"),
    ];
    for (request, words) in cases {
        let mut raw = served.raw();
        // The server may refuse, and close, before all is written.
        if let Err(error) = raw.stream.write_all(request.as_bytes()) {
            assert_eq!(error.kind(), std::io::ErrorKind::BrokenPipe, "{words}");
        }
        raw.is_refused("InvalidArgument", words);
    }
    served.is_well();
    let mut raw = served.raw();
    raw.send(deep(63).as_bytes());
    assert!(raw.reply().starts_with(r#"{"success":true"#));
}

#[test]
fn a_message_of_exactly_the_limit_is_served() {
    let served = Served::new();
    let mut raw = served.raw();
    let frame = r#"{"method":"Test.Echo","arg":""}"#.len();
    let text = "x".repeat((1 << 20) - frame);
    raw.send(format!(r#"{{"method":"Test.Echo","arg":"{text}"}}"#).as_bytes());
    assert_eq!(
        raw.reply().len(),
        text.len() + r#"{"success":true,"err":"","result":""}"#.len()
    );
}

#[test]
fn a_message_cut_off_by_the_end_of_the_stream_is_refused() {
    let served = Served::new();
    for part in [
        r#"{"#,
        r#"{"method":"Test.Empty","arg":"}"#,
        r#"{"method":"Test.Empty""#,
    ] {
        let mut raw = served.raw();
        raw.send(part.as_bytes());
        raw.stream.shutdown(Shutdown::Write).unwrap();
        raw.is_refused("InvalidArgument", "cut off");
    }
    served.is_well();
}

#[test]
fn a_client_that_ends_its_writing_still_gets_its_reply() {
    let served = Served::new();
    let mut raw = served.raw();
    raw.send(br#"{"method":"Test.Gate"}"#);
    raw.stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(served.event(), "entered");
    served.gate.notify_one();
    assert_eq!(raw.reply(), r#"{"success":true,"err":"","result":{}}"#);
    raw.is_closed();
}

#[test]
fn a_vanished_clients_call_runs_to_its_end_and_its_connection_is_free_at_once() {
    let served = Served::with(Bounds {
        connections: 1,
        ..Bounds::default()
    });
    for _ in 0..3 {
        let mut raw = served.raw();
        raw.send(br#"{"method":"Test.Gate"}{"method":"Test.Gate"}"#);
        assert_eq!(served.event(), "entered");
        drop(raw);
        // The only connection is free while the call still runs.
        until_served(&served);
        served.gate.notify_one();
        assert_eq!(served.event(), "left");
    }
}

/// Connects until one connection is served instead of closed: the server needs a moment to notice.
fn until_served(served: &Served) {
    let start = std::time::Instant::now();
    loop {
        assert!(start.elapsed() < PATIENCE);
        let mut raw = served.raw();
        let sent = raw.stream.write_all(br#"{"method":"Test.Empty"}"#);
        if sent.is_ok() && matches!(raw.stream.read(&mut [0; 64]), Ok(1..)) {
            // Its end must be noticed as well before the caller connects.
            raw.stream.shutdown(Shutdown::Write).unwrap();
            return raw.is_closed();
        }
    }
}

#[test]
fn calls_of_vanished_clients_are_bounded() {
    let served = Served::with(Bounds {
        calls: 2,
        ..Bounds::default()
    });
    for _ in 0..2 {
        let mut raw = served.raw();
        raw.send(br#"{"method":"Test.Gate"}"#);
        assert_eq!(served.event(), "entered");
    }
    let mut raw = served.raw();
    raw.send(br#"{"method":"Test.Empty"}"#);
    assert_eq!(
        raw.reply(),
        r#"{"success":false,"err":"too many calls are running","kind":"Unavailable","result":null}"#
    );
    served.gate.notify_one();
    assert_eq!(served.event(), "left");
    raw.send(br#"{"method":"Test.Empty"}"#);
    assert_eq!(raw.reply(), r#"{"success":true,"err":"","result":{}}"#);
    served.gate.notify_one();
    assert_eq!(served.event(), "left");
}

#[test]
fn connections_beyond_the_bound_are_closed_and_the_others_are_served_in_parallel() {
    let served = Served::new();
    let mut held: Vec<Raw> = (0..64).map(|_| served.raw()).collect();
    for raw in &mut held {
        raw.send(br#"{"method":"Test.Gate"}"#);
        assert_eq!(served.event(), "entered");
    }
    for _ in 0..10 {
        served.raw().is_closed();
    }
    for _ in 0..64 {
        served.gate.notify_one();
        assert_eq!(served.event(), "left");
    }
    for raw in &mut held {
        assert_eq!(raw.reply(), r#"{"success":true,"err":"","result":{}}"#);
    }
}

#[test]
fn many_clients_at_once_get_their_own_replies() {
    let served = Served::new();
    std::thread::scope(|scope| {
        for client in 0..16 {
            let path = &served.path;
            scope.spawn(move || {
                let mut connection = Client::connect(path).unwrap();
                for call in 0..100 {
                    let arg = (client, call, "x".repeat(call * 100));
                    let (echo, _): ((usize, usize, String), _) =
                        connection.call("Test.Echo", &arg, &[]).unwrap();
                    assert_eq!(echo, arg);
                }
            });
        }
    });
}

#[test]
fn a_request_that_stays_incomplete_is_refused_after_the_deadline() {
    let served = Served::with(Bounds {
        deadline: Duration::from_millis(50),
        ..Bounds::default()
    });
    let mut idle = served.raw();
    let mut blank = served.raw();
    blank.send(b"\n");
    let mut raw = served.raw();
    raw.send(br#"{"method":"Test.Empty""#);
    raw.is_refused("DeadlineExceeded", "request not complete");
    // No message begun, no deadline.
    for raw in [&mut idle, &mut blank] {
        raw.send(br#"{"method":"Test.Empty"}"#);
        assert_eq!(raw.reply(), r#"{"success":true,"err":"","result":{}}"#);
    }
}

#[test]
fn a_client_that_does_not_take_its_reply_is_dropped_after_the_deadline() {
    let served = Served::with(Bounds {
        deadline: Duration::from_millis(50),
        connections: 1,
        ..Bounds::default()
    });
    let mut raw = served.raw();
    raw.send(br#"{"method":"Test.Big","arg":8000000}"#);
    until_served(&served);
    let mut got = Vec::new();
    raw.stream.read_to_end(&mut got).unwrap();
    assert!(got.len() < 8_000_000);
}

#[test]
fn a_reply_that_does_not_fit_becomes_an_error() {
    let served = Served::with(Bounds {
        reply_bytes: 1000,
        ..Bounds::default()
    });
    let mut raw = served.raw();
    let frame = r#"{"success":true,"err":"","result":""}"#.len();
    raw.send(format!(r#"{{"method":"Test.Big","arg":{}}}"#, 1000 - frame).as_bytes());
    assert_eq!(raw.reply().len(), 1000);
    for request in [
        r#"{"method":"Test.Big","arg":1000}"#,
        r#"{"method":"Test.Fds","arg":129}"#,
    ] {
        raw.send(request.as_bytes());
        let reply = raw.reply();
        assert!(reply.contains(r#""kind":"Internal""#), "{reply}");
    }
    served.is_well();
}

#[test]
fn a_large_reply_passes_a_slow_reader() {
    let served = Served::new();
    let mut raw = served.raw();
    raw.send(br#"{"method":"Test.Big","arg":4000000}"#);
    let mut left = 4_000_000 + r#"{"success":true,"err":"","result":""}"#.len();
    while left > 0 {
        let read = raw.stream.read(&mut [0; 777]).unwrap();
        assert_ne!(read, 0);
        left -= read;
    }
}

#[test]
fn another_uid_is_closed_without_a_word() {
    use rustix::process::{Uid, geteuid};
    use std::os::unix::fs::PermissionsExt;
    if !geteuid().is_root() {
        return eprintln!("skipped: needs root to become another user");
    }
    // The file system lets everybody in here, so that SO_PEERCRED alone decides.
    let directory = Directory::new();
    std::fs::set_permissions(&directory.0, PermissionsExt::from_mode(0o755)).unwrap();
    let path = directory.0.join("open.sock");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o666)).unwrap();
    let served = Served::over(listener.into(), path, directory, Bounds::default());
    let path = served.path.clone();
    let stranger = std::thread::spawn(move || {
        let nobody = Uid::from_raw(65534);
        rustix::thread::set_thread_res_uid(nobody, nobody, nobody).unwrap();
        let mut raw = Raw::connect(&path);
        raw.is_closed();
    });
    stranger.join().unwrap();
    served.is_well();
}

#[test]
fn limits_of_the_request_are_the_owners() {
    let request = Limits {
        bytes: 64,
        depth: 2,
        values: 4,
    };
    let served = Served::with(Bounds {
        request,
        ..Bounds::default()
    });
    let cases = [
        (r#"{"method":"Test.Count","arg":[[1]]}"#, "2 deep"),
        (r#"{"method":"Test.Count","arg":[1,2,3,4]}"#, "4 values"),
        (
            &format!(r#"{{"method":"Test.Count","arg":"{}"}}"#, "x".repeat(64)),
            "64 bytes",
        ),
    ];
    for (message, words) in cases {
        let mut raw = served.raw();
        raw.send(message.as_bytes());
        raw.is_refused("InvalidArgument", words);
    }
}
