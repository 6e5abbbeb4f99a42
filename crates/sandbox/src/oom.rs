//! Kills by the kernel's OOM killer: watched, counted, told before the exit of whom they end.

use std::rc::Rc;
use std::time::Duration;

use berm_cgroup::{Cgroup, OomAround};
use berm_sys::Kind as ErrorKind;
use tokio::time::{Instant, sleep};

use crate::api::Event;
use crate::exits::ASK_AGAIN;
use crate::live::{Live, Sandbox};
use crate::polled::poll;
use crate::process::SIGKILL;
use crate::task::Task;

/// How long after its event v1's count of OOM kills is asked for.
const OOM_COUNTED: Duration = Duration::from_secs(1);

/// The kills in the slice of a pod whose containers are scopes of systemd's.
#[derive(Debug)]
pub(crate) struct Around {
    count: OomAround,
    /// How many of them have a container that they were told of, or were there before.
    known: u64,
}

impl Sandbox {
    pub(crate) fn watch_oom(&self, task: &Rc<Task>) {
        let watch = match task
            .cgroup
            .borrow()
            .as_ref()
            .map(berm_cgroup::Cgroup::oom_watch)
        {
            Some(Ok(Some(watch))) => watch,
            None | Some(Ok(None)) => return,
            Some(Err(e)) => {
                log::warn!(
                    "call=WatchOom container={} err={:?}",
                    task.id,
                    e.to_string()
                );
                return;
            }
        };
        if task.is_scope() {
            self.0.count_around(task);
        }
        // The kernel need not wake anybody when it removes a cgroup2 directory.
        let mut exit = task.process.exits();
        let (live, task) = (Rc::clone(&self.0), Rc::downgrade(task));
        tokio::task::spawn_local(async move {
            let Ok(watch) = poll(watch) else {
                return;
            };
            loop {
                let ready = tokio::select! {
                    ready = watch.readable() => ready,
                    _ = exit.changed() => return,
                };
                let Ok(mut ready) = ready else { return };
                ready.clear_ready();
                // v1 tells that memory is short, and counts the kill a moment later.
                let until = Instant::now() + OOM_COUNTED;
                loop {
                    let Some(task) = task.upgrade() else { return };
                    // An error means that the cgroup is gone; the last read was before the exit.
                    let Ok(kills) = watch.get_ref().0.oom_kills() else {
                        return;
                    };
                    if task.process.has_ended() {
                        return;
                    }
                    if live.tell_oom_count(&task, kills) || Instant::now() >= until {
                        break;
                    }
                    drop(task);
                    sleep(ASK_AGAIN).await;
                }
            }
        });
    }
}

impl Live {
    /// Opens the count of the pod's slice with its first container.
    fn count_around(&self, task: &Task) {
        let mut around = self.oom_around.borrow_mut();
        let cgroup = task.cgroup.borrow();
        let (None, Some(cgroup)) = (around.as_ref(), cgroup.as_ref()) else {
            return;
        };
        let opened = cgroup.oom_around().and_then(|count| match count {
            Some(count) => Ok(Some((count.oom_kills()?, count))),
            None => Ok(None),
        });
        match opened {
            Ok(Some((known, count))) => *around = Some(Around { count, known }),
            Ok(None) => {}
            Err(e) => log::warn!(
                "call=WatchOom container={} err={:?}",
                task.id,
                e.to_string()
            ),
        }
    }

    /// Before the exit with `status` is told: kills that were not told yet.
    ///
    /// systemd removes an empty scope at once, and the kernel holds back up to 10 ms what it tells
    /// of a file that has just changed: the last count of the scope may be lost. A SIGKILL is the
    /// OOM killer's then if the pod's slice counts a kill that nobody was told of.
    pub(crate) fn tell_last_oom(&self, task: &Task, status: u32) {
        let kills = task.cgroup.borrow().as_ref().map(Cgroup::oom_kills);
        match kills {
            Some(Ok(kills)) => drop(self.tell_oom_count(task, kills)),
            Some(Err(e)) if e.kind() == ErrorKind::NotFound => {
                let killed = status == 128 + SIGKILL;
                if killed && self.unknown_around() {
                    self.tell(Event::Oom {
                        id: task.id.clone(),
                    });
                }
            }
            Some(Err(e)) => {
                log::warn!("call=LastOom container={} err={:?}", task.id, e.to_string())
            }
            None => {}
        }
    }

    /// True if the slice counts kills that no container was told of; now they are known.
    fn unknown_around(&self) -> bool {
        let mut around = self.oom_around.borrow_mut();
        let Some(around) = around.as_mut() else {
            return false;
        };
        match around.count.oom_kills() {
            Ok(now) => now > std::mem::replace(&mut around.known, now),
            Err(e) => {
                log::warn!(
                    "call=LastOom sandbox={} err={:?}",
                    self.record.id,
                    e.to_string()
                );
                false
            }
        }
    }

    /// Tells of kills that were not told yet; true if there were any.
    fn tell_oom_count(&self, task: &Task, kills: u64) -> bool {
        let told = task.oom_told.replace(kills);
        if let Some(around) = self.oom_around.borrow_mut().as_mut() {
            around.known += kills.saturating_sub(told);
        }
        let new = kills > told;
        if new {
            self.tell(Event::Oom {
                id: task.id.clone(),
            });
        }
        new
    }
}
