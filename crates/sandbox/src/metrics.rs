//! Metrics of a sandbox: the table of what is registered at its birth, and the figures.
//!
//! Off until a metric server is configured: then the record says what will be told, before
//! any process of the pod runs, and every export is made from the kernel's figures at that moment.
//! What is counted between two exports is 1 kB.

mod figures;
mod table;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

pub use berm_metrics::{
    Address, Bucket, Buckets, Data, Definition, Error as MetricsError, Field, Filter, Histogram,
    Label, Metadata, Metric, Number, Page, Registration, Snapshot, Told, Type, Verifier, rfc3339,
};
use berm_sys::Kind as ErrorKind;

use crate::api::Event;
use crate::config::Config;
use crate::error::Error;
use crate::live::{Live, Sandbox};
use crate::phases::Phases;
use crate::record::Record;
use crate::task::Kind;

/// What is timed: the calls that bring a process to life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timed {
    /// Create of a container, or of the sandbox.
    Create,
    /// Start of a container.
    Start,
    /// Start of an exec.
    Exec,
}

impl Timed {
    const ALL: [Self; 3] = [Self::Create, Self::Start, Self::Exec];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Start => "start",
            Self::Exec => "exec",
        }
    }
}

/// What happened since the sandbox's birth; there only if somebody asks for metrics.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    container_starts: Cell<u64>,
    container_exits: Cell<u64>,
    exec_starts: Cell<u64>,
    exec_exits: Cell<u64>,
    /// By [`Timed`] and by [`table::PHASES`].
    phases: RefCell<[[Histogram; table::PHASES.len()]; Timed::ALL.len()]>,
}

impl Counts {
    /// Counts what happened, but to the task of this id: the sandbox's own, which is no container.
    pub(crate) fn count(&self, event: &Event, pause: Option<&str>) {
        let counter = match event {
            Event::Started { id, .. } | Event::Exited { id, .. } if pause == Some(id) => return,
            Event::Started { .. } => &self.container_starts,
            Event::Exited { exec: None, .. } => &self.container_exits,
            Event::ExecStarted { .. } => &self.exec_starts,
            Event::Exited { exec: Some(_), .. } => &self.exec_exits,
            _ => return,
        };
        counter.set(counter.get() + 1);
    }

    fn observe(&self, timed: Timed, phases: &Phases, whole: Duration) {
        let mut all = self.phases.borrow_mut();
        let Some(of_call) = all.get_mut(timed as usize) else {
            return;
        };
        let parts = phases.parts().iter().copied();
        for (name, length) in parts.chain([(table::WHOLE, whole)]) {
            let at = table::PHASES.iter().position(|phase| *phase == name);
            if let Some(histogram) = at.and_then(|at| of_call.get_mut(at)) {
                histogram.observe(length);
            }
        }
    }
}

impl Sandbox {
    /// What was registered when the sandbox was created: every metric that
    /// [`Sandbox::export_metrics`] may tell. gVisor's `GetRegisteredMetrics`.
    /// # Errors
    /// `FailedPrecondition` if no metric server was configured then.
    pub fn registered_metrics(&self) -> Result<&Registration, Error> {
        let registered = self.0.record.registered_metrics.as_ref();
        registered.ok_or_else(|| Error::NoMetrics {
            id: self.id().to_owned(),
        })
    }

    /// The figures of now whose names the regular expression `only` matches; an empty one: all.
    /// Read from cgroup files and from the pod's network namespace, about 150 µs a container.
    /// gVisor's `ExportMetrics`.
    /// # Errors
    /// `FailedPrecondition` as [`Sandbox::registered_metrics`]; `InvalidArgument` for what is no
    /// regular expression, `NotFound` for one that no registered name matches; the errno of
    /// reading a file.
    pub fn export_metrics(&self, only: &str) -> Result<Snapshot, Error> {
        self.registered_metrics()?;
        let filter = Filter::new(only)?;
        filter.check(table::ALL.iter().map(|definition| definition.name))?;
        let mut out = Out {
            filter,
            data: Vec::new(),
        };
        out.counts(&self.0);
        self.states(&mut out);
        out.network(&self.0);
        self.containers(&mut out)?;
        Ok(Snapshot {
            when: berm_metrics::rfc3339(SystemTime::now()),
            data: out.data,
        })
    }

    /// Counts how long a call took that succeeded, whole and by its phases; nothing where no
    /// metrics are asked for.
    pub fn observe(&self, timed: Timed, phases: &Phases, whole: Duration) {
        if let Some(counts) = &self.0.counts {
            counts.observe(timed, phases, whole);
        }
    }

