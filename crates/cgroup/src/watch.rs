//! File descriptors that become readable when a cgroup changes.
//!
//! v2's event files are polled for `POLLPRI`; an epoll FD around one makes that a plain
//! `POLLIN` for the caller. No inotify: its instances are limited to 128 for each user by default,
//! and a node has more containers than that.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::event::{EventfdFlags, epoll};
use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::controller::Controller;
use crate::dir::{Dir, key_values, read_whole};
use crate::{Cgroup, Error, Mode};

/// An event file of cgroup2, readable (`POLLIN`, level-triggered) when it changed since the last
/// read, and for good once the cgroup is removed.
#[derive(Debug)]
pub struct Watch {
    epoll: OwnedFd,
    file: OwnedFd,
    path: PathBuf,
}

impl Watch {
    fn new(dir: &Dir, name: &str) -> Result<Self, Error> {
        let call = |call| move |source| Error::Call { call, source };
        let file = dir.file(name, OFlags::RDONLY)?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)
            .map_err(call("epoll_create1(EPOLL_CLOEXEC)"))?;
        let data = epoll::EventData::new_u64(0);
        epoll::add(&epoll, &file, data, epoll::EventFlags::PRI)
            .map_err(call("epoll_ctl(EPOLL_CTL_ADD, EPOLLPRI)"))?;
        let watch = Self {
            epoll,
            file,
            path: dir.path().join(name),
        };
        // Until its first read a file counts as changed.
        watch.read(&mut Vec::new())?;
        Ok(watch)
    }

    /// Takes note of the change: not readable again before the next one.
    ///
    /// # Errors
    /// [`berm_sys::Kind::NotFound`] once the cgroup is removed.
    pub fn drain(&self) -> Result<(), Error> {
        self.read(&mut Vec::new())
    }

    fn read(&self, buf: &mut Vec<u8>) -> Result<(), Error> {
        read_file(self.file.as_fd(), &self.path, buf)
    }
}

impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

/// Becomes readable at an out-of-memory kill in the cgroup, and when the cgroup is removed.
///
/// On v1 the kernel wakes before it kills (and where the OOM killer is off): a wake-up means
/// "OOM", the count may come a moment later. On v2 `memory.events` also changes when a limit is
/// only touched: it is an OOM kill if the count has grown.
#[derive(Debug)]
pub struct OomWatch(Source);

#[derive(Debug)]
enum Source {
    V1 {
        eventfd: OwnedFd,
        control: OwnedFd,
        path: PathBuf,
    },
    V2(Watch),
}

impl OomWatch {
    /// Drains the wake-up and returns how many processes of the cgroup the OOM killer has killed
    /// so far.
    ///
    /// # Errors
    /// [`berm_sys::Kind::NotFound`] once the cgroup is removed.
    pub fn oom_kills(&self) -> Result<u64, Error> {
        match &self.0 {
            Source::V1 {
                eventfd,
                control,
                path,
            } => {
                match rustix::io::read(eventfd, &mut [0; 8]) {
                    Ok(_) | Err(Errno::AGAIN) => {}
                    Err(source) => {
                        return Err(Error::Call {
                            call: "read(eventfd)",
                            source,
                        });
                    }
                }
                oom_kills_in(control.as_fd(), path)
            }
            Source::V2(watch) => oom_kills_in(watch.file.as_fd(), &watch.path),
        }
    }
}

/// The count in an open `memory.events` or `memory.oom_control`.
fn oom_kills_in(file: BorrowedFd<'_>, path: &Path) -> Result<u64, Error> {
    let mut buf = Vec::new();
    read_file(file, path, &mut buf)?;
    let text = String::from_utf8_lossy(&buf);
    match key_values(&text).find(|(key, _)| *key == "oom_kill") {
        Some((_, kills)) => Ok(kills),
        None => Err(Error::Parse {
            path: path.to_owned(),
            text: text.chars().take(80).collect(),
        }),
    }
}

