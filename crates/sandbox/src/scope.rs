//! Cgroups and who makes them: mkdir(2), or systemd.

use std::os::fd::AsFd;
use std::time::Duration;

use berm_cgroup::{Cgroup, CgroupPath, Place, Resources, Unit};

use crate::aside::Aside;
use crate::error::Error;
use crate::host::Host;
use crate::stage::{Forked, Outcome, Stage};

/// The spec's cgroup, or a place of Berm's own.
pub(crate) fn place(from_spec: Option<&str>, id: &str) -> Result<Place, Error> {
    let own = format!("/berm/{id}");
    Ok(Place::parse(from_spec.unwrap_or(&own))?)
}

/// A process that keeps a scope of systemd's until others are in it: it ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Holder {
    _stage: Stage,
    _child: Forked,
}

impl Host {
    /// Makes the cgroup at `place`. A scope has a holder in it, to be kept until the first process
    /// of its own is there.
    pub(crate) async fn make_cgroup(
        &self,
        place: &Place,
        limits: &Resources,
    ) -> Result<(Cgroup, Option<Holder>), Error> {
        let Some(unit) = &place.unit else {
            return Ok((Cgroup::create(&self.cgroup, &place.path)?, None));
        };
        // What the host refuses, it refuses before systemd is asked.
        self.cgroup.refuse_scopes()?;
        self.cgroup.settings(limits)?;
        let holder = self.start_scope(unit, limits).await?;
        match Cgroup::adopt(&self.cgroup, &place.path, unit) {
            Ok(cgroup) => Ok((cgroup, Some(holder))),
            Err(e) => {
                drop(holder);
                stop_logged(unit, &place.path, self.config.kill_deadline).await;
                Err(e.into())
            }
        }
    }

    async fn start_scope(&self, unit: &Unit, limits: &Resources) -> Result<Holder, Error> {
        let deadline = self.config.stage_deadline;
        let (stage, child_end) = Stage::new("StartScope", deadline)?;
        let until = std::time::Instant::now() + deadline;
        let child = berm_stage::spawn_scope(child_end.as_fd(), unit, limits, until)?;
        let child = Forked::new(child);
        drop(child_end);
        let mut outcome = Outcome::default();
        stage.listen(&mut outcome).await?;
        if !outcome.at_gate {
            return Err(Error::Died { last: "StartScope" });
        }
        Ok(Holder {
            _stage: stage,
            _child: child,
        })
    }
}

/// Has systemd end and forget a scope; one that is gone is fine.
pub(crate) async fn stop(unit: &Unit, deadline: Duration) -> Result<(), Error> {
    let until = std::time::Instant::now() + deadline;
    let stopping = Aside::begin("StopScope", deadline, |report| {
        berm_stage::spawn_scope_stop(report, unit, until)
    })?;
    stopping.end().await.map(drop)
}

async fn stop_logged(unit: &Unit, path: &CgroupPath, deadline: Duration) {
    if let Err(e) = stop(unit, deadline).await {
        let path = path.relative();
        log::error!("call=StopScope cgroup={path} err={:?}", e.chain());
    }
}
