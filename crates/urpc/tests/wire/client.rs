//! What the client promises, above all against a server that is not trusted.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use berm_sys::Kind;
use berm_urpc::{AsyncClient, Client, Empty, Error, Limits, Malformed};
use serde_json::{Value, json};

use crate::fixture::{Directory, PATIENCE, Raw, Served, copies};

/// A client whose server has said `reply` before it was asked.
fn answered(reply: &[u8]) -> (Client, Raw) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut raw = Raw::over(theirs);
    raw.send(reply);
    (Client::over(ours), raw)
}

#[test]
fn requests_are_gvisors_bytes_without_a_newline() {
    let (mut client, mut raw) = answered(br#"{"success":true,"err":"","result":{}}"#);
    let arg = json!({"CID": "c1"});
    let _: (Empty, _) = client
        .call("containerManager.CreateSubcontainer", &arg, &[])
        .unwrap();
    drop(client);
    let mut sent = String::new();
    raw.stream.read_to_string(&mut sent).unwrap();
    assert_eq!(
        sent,
        r#"{"method":"containerManager.CreateSubcontainer","arg":{"CID":"c1"}}"#
    );
}

#[test]
fn a_connection_serves_one_call_after_another_also_after_a_remote_error() {
    let served = Served::new();
    let mut client = Client::connect(&served.path).unwrap();
    for n in 0..3_u32 {
        let (echo, fds): (u32, _) = client.call("Test.Echo", &n, &[]).unwrap();
        assert_eq!((echo, fds.len()), (n, 0));
        let error = client.call::<_, Empty>("Test.Fail", "x", &[]).unwrap_err();
        let Error::Remote {
            kind: Some(Kind::NotFound),
            text,
        } = &error
        else {
            panic!("{error:?}")
        };
        assert_eq!(text, "container \"x\" not found");
        let (_, fds): (Empty, _) = client.call("Test.Fds", &128, &[]).unwrap();
        assert_eq!(fds.len(), 128);
    }
}

#[test]
fn a_call_ends_at_its_deadline_and_gives_the_connection_up() {
    let served = Served::new();
    let mut client = Client::connect(&served.path).unwrap();
    client.set_deadline(Some(Duration::from_millis(20)));
    let start = Instant::now();
    let error = client.call::<_, Empty>("Test.Gate", &(), &[]).unwrap_err();
    assert!(matches!(error, Error::Deadline { .. }), "{error:?}");
    assert!(start.elapsed() < PATIENCE);
    let error = client.call::<_, Empty>("Test.Empty", &(), &[]).unwrap_err();
    assert!(matches!(error, Error::GivenUp { .. }), "{error:?}");
    assert_eq!(error.kind(), Kind::Unavailable);
    served.gate.notify_one();
}

#[test]
fn a_server_that_trickles_or_does_not_read_cannot_stretch_the_deadline() {
    let (mut client, mut raw) = answered(b"{");
    client.set_deadline(Some(Duration::from_millis(50)));
    std::thread::scope(|scope| {
        scope.spawn(move || while raw.stream.write_all(b" ").is_ok() {});
        let error = client.call::<_, Empty>("m", &(), &[]).unwrap_err();
        assert!(
            matches!(error, Error::Deadline { .. } | Error::Reply { .. }),
            "{error:?}"
        );
        drop(client);
    });
    let (mut client, _raw) = answered(b"");
    client.set_deadline(Some(Duration::from_millis(50)));
    let error = client
        .call::<_, Empty>("m", &"x".repeat(10 << 20), &[])
        .unwrap_err();
    assert!(matches!(error, Error::Deadline { .. }), "{error:?}");
}

#[test]
fn without_a_deadline_a_call_waits() {
    let served = Served::new();
    let mut client = Client::connect(&served.path).unwrap();
    client.set_deadline(None);
    let waiter = std::thread::spawn(move || {
        let _: (Empty, _) = client.call("Test.Gate", &(), &[]).unwrap();
    });
    assert_eq!(served.event(), "entered");
    served.gate.notify_one();
    waiter.join().unwrap();
}

/// Runs on a runtime like the metric server's.
fn local<T>(body: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.unwrap().block_on(body)
}

#[test]
fn an_async_client_keeps_its_connection_also_after_a_remote_error_and_makes_another_once_it_is_closed()
 {
    let directory = Directory::new();
    let path = directory.0.join("control.sock");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let mut client = AsyncClient::new(&path, Limits::REPLY);
    let server = std::thread::spawn(move || {
        // A reply for each call; the kept connection ends after two, a new one brings the third.
        let mut requests = [0; 2];
        for (at, count) in [2, 1].into_iter().enumerate() {
            let (mut stream, _) = listener.accept().unwrap();
            for _ in 0..count {
                let len = stream.read(&mut [0; 4096]).unwrap();
                requests[at] += usize::from(len > 0);
                let reply = match requests {
                    [1, 0] => r#"{"success":false,"err":"no","result":null}"#,
                    _ => r#"{"success":true,"err":"","result":["in place"]}"#,
                };
                stream.write_all(reply.as_bytes()).unwrap();
            }
        }
        requests
    });
    local(async {
        let refused = client.call("m", &()).await.unwrap();
        let error = refused.result::<Empty>().unwrap_err();
        assert!(matches!(error, Error::Remote { .. }), "{error:?}");
        for _ in 0..2 {
            let reply = client.call("m", &()).await.unwrap();
            assert_eq!(reply.result::<Vec<&str>>().unwrap(), ["in place"]);
        }
    });
    assert_eq!(server.join().unwrap(), [2, 1]);
}

#[test]
fn an_async_call_that_is_dropped_closes_its_connection_and_the_next_one_is_answered() {
    let served = Served::new();
    let mut client = AsyncClient::new(&served.path, Limits::REPLY);
    local(async {
        let call = client.call("Test.Gate", &());
        let given_up = tokio::time::timeout(Duration::from_millis(20), call).await;
        assert!(given_up.is_err());
        let reply = client.call("Test.Echo", &7).await.unwrap();
        assert_eq!(reply.result::<u32>().unwrap(), 7);
    });
    served.gate.notify_one();
}

#[test]
fn an_async_call_to_nobody_is_refused_at_once() {
    let directory = Directory::new();
    let path = directory.0.join("control.sock");
    let mut client = AsyncClient::new(&path, Limits::REPLY);
    let error = local(client.call("m", &())).unwrap_err();
    assert_eq!(error.kind(), Kind::NotFound, "{error}");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let error = local(client.call("m", &())).unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable, "{error}");
}