fn read_file(file: BorrowedFd<'_>, path: &Path, buf: &mut Vec<u8>) -> Result<(), Error> {
    match read_whole(file, buf) {
        Ok(()) => Ok(()),
        Err(Errno::NODEV) => Err(Error::Gone { path: path.into() }),
        Err(source) => Err(Error::Read {
            path: path.into(),
            source,
        }),
    }
}

impl AsFd for OomWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.0 {
            Source::V1 { eventfd, .. } => eventfd.as_fd(),
            Source::V2(watch) => watch.as_fd(),
        }
    }
}

/// The count of OOM kills in a cgroup's parent, with all below it: on cgroup2 it outlives the
/// cgroup, which systemd may remove before the cgroup's own last count is read.
#[derive(Debug)]
pub struct OomAround {
    events: OwnedFd,
    path: PathBuf,
}

impl OomAround {
    /// How many processes the OOM killer has killed there so far.
    ///
    /// # Errors
    /// [`berm_sys::Kind::NotFound`] once the parent is removed.
    pub fn oom_kills(&self) -> Result<u64, Error> {
        oom_kills_in(self.events.as_fd(), &self.path)
    }
}

impl Cgroup {
    /// Opens the count of OOM kills around this cgroup; `None` where the kernel has none (v1, and
    /// around a cgroup in the root).
    ///
    /// # Errors
    /// [`berm_sys::Kind::NotFound`] without the cgroup.
    pub fn oom_around(&self) -> Result<Option<OomAround>, Error> {
        let dir = self.need(Controller::Memory)?;
        if self.host.mode() != Mode::V2 {
            return Ok(None);
        }
        let name = "../memory.events";
        let events = match dir.file(name, OFlags::RDONLY) {
            Err(Error::Open {
                source: Errno::NOENT,
                ..
            }) => return Ok(None),
            opened => opened?,
        };
        let path = dir.path().join(name);
        Ok(Some(OomAround { events, path }))
    }

    /// Watches `cgroup.events`: emptiness and freezing. `None` on pure v1, whose kernel has no
    /// such event: [`Cgroup::is_empty`] and [`Cgroup::frozen`] have to be asked again there.
    ///
    /// # Errors
    /// [`berm_sys::Kind::NotFound`] without the cgroup.
    pub fn watch(&self) -> Result<Option<Watch>, Error> {
        self.unified()
            .map(|dir| Watch::new(dir, "cgroup.events"))
            .transpose()
    }

    /// Watches for out-of-memory kills. `None` if the host has no memory controller.
    ///
    /// # Errors
    /// [`berm_sys::Kind::NotFound`] without the cgroup; the errno of the call that is named.
    pub fn oom_watch(&self) -> Result<Option<OomWatch>, Error> {
        let Some(at) = self.host.hierarchy(Controller::Memory) else {
            return Ok(None);
        };
        let dir = self.need(Controller::Memory)?;
        if self.host.hierarchies[at].v2 {
            return Ok(Some(OomWatch(Source::V2(Watch::new(
                dir,
                "memory.events",
            )?))));
        }
        Ok(Some(OomWatch(oom_eventfd(dir)?)))
    }
}

/// v1: "<eventfd> <FD of memory.oom_control>" written to `cgroup.event_control`.
fn oom_eventfd(dir: &Dir) -> Result<Source, Error> {
    use std::os::fd::AsRawFd;
    let control = dir.file("memory.oom_control", OFlags::RDONLY)?;
    let eventfd = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
        .map_err(|source| Error::Call {
            call: "eventfd2(0, EFD_CLOEXEC|EFD_NONBLOCK)",
            source,
        })?;
    let registration = format!("{} {}", eventfd.as_raw_fd(), control.as_raw_fd());
    dir.write("cgroup.event_control", &registration)?;
    Ok(Source::V1 {
        eventfd,
        control,
        path: dir.path().join("memory.oom_control"),
    })
}
