//! A connection to systemd: blocking, with one deadline for all that is done over it.
//!
//! systemd's own socket is asked first, as systemctl does: no bus in between, and it tells the
//! end of every job unasked. It is used in a child of its own, or by a process that has nothing
//! else to do; the well-kept clients either have no deadline while they connect, or bring a
//! runtime with them that is larger than Berm.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt};

use super::wire::{self, Body, FIXED, Kind, Message, Method, Value};
use crate::Error;

const SYSTEMD: &str = "org.freedesktop.systemd1";
const MANAGER: &str = "/org/freedesktop/systemd1";
/// systemd's own socket; root only.
pub(crate) const PRIVATE: &str = "/run/systemd/private";
/// The system's bus.
pub(crate) const SYSTEM_BUS: &str = "/run/dbus/system_bus_socket";
/// Ends of jobs that came before they were asked for.
const MAX_ENDED: usize = 256;

/// A connection.
#[derive(Debug)]
pub(crate) struct Bus {
    stream: UnixStream,
    until: Instant,
    serial: u32,
    /// What came with the answer to AUTH.
    early: VecDeque<u8>,
    /// Jobs that ended, with how.
    ended: VecDeque<(String, String)>,
}

/// An answer that is an error of systemd's.
#[derive(Debug)]
pub(crate) enum Failed {
    /// No answer.
    Broken(Error),
    /// Name and text of the error.
    Refused { name: String, text: String },
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self::Broken(error)
    }
}

/// The methods of systemd's manager.
pub(crate) const fn manager(member: &'static str, signature: &'static str) -> Method {
    Method {
        destination: SYSTEMD,
        path: MANAGER,
        interface: "org.freedesktop.systemd1.Manager",
        member,
        signature,
    }
}

const fn bus(member: &'static str, signature: &'static str) -> Method {
    Method {
        destination: "org.freedesktop.DBus",
        path: "/org/freedesktop/DBus",
        interface: "org.freedesktop.DBus",
        member,
        signature,
    }
}

const GET: Method = Method {
    destination: SYSTEMD,
    path: MANAGER,
    interface: "org.freedesktop.DBus.Properties",
    member: "Get",
    signature: "ss",
};

impl Bus {
    /// Connects to the first of these sockets that is there: systemd's own, then the bus.
    pub(crate) fn connect(private: &str, system_bus: &str, until: Instant) -> Result<Self, Error> {
        match Self::open(private, until) {
            Err(Error::Bus {
                source: Errno::NOENT | Errno::CONNREFUSED,
                ..
            }) => {}
            opened => return opened,
        }
        let mut connection = Self::open(system_bus, until)?;
        connection.subscribe().map_err(|failed| match failed {
            Failed::Broken(error) => error,
            Failed::Refused { name, text } => Error::Systemd {
                call: "Subscribe",
                unit: String::new(),
                reason: format!("{name}: {text}"),
            },
        })?;
        Ok(connection)
    }