    /// How many containers there are in each state, and execs.
    fn states(&self, out: &mut Out) {
        let mut states: BTreeMap<&str, u64> =
            table::STATES.iter().map(|state| (*state, 0)).collect();
        let mut execs: u64 = 0;
        for task in self.0.tasks.borrow().values() {
            if task.kind == Kind::Sandbox {
                continue;
            }
            *states.entry(task.process.status().as_str()).or_default() += 1;
            let running = |exec: &&_| !crate::task::Process::has_ended(exec);
            let all = task.execs.borrow();
            execs += all
                .values()
                .map(|exec| &exec.process)
                .filter(running)
                .count() as u64;
        }
        for (state, count) in states {
            out.push(&table::CONTAINERS, &[("state", state)], count.into());
        }
        out.push(&table::EXECS, &[], execs.into());
    }

    fn containers(&self, out: &mut Out) -> Result<(), Error> {
        for id in self.tasks() {
            let task = self.0.task(&id)?;
            if task.kind == Kind::Sandbox {
                continue;
            }
            match self.stats(&id) {
                Ok(stats) => out.container(&id, &stats),
                // It has no cgroup yet, or just now none any more.
                Err(e)
                    if e.kind() == ErrorKind::NotFound
                        || e.kind() == ErrorKind::FailedPrecondition => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}

/// A snapshot on its way.
struct Out {
    filter: Filter,
    data: Vec<Data>,
}

impl Out {
    fn push(&mut self, definition: &Definition, labels: &[(&str, &str)], number: Number) {
        self.row(definition, labels, |data| data.val = Some(number));
    }

    fn row(
        &mut self,
        definition: &Definition,
        labels: &[(&str, &str)],
        set: impl FnOnce(&mut Data),
    ) {
        if !self.filter.matches(definition.name) {
            return;
        }
        let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        let mut data = Data {
            metric: Metric {
                name: definition.name.to_owned(),
                r#type: definition.kind,
                help: definition.help.to_owned(),
            },
            labels: labels.iter().map(own).collect(),
            val: None,
            histogram: None,
        };
        set(&mut data);
        self.data.push(data);
    }

    fn counts(&mut self, live: &Live) {
        let Some(counts) = &live.counts else { return };
        let all = [
            (&table::CONTAINER_STARTS, &counts.container_starts),
            (&table::CONTAINER_EXITS, &counts.container_exits),
            (&table::EXEC_STARTS, &counts.exec_starts),
            (&table::EXEC_EXITS, &counts.exec_exits),
        ];
        for (definition, counter) in all {
            self.push(definition, &[], counter.get().into());
        }
        for (timed, of_call) in Timed::ALL.iter().zip(counts.phases.borrow().iter()) {
            for (phase, histogram) in table::PHASES.iter().zip(of_call) {
                if histogram.is_empty() {
                    continue;
                }
                let labels = [("call", timed.as_str()), ("phase", *phase)];
                self.row(&table::PHASE_SECONDS, &labels, |data| {
                    data.histogram = Some(histogram.buckets());
                });
            }
        }
    }

    /// Of a pod with a network namespace of its own: the host's counters are not the pod's.
    fn network(&mut self, live: &Live) {
        if live.shares.net {
            return;
        }
        for interface in live.interfaces() {
            let name: String = interface.name.escape_default().collect();
            for (definition, number) in table::NETWORK.iter().zip(interface.counters()) {
                self.push(definition, &[("interface", &name)], number.into());
            }
        }
    }
}

impl Record {
    /// Registers this build's metrics, if a metric server is configured.
    pub(crate) fn register_metrics(&mut self, config: &Config) {
        let Some(address) = &config.metric_server else {
            return;
        };
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let metadata = [
            ("cpuarch", std::env::consts::ARCH.to_owned()),
            ("engine", self.engine.clone()),
            ("numcores", cores.to_string()),
            ("version", env!("CARGO_PKG_VERSION").to_owned()),
        ];
        self.registered_metrics = Some(Registration::Own(table::ALL));
        self.metric_metadata = Some(metadata.map(|(key, value)| (key.to_owned(), value)).into());
        self.metric_server_address = Some(address.to_string());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_counted_costs_about_a_kilobyte() {
        assert!(size_of::<Counts>() <= 2048, "{}", size_of::<Counts>());
    }
}
