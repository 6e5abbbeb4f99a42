//! The calls, against a systemd of ours that is a thread with a socket.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::thread::JoinHandle;
use std::time::Duration;

use berm_sys::Kind;

use super::wire::FIXED;
use super::*;
use crate::Memory;

/// How the other side answers a method.
#[derive(Clone, Copy)]
enum Answer {
    /// A job, which ends so; its end is told before the answer if the flag is set.
    Job(&'static str, bool),
    /// An error of this name.
    Error(&'static str),
    /// Nothing to say.
    Empty,
    /// A text in a variant.
    Text(&'static str),
    /// No answer at all.
    Silence,
    /// Bytes that are no message.
    Rubbish,
}

/// A systemd that has a script.
struct Systemd {
    dir: PathBuf,
    thread: Option<JoinHandle<Vec<String>>>,
}

impl Systemd {
    fn new(name: &str, script: &'static [(&'static str, Answer)]) -> Self {
        let pid = std::process::id();
        let dir = std::env::temp_dir().join(format!("berm-systemd-{pid}-{name}"));
        std::fs::create_dir(&dir).unwrap();
        let listener = UnixListener::bind(dir.join("private")).unwrap();
        let thread = std::thread::spawn(move || serve(listener.accept().unwrap().0, script));
        Self {
            dir,
            thread: Some(thread),
        }
    }

    fn connect(&self, limit: Duration) -> Result<Bus, Error> {
        let path = |name| self.dir.join(name).to_string_lossy().into_owned();
        Bus::connect(&path("private"), &path("bus"), Instant::now() + limit)
    }

    /// The methods that were called.
    fn called(mut self) -> Vec<String> {
        self.thread.take().unwrap().join().unwrap()
    }
}

impl Drop for Systemd {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// A message of ours, as simple as can be: fields and a body of texts.
fn message(
    kind: u8,
    answers: u32,
    member: &str,
    error: &str,
    signature: &str,
    body: &[u8],
) -> Vec<u8> {
    let mut fields = Vec::new();
    let mut field = |code: u8, kind: u8, value: &str| {
        while fields.len() % 8 != 0 {
            fields.push(0);
        }
        fields.extend([code, 1, kind, 0]);
        if kind == b'g' {
            fields.push(u8::try_from(value.len()).unwrap());
        } else {
            fields.extend(u32::try_from(value.len()).unwrap().to_le_bytes());
        }
        fields.extend(value.bytes().chain([0]));
    };
    for (code, value) in [(3, member), (4, error)] {
        if !value.is_empty() {
            field(code, b's', value);
        }
    }
    if !signature.is_empty() {
        field(8, b'g', signature);
    }
    if answers != 0 {
        while fields.len() % 8 != 0 {
            fields.push(0);
        }
        fields.extend([5, 1, b'u', 0]);
        fields.extend(answers.to_le_bytes());
    }
    let mut message = vec![b'l', kind, 0, 1];
    message.extend(u32::try_from(body.len()).unwrap().to_le_bytes());
    message.extend(1u32.to_le_bytes());
    message.extend(u32::try_from(fields.len()).unwrap().to_le_bytes());
    message.extend(fields);
    while message.len() % 8 != 0 {
        message.push(0);
    }
    message.extend(body);
    message
}

fn text(body: &mut Vec<u8>, text: &str) {
    while !body.len().is_multiple_of(4) {
        body.push(0);
    }
    body.extend(u32::try_from(text.len()).unwrap().to_le_bytes());
    body.extend(text.bytes().chain([0]));
}

fn removed(job: &str, result: &str) -> Vec<u8> {
    let mut body = vec![9, 0, 0, 0];
    for part in [job, "x.scope", result] {
        text(&mut body, part);
    }
    message(4, 0, "JobRemoved", "", "uoss", &body)
}

fn serve(mut client: UnixStream, script: &[(&str, Answer)]) -> Vec<String> {
    let mut called = Vec::new();
    let mut line = String::new();
    let mut reader = BufReader::new(client.try_clone().unwrap());
    reader.read_line(&mut line).unwrap();
    assert_eq!(line, "\0AUTH EXTERNAL 30\r\n");
    // What another one's job says comes with the answer, as on systemd's own socket.
    let answer = [b"OK 0123\r\n", &*removed("/job/others", "failed")].concat();
    client.write_all(&answer).unwrap();
    line.clear();
    reader.read_line(&mut line).unwrap();
    assert_eq!(line, "BEGIN\r\n");
    let mut left = script.iter();
    loop {
        let mut fixed = [0; FIXED];
        if reader.read_exact(&mut fixed).is_err() {
            return called;
        }
        let mut whole = fixed.to_vec();
        whole.resize(wire::whole(&fixed).unwrap(), 0);
        reader.read_exact(&mut whole[FIXED..]).unwrap();
        let serial = u32::from_le_bytes(fixed[8..12].try_into().unwrap());
        let got = wire::parse(&whole).unwrap();
        called.push(format!("{} {}", got.member, got.texts.join(" ")));
        let (member, answer) = left.next().expect("no more calls");
        assert_eq!(got.member, *member);
        // All at once: a client that has heard enough closes the connection.
        client.write_all(&told(serial, *answer)).unwrap();
    }
}

/// What is said to a call.
fn told(serial: u32, answer: Answer) -> Vec<u8> {
    let job = format!("/job/{serial}");
    let mut body = Vec::new();
    match answer {
        Answer::Job(result, before) => {
            text(&mut body, &job);
            let answer = message(2, serial, "", "", "o", &body);
            let (other, end) = (removed("/job/other", "failed"), removed(&job, result));
            match before {
                true => [end, answer, other].concat(),
                false => [answer, other, end].concat(),
            }
        }
        Answer::Error(name) => {
            text(&mut body, "says\nno");
            let name = format!("org.freedesktop.systemd1.{name}");
            message(3, serial, "", &name, "s", &body)
        }
        Answer::Empty => message(2, serial, "", "", "", &[]),
        Answer::Text(value) => {
            body.extend([1, b's', 0]);
            text(&mut body, value);
            message(2, serial, "", "", "v", &body)
        }
        Answer::Silence => Vec::new(),
        Answer::Rubbish => vec![0xff; 64],
    }
}

const SOON: Duration = Duration::from_secs(60);
const VERSION: (&str, Answer) = ("Get", Answer::Text("252.39-1~deb12u1"));

fn unit() -> Unit {
    Place::parse("kubepods-burstable.slice:cri-containerd:c1")
        .unwrap()
        .unit
        .unwrap()
}

fn limits() -> Resources {
    let memory = Memory {
        limit: Some(1 << 20),
        ..Memory::default()
    };
    Resources {
        memory,
        ..Resources::default()
    }
}

#[test]
fn a_scope_is_placed_in_its_slices() {
    let rows = [
        (
            "kubepods-burstable-podu1.slice:cri-containerd:c1",
            Ok(
                "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podu1.slice/cri-containerd-c1.scope",
            ),
        ),
        (":ctr:c1", Ok("system.slice/ctr-c1.scope")),
        ("-.slice:ctr:c1", Ok("ctr-c1.scope")),
        ("/a/b", Ok("a/b")),
        ("system.slice:ctr:", Err("names no unit")),
        ("system.slice:a:b.slice", Err("names a slice")),
        ("system:a:b", Err("no name of a slice")),
        ("a/b.slice:a:b", Err("no name of a slice")),
        ("a--b.slice:a:b", Err("an empty part")),
        (".slice:a:b", Err("no name of a slice")),
        ("a.slice:..:b", Ok("a.slice/..-b.scope")),
    ];
    for (given, want) in rows {
        match (Place::parse(given), want) {
            (Ok(place), Ok(path)) => {
                assert_eq!(place.path.relative(), path, "{given}");
                let scope = path.ends_with(".scope");
                assert_eq!(place.unit.is_some(), scope, "{given}");
                assert_eq!(
                    Unit::of(&place.path).map(|u| u.name),
                    place.unit.map(|u| u.name)
                );
            }
            (Err(error), Err(reason)) => {
                assert_eq!(error.kind(), Kind::InvalidArgument);
                assert!(error.to_string().contains(reason), "{error}");
            }
            (got, want) => panic!("{given}: {got:?}, not {want:?}"),
        }
    }
}

#[test]
fn a_start_waits_for_its_own_job_whenever_its_end_is_told() {
    for before in [true, false] {
        let script: &'static [_] = if before {
            &[VERSION, ("StartTransientUnit", Answer::Job("done", true))]
        } else {
            &[VERSION, ("StartTransientUnit", Answer::Job("done", false))]
        };
        let systemd = Systemd::new(&format!("start-{before}"), script);
        let mut bus = systemd.connect(SOON).unwrap();
        unit().start_over(&mut bus, 7, &limits()).unwrap();
        drop(bus);
        let called = systemd.called();
        assert_eq!(
            called[1],
            "StartTransientUnit cri-containerd-c1.scope replace"
        );
    }
}

#[test]
fn a_unit_that_failed_before_is_forgotten_and_started_again() {
    let systemd = Systemd::new(
        "again",
        &[
            VERSION,
            ("StartTransientUnit", Answer::Error("UnitExists")),
            ("ResetFailedUnit", Answer::Empty),
            ("StartTransientUnit", Answer::Job("done", false)),
        ],
    );
    let mut bus = systemd.connect(SOON).unwrap();
    unit().start_over(&mut bus, 7, &limits()).unwrap();
}

#[test]
fn what_systemd_refuses_is_told_with_its_words_on_one_line() {
    let rows: [(&str, &'static [_], Kind, &str); 4] = [
        (
            "exists",
            &[
                VERSION,
                ("StartTransientUnit", Answer::Error("UnitExists")),
                ("ResetFailedUnit", Answer::Empty),
                ("StartTransientUnit", Answer::Error("UnitExists")),
            ],
            Kind::AlreadyExists,
            "cri-containerd-c1.scope",
        ),
        (
            "refused",
            &[
                VERSION,
                ("StartTransientUnit", Answer::Error("BadUnitSetting")),
            ],
            Kind::Unavailable,
            "BadUnitSetting: says\\nno",
        ),
        (
            "job",
            &[
                VERSION,
                ("StartTransientUnit", Answer::Job("failed", false)),
                ("ResetFailedUnit", Answer::Empty),
            ],
            Kind::Unavailable,
            "ended with \"failed\"",
        ),
        (
            "rubbish",
            &[("Get", Answer::Rubbish)],
            Kind::Unavailable,
            "breaks the protocol",
        ),
    ];
    for (name, script, kind, text) in rows {
        let systemd = Systemd::new(name, script);
        let mut bus = systemd.connect(SOON).unwrap();
        let error = unit().start_over(&mut bus, 7, &limits()).unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(text), "{error}");
        assert!(!error.to_string().contains('\n'), "{error}");
    }
}

#[test]
fn a_systemd_that_does_not_answer_is_left_at_the_deadline() {
    let systemd = Systemd::new("silent", &[("Get", Answer::Silence)]);
    // A thread that is slow to let the client in does not answer either.
    let error = systemd
        .connect(Duration::from_millis(200))
        .and_then(|mut bus| unit().start_over(&mut bus, 7, &limits()))
        .unwrap_err();
    assert_eq!(error.kind(), Kind::DeadlineExceeded, "{error}");
}

#[test]
fn a_stop_ends_and_forgets_and_a_scope_that_is_gone_is_fine() {
    let scripts: [(&str, &'static [_]); 2] = [
        (
            "stop",
            &[
                ("StopUnit", Answer::Job("done", false)),
                ("ResetFailedUnit", Answer::Error("NoSuchUnit")),
            ],
        ),
        ("stopped", &[("StopUnit", Answer::Error("NoSuchUnit"))]),
    ];
    for (name, script) in scripts {
        let systemd = Systemd::new(name, script);
        let mut bus = systemd.connect(SOON).unwrap();
        unit().stop_over(&mut bus).unwrap();
        drop(bus);
        assert_eq!(
            systemd.called()[0],
            "StopUnit cri-containerd-c1.scope replace"
        );
    }
}

#[test]
fn limits_that_systemd_has_no_property_for_need_no_call() {
    let systemd = Systemd::new(
        "set",
        &[VERSION, ("SetUnitProperties", Answer::Empty), VERSION],
    );
    let mut bus = systemd.connect(SOON).unwrap();
    unit().set_over(&mut bus, &limits()).unwrap();
    unit().set_over(&mut bus, &Resources::default()).unwrap();
}

#[test]
fn without_systemds_own_socket_the_bus_is_asked() {
    let systemd = Systemd::new(
        "bus",
        &[
            ("Hello", Answer::Empty),
            ("AddMatch", Answer::Empty),
            ("Subscribe", Answer::Empty),
            VERSION,
            ("StartTransientUnit", Answer::Job("done", false)),
        ],
    );
    std::fs::rename(systemd.dir.join("private"), systemd.dir.join("bus")).unwrap();
    let mut bus = systemd.connect(SOON).unwrap();
    unit().start_over(&mut bus, 7, &limits()).unwrap();
    drop(bus);
    let none = Bus::connect("/nowhere", "/nowhere/either", Instant::now() + SOON).unwrap_err();
    assert_eq!(none.to_string(), "connect(/nowhere/either)");
    assert_eq!(systemd.called().len(), 5);
}
