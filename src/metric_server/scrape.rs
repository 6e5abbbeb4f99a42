//! One scrape: all sandboxes are asked at once, each within its deadline.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use berm_sandbox::metrics::{Data, Metric, Number, Page, Told, Type, Verifier};
use berm_sandbox::urpc::{self, AsyncClient, Limits, RawReply};
use berm_sandbox::{Record, Records};
use berm_sys::Kind;
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::error::Error;

/// Largest snapshot of one sandbox: 200 containers' figures.
const REPLY: Limits = Limits {
    bytes: 4 << 20,
    depth: 16,
    values: 200_000,
};

/// The sandboxes of the node, and what is remembered of each between scrapes.
#[derive(Debug)]
pub(super) struct Node {
    records: Records,
    only: Rc<str>,
    deadline: Duration,
    sandboxes: BTreeMap<PathBuf, Sandbox>,
    /// Rows of sandboxes that are gone.
    dropped_before: u64,
    scrapes: u64,
}

#[derive(Debug)]
struct Sandbox {
    record: Rc<Record>,
    /// `None`: it was not asked to tell metrics when it was made.
    verifier: Option<Verifier>,
    /// Its connection is kept between scrapes. `None` while a call has it.
    client: Option<AsyncClient>,
    labels: String,
    /// Seconds since 1970. Kept: what is made of two clocks is not the same twice.
    started: u64,
}

#[derive(Serialize)]
struct Export<'a> {
    only_metrics: &'a str,
}

#[derive(Deserialize)]
struct Exported<'a> {
    #[serde(borrow)]
    snapshot: Told<'a>,
}

impl Node {
    pub(super) fn new(state_dir: PathBuf, only: String, deadline: Duration) -> Self {
        Self {
            records: Records::new(&state_dir),
            only: only.into(),
            deadline,
            sandboxes: BTreeMap::new(),
            dropped_before: 0,
            scrapes: 0,
        }
    }

    /// The page of this moment.
    pub(super) async fn scrape(&mut self) -> Result<String, Error> {
        let begun = Instant::now();
        self.scrapes += 1;
        self.follow()?;
        let mut page = Own(Page::default());
        let mut asked = self.ask();
        let mut up = BTreeMap::new();
        while let Some(asked) = asked.join_next().await {
            // A task that panicked would have ended the process.
            let Ok(Asked {
                path,
                client,
                reply,
            }) = asked
            else {
                continue;
            };
            if let Some(sandbox) = self.sandboxes.get_mut(&path) {
                sandbox.client = Some(client);
                up.insert(path, sandbox.take(reply));
            }
        }
        for (path, sandbox) in &self.sandboxes {
            let up = up.get(path).copied();
            sandbox.about(&mut page, up);
            if let (Some(true), Some(verifier)) = (up, &sandbox.verifier) {
                self.dropped_before += verifier.write(&sandbox.labels, &mut page.0) as u64;
            }
        }
        self.about(&mut page, begun.elapsed());
        Ok(page.0.text())
    }

    /// Takes up new sandboxes and forgets those that are gone.
    fn follow(&mut self) -> Result<(), Error> {
        let records = self.records.load()?;
        let mut before = std::mem::take(&mut self.sandboxes);
        for record in records {
            if !record.init().is_alive() {
                continue;
            }
            let path = record.control_socket_path.clone();
            let same = before.get(&path).is_some_and(|old| old.record == record);
            let known = if same { before.remove(&path) } else { None };
            let sandbox = known.unwrap_or_else(|| Sandbox::new(record));
            self.sandboxes.insert(path, sandbox);
        }
        let verifiers = before.into_values().filter_map(|gone| gone.verifier);
        self.dropped_before += verifiers.map(|v| v.dropped()).sum::<u64>();
        Ok(())
    }

    /// Asks every sandbox that tells metrics, all at once.
    fn ask(&mut self) -> JoinSet<Asked> {
        let mut asked = JoinSet::new();
        for (path, sandbox) in &mut self.sandboxes {
            if sandbox.verifier.is_none() {
                continue;
            }
            let client = sandbox.client.take();
            let mut client = client.unwrap_or_else(|| AsyncClient::new(path, REPLY));
            let (path, only, deadline) = (path.clone(), Rc::clone(&self.only), self.deadline);
            asked.spawn_local(async move {
                let arg = Export {
                    only_metrics: &only,
                };
                let reply = timeout(deadline, client.call("Metrics.Export", &arg)).await;
                Asked {
                    path,
                    client,
                    reply: reply.ok().and_then(Result::ok),
                }
            });
        }
        asked
    }