    fn open(path: &str, until: Instant) -> Result<Self, Error> {
        let failed = |source| Error::Bus {
            call: "connect",
            path: path.to_owned(),
            source,
        };
        let address = SocketAddrUnix::new(path).map_err(failed)?;
        let flags = SocketFlags::CLOEXEC;
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
            .map_err(failed)?;
        // connect(2) waits while the listener's queue is full.
        let left = Some(left(until).ok_or(Errno::TIMEDOUT).map_err(failed)?);
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, left).map_err(failed)?;
        rustix::net::connect(&socket, &address).map_err(failed)?;
        let mut connection = Self {
            stream: UnixStream::from(socket),
            until,
            serial: 0,
            early: VecDeque::new(),
            ended: VecDeque::new(),
        };
        connection.authenticate()?;
        Ok(connection)
    }

    /// SASL's EXTERNAL: the kernel says who we are.
    ///
    /// BEGIN goes with it: when the answer comes, systemd has read BEGIN too. Sent later it may be
    /// read together with the first call, which systemd then leaves lying until more comes.
    fn authenticate(&mut self) -> Result<(), Error> {
        let uid = rustix::process::geteuid().as_raw().to_string();
        let uid: String = uid.bytes().map(|digit| format!("{digit:02x}")).collect();
        self.send(format!("\0AUTH EXTERNAL {uid}\r\nBEGIN\r\n").as_bytes())?;
        // Signals may follow at once: on its own socket systemd tells everybody of every job.
        let (mut buf, mut have) = ([0; 512], 0);
        let end = loop {
            if let Some(at) = buf[..have].windows(2).position(|two| two == b"\r\n") {
                break at;
            }
            if have == buf.len() {
                return Err(broken("an answer to AUTH"));
            }
            have += self.receive_some(&mut buf[have..])?;
        };
        self.early.extend(&buf[end + 2..have]);
        if !buf.starts_with(b"OK ") {
            let line = String::from_utf8_lossy(&buf[..end]);
            return Err(Error::Systemd {
                call: "AUTH EXTERNAL",
                unit: String::new(),
                reason: line.trim().escape_debug().to_string(),
            });
        }
        Ok(())
    }

    /// A name on the bus, and systemd's signals.
    fn subscribe(&mut self) -> Result<(), Failed> {
        let mut rule = Body::default();
        rule.text(
            "type='signal',sender='org.freedesktop.systemd1',\
             interface='org.freedesktop.systemd1.Manager',member='JobRemoved'",
        );
        self.call(bus("Hello", ""), &Body::default())?;
        self.call(bus("AddMatch", "s"), &rule)?;
        self.call(manager("Subscribe", ""), &Body::default())?;
        Ok(())
    }

    /// Makes a call and waits for its answer: the texts among the results.
    pub(crate) fn call(&mut self, method: Method, body: &Body) -> Result<Vec<String>, Failed> {
        self.serial += 1;
        let serial = self.serial;
        let message = wire::call(method, serial, body);
        self.send(&message)?;
        loop {
            let message = self.next()?;
            match message.kind {
                Kind::Return if message.answers == serial => return Ok(message.texts),
                Kind::Failure if message.answers == serial => {
                    let text = message.texts.into_iter().next().unwrap_or_default();
                    return Err(Failed::Refused {
                        name: message.error,
                        text,
                    });
                }
                _ => self.note(message),
            }
        }
    }

    /// Waits for the end of a job and says how it ended: `done`, `failed`, …
    pub(crate) fn job(&mut self, job: &str) -> Result<String, Error> {
        loop {
            if let Some(at) = self.ended.iter().position(|(ended, _)| ended == job)
                && let Some((_, result)) = self.ended.remove(at)
            {
                return Ok(result);
            }
            let message = self.next()?;
            self.note(message);
        }
    }

    /// systemd's version; `None` where it says none that can be read.
    pub(crate) fn version(&mut self) -> Result<Option<u32>, Failed> {
        let mut body = Body::default();
        body.text("org.freedesktop.systemd1.Manager");
        body.text("Version");
        let texts = self.call(GET, &body)?;
        let digits = |text: &String| {
            let text = text.trim_start_matches('v');
            let end = text.find(|c: char| !c.is_ascii_digit());
            text[..end.unwrap_or(text.len())].parse().ok()
        };
        Ok(texts.first().and_then(digits))
    }

    /// Remembers the end of a job: `JobRemoved(u id, o job, s unit, s result)`.
    fn note(&mut self, message: Message) {
        if message.kind != Kind::Signal || message.member != "JobRemoved" {
            return;
        }
        let mut texts = message.texts.into_iter();
        if let (Some(job), Some(_), Some(result)) = (texts.next(), texts.next(), texts.next()) {
            if self.ended.len() == MAX_ENDED {
                self.ended.pop_front();
            }
            self.ended.push_back((job, result));
        }
    }

    fn next(&mut self) -> Result<Message, Error> {
        let mut fixed = [0; FIXED];
        self.receive(&mut fixed)?;
        let length = wire::whole(&fixed).ok_or_else(|| broken("a message"))?;
        let mut message = fixed.to_vec();
        message.resize(length, 0);
        self.receive(&mut message[FIXED..])?;
        wire::parse(&message).ok_or_else(|| broken("a message"))
    }

    fn send(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let left = self.left("send")?;
            self.stream
                .set_write_timeout(Some(left))
                .map_err(failed("setsockopt(SO_SNDTIMEO)"))?;
            match self.stream.write(rest) {
                Ok(0) => return Err(failed("send")(std::io::ErrorKind::WriteZero.into())),
                Ok(sent) => rest = &rest[sent..],
                Err(e) if again(&e) => {}
                Err(e) => return Err(failed("send")(e)),
            }
        }
        Ok(())
    }

    fn receive(&mut self, bytes: &mut [u8]) -> Result<(), Error> {
        let mut have = 0;
        while have < bytes.len() {
            have += self.receive_some(&mut bytes[have..])?;
        }
        Ok(())
    }

    fn receive_some(&mut self, bytes: &mut [u8]) -> Result<usize, Error> {
        if !self.early.is_empty() {
            return self.early.read(bytes).map_err(failed("recv"));
        }
        loop {
            let left = self.left("recv")?;
            self.stream
                .set_read_timeout(Some(left))
                .map_err(failed("setsockopt(SO_RCVTIMEO)"))?;
            match self.stream.read(bytes) {
                Ok(0) => return Err(failed("recv")(std::io::ErrorKind::UnexpectedEof.into())),
                Ok(got) => return Ok(got),
                Err(e) if again(&e) => {}
                Err(e) => return Err(failed("recv")(e)),
            }
        }
    }

    fn left(&self, call: &'static str) -> Result<Duration, Error> {
        left(self.until).ok_or_else(|| Error::Bus {
            call,
            path: "systemd".to_owned(),
            source: Errno::TIMEDOUT,
        })
    }
}

/// What is left until the deadline; `None`: nothing. A timeout of 0 would be none.
fn left(until: Instant) -> Option<Duration> {
    let left = until.saturating_duration_since(Instant::now());
    (!left.is_zero()).then(|| left.max(Duration::from_millis(1)))
}

fn again(e: &std::io::Error) -> bool {
    matches!(
        e.kind(),
        std::io::ErrorKind::Interrupted | std::io::ErrorKind::WouldBlock
    )
}

fn failed(call: &'static str) -> impl Fn(std::io::Error) -> Error {
    move |e| Error::Bus {
        call,
        path: "systemd".to_owned(),
        source: Errno::from_io_error(&e).unwrap_or(Errno::PIPE),
    }
}

fn broken(what: &'static str) -> Error {
    Error::Systemd {
        call: "D-Bus",
        unit: String::new(),
        reason: format!("{what} that breaks the protocol"),
    }
}

/// The properties of a call as its arguments.
pub(crate) fn unit_properties(
    unit: &str,
    runtime: bool,
    properties: &[(&'static str, Value)],
) -> Body {
    let mut body = Body::default();
    body.text(unit);
    body.bool(runtime);
    body.properties(properties);
    body
}