#[test]
fn what_is_no_reply_is_an_error_of_the_servers() {
    let limits = Limits {
        bytes: 100,
        depth: 4,
        values: 10,
    };
    let long = format!(
        r#"{{"success":true,"err":"","result":"{}"}}"#,
        "x".repeat(100)
    );
    let cases = [
        "garbage",
        "[]",
        r#"{"success":true,"err":"","result":[[[[[]]]]]}"#,
        r#"{"success":true,"err":"","result":[1,2,3,4,5,6,7,8,9,10]}"#,
        r#"{"success":"yes"}"#,
        r#"{"result":{}}"#,
        &long,
    ];
    for reply in cases {
        let (mut client, _raw) = answered(reply.as_bytes());
        client.set_reply_limits(limits);
        let error = client.call::<_, Value>("m", &(), &[]).unwrap_err();
        assert!(matches!(error, Error::Reply { .. }), "{reply}: {error:?}");
        assert_eq!(error.kind(), Kind::Internal);
        let error = client.call::<_, Value>("m", &(), &[]).unwrap_err();
        assert!(matches!(error, Error::GivenUp { .. }), "{reply}: {error:?}");
    }
}

#[test]
fn a_server_that_closes_is_told_apart_from_one_that_cuts_its_reply_off() {
    let (mut client, raw) = answered(b"");
    drop(raw);
    let error = client.call::<_, Empty>("m", &(), &[]).unwrap_err();
    assert!(matches!(error, Error::Closed { .. }), "{error:?}");
    let (mut client, raw) = answered(br#"{"success":true"#);
    raw.stream.shutdown(std::net::Shutdown::Write).unwrap();
    let error = client.call::<_, Empty>("m", &(), &[]).unwrap_err();
    assert!(
        matches!(
            error,
            Error::Reply {
                source: Malformed::CutOff,
                ..
            }
        ),
        "{error:?}"
    );
}

#[test]
fn a_refusal_is_heard_even_if_the_request_was_not_read_to_its_end() {
    let served = Served::new();
    let mut client = Client::connect(&served.path).unwrap();
    let error = client
        .call::<_, Empty>("Test.Echo", &"x".repeat(8 << 20), &[])
        .unwrap_err();
    let Error::Remote {
        kind: Some(Kind::InvalidArgument),
        text,
    } = &error
    else {
        panic!("{error:?}")
    };
    assert_eq!(text, "message of more than 1048576 bytes");
}

#[test]
fn descriptors_of_an_untrusted_server_are_never_installed() {
    let null = File::open("/dev/null").unwrap();
    let reply = br#"{"success":true,"err":"","result":{}}"#;
    let cases = [
        (0, 1, false),
        (1, 2, false),
        (2, 2, true),
        (128, 129, false),
        (128, 253, false),
    ];
    for (allowed, sent, passes) in cases {
        let (mut client, mut raw) = answered(b"");
        client.set_max_fds(allowed);
        raw.send_fds(reply, &copies(&null, sent));
        match client.call::<_, Empty>("m", &(), &[]) {
            Ok((_, fds)) => assert!(passes && fds.len() == sent, "{allowed} {sent}"),
            Err(Error::Reply {
                source: Malformed::TooManyFds,
                ..
            }) if !passes => {}
            Err(error) => panic!("{allowed} {sent}: {error:?}"),
        }
    }
    let (mut client, mut raw) = answered(b"");
    raw.send(&reply[..10]);
    raw.send_fds(&reply[10..], &copies(&null, 1));
    let error = client.call::<_, Empty>("m", &(), &[]).unwrap_err();
    assert!(
        matches!(
            error,
            Error::Reply {
                source: Malformed::LateFds,
                ..
            }
        ),
        "{error:?}"
    );
}

#[test]
fn a_request_that_cannot_be_sent_harms_nothing() {
    let served = Served::new();
    let mut client = Client::connect(&served.path).unwrap();
    let null = File::open("/dev/null").unwrap();
    let error = client
        .call::<_, Value>("Test.Count", &1, &copies(&null, 129))
        .unwrap_err();
    assert!(matches!(error, Error::Request { .. }), "{error:?}");
    let no_text = std::collections::BTreeMap::from([((1, 2), 3)]);
    let error = client
        .call::<_, Value>("Test.Count", &no_text, &[])
        .unwrap_err();
    assert!(matches!(error, Error::Request { .. }), "{error:?}");
    let (count, _): ((u8, u8), _) = client.call("Test.Count", &1, &copies(&null, 128)).unwrap();
    assert_eq!(count, (1, 128));
    let (_, fds): (Empty, _) = client.call("Test.Fds", &1, &[null.as_fd()]).unwrap();
    assert_eq!(fds.len(), 1);
}