    fn about(&self, page: &mut Own, took: Duration) {
        let of = self.sandboxes.values().filter_map(|s| s.verifier.as_ref());
        let dropped = self.dropped_before + of.map(Verifier::dropped).sum::<u64>();
        page.number(
            ("berm_metric_server_sandboxes", Type::Gauge),
            "Sandboxes that run.",
            "",
            (self.sandboxes.len() as u64).into(),
        );
        page.number(
            ("berm_metric_server_scrapes_total", Type::Counter),
            "Scrapes of this server.",
            "",
            self.scrapes.into(),
        );
        page.number(
            ("berm_metric_server_dropped_rows_total", Type::Counter),
            "Rows of sandboxes that were not as registered and are left out.",
            "",
            dropped.into(),
        );
        let ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        page.number(
            ("berm_metric_server_scrape_seconds", Type::Gauge),
            "How long this scrape took until here.",
            "",
            Number::seconds(ns),
        );
    }
}

/// A sandbox that was asked, and its answer if it gave one.
struct Asked {
    path: PathBuf,
    client: AsyncClient,
    reply: Option<RawReply>,
}

fn is_remote(error: &urpc::Error) -> bool {
    matches!(error, urpc::Error::Remote { .. })
}

impl Sandbox {
    fn new(record: Rc<Record>) -> Self {
        let labels = Page::labels(&[
            ("sandbox", &record.id),
            ("pod_name", &record.pod_name),
            ("namespace_name", &record.namespace),
        ]);
        Self {
            verifier: record.registered_metrics.as_ref().map(Verifier::new),
            client: None,
            labels,
            started: started(record.start_time),
            record,
        }
    }

    /// Takes the rows of its answer; false if it is none.
    fn take(&mut self, reply: Option<RawReply>) -> bool {
        let (Some(reply), Some(verifier)) = (reply, &mut self.verifier) else {
            return false;
        };
        let told = match reply.result::<Exported<'_>>() {
            Ok(exported) => exported.snapshot,
            // Nothing of it matches --only.
            Err(e) if e.kind() == Kind::NotFound && is_remote(&e) => Told::default(),
            Err(_) => return false,
        };
        verifier.check(&told);
        true
    }

    /// What the server knows of it; `up`: whether it answered, if it was asked.
    fn about(&self, page: &mut Own, up: Option<bool>) {
        let Record {
            engine, isolation, ..
        } = &*self.record;
        let metrics = if self.verifier.is_some() { "on" } else { "off" };
        let own = Page::labels(&[
            ("engine", engine),
            ("userns", &isolation.userns),
            ("containerd_namespace", &self.record.containerd_namespace),
            ("metrics", metrics),
        ]);
        page.number(
            ("berm_sandbox_info", Type::Gauge),
            "What a sandbox is; always 1.",
            &format!("{},{own}", self.labels),
            1.into(),
        );
        if let Some(up) = up {
            page.number(
                ("berm_sandbox_up", Type::Gauge),
                "Whether the sandbox told its figures within the deadline.",
                &self.labels,
                u64::from(up).into(),
            );
        }
        page.number(
            ("berm_sandbox_start_time_seconds", Type::Gauge),
            "When the sandbox was started, in seconds since 1970.",
            &self.labels,
            self.started.into(),
        );
    }
}

/// Clock ticks since boot → seconds since 1970.
fn started(ticks: u64) -> u64 {
    let boot = Duration::try_from(clock_gettime(ClockId::Boottime)).unwrap_or_default();
    let wall = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let hertz = rustix::param::clock_ticks_per_second().max(1);
    let millis = Duration::from_millis(ticks.saturating_mul(1000) / hertz);
    // Rounded: the two clocks are not read in one moment.
    let at = (wall + millis).saturating_sub(boot) + Duration::from_millis(500);
    at.as_secs()
}

/// A page with rows of the server's own.
struct Own(Page);

impl Own {
    fn number(&mut self, (name, kind): (&str, Type), help: &str, labels: &str, number: Number) {
        let metric = Metric {
            name: name.to_owned(),
            r#type: kind,
            help: help.to_owned(),
        };
        let data = Data {
            metric,
            labels: BTreeMap::new(),
            val: Some(number),
            histogram: None,
        };
        // The server's own names are none that a sandbox registers with another type first.
        let _ = self.0.add(labels, &data);
    }
}
