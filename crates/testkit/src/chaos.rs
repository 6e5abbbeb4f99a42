//! `kill -9` of a shim or of containerd at random moments of a pod's life.
//!
//! One thread lives the life of a pod, its calls failing as they may; this one kills when the
//! life is at the chosen moment. Then the pod is removed as kubelet would, again until it works,
//! and the node must be as before: processes, mounts, cgroups, network, sockets, files. Beside it
//! a pod lives that nobody kills and that writes numbered lines all the time. The exits are
//! counted as containerd tells them.

mod away;
mod events;
mod life;
mod writer;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant, SystemTime};

use self::away::Scene;
use self::events::{Ledger, Told};
use self::life::{Configs, Life, Moment};
use self::writer::Writer;
use crate::error::{Error, chain};
use crate::guard::{Guard, pause};
use crate::node::{Node, Setup};
use crate::peers::Peers;
use crate::process::{self, Process};
use crate::total;

/// What is killed, and how often.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// The shim under test [default: the one that `make build` left]
    #[arg(long)]
    shim: Option<PathBuf>,
    #[command(flatten)]
    kills: Kills,
}

/// How often who is killed.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct Kills {
    /// Where the random moments begin [default: the clock]; a run prints its own
    #[arg(long)]
    seed: Option<u64>,
    /// How often a shim is killed
    #[arg(long, default_value_t = 20)]
    shim_kills: u32,
    /// How often containerd is killed and started again
    #[arg(long, default_value_t = 5)]
    containerd_kills: u32,
}

impl Kills {
    /// At moments that the clock decides.
    #[must_use]
    pub fn new(shim_kills: u32, containerd_kills: u32) -> Self {
        Self {
            seed: None,
            shim_kills,
            containerd_kills,
        }
    }
}

/// Who is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victim {
    Shim,
    Containerd,
}

impl Victim {
    fn name(self) -> &'static str {
        match self {
            Self::Shim => "shim",
            Self::Containerd => "containerd",
        }
    }
}

/// Longest time that what the killed ones left may take to go, once the pod is removed.
const CLEAN: Duration = Duration::from_secs(30);
/// How the guard tells a file of a container's bundle.
const BUNDLE: &str = " file /run/containerd/io.containerd.runtime.v2.task/k8s.io/";
/// What the guard says of a shim's socket.
const SOCKET: &str = "+ file /run/containerd/s/";
/// Longest time that a shim may take to be born.
const BIRTH: Duration = Duration::from_secs(2);
/// Longest time that a life may take to come to its next moment.
const MOMENT: Duration = Duration::from_secs(60);

/// Kills, and prints a line for each time; false when something went wrong.
/// # Errors
/// What hinders the test itself.
pub fn run(peers: &Peers, args: &Args) -> Result<bool, Error> {
    let start = Instant::now();
    let setup = Setup::of_shim(args.shim.clone());
    let mut node = Node::start(peers, &setup)?;
    let (passed, failed) = on_node(&mut node, "berm", args.kills)?;
    node.stop()?;
    Ok(total::tell(passed as usize, failed as usize, start))
}

/// Kills on a node and gives how many checks passed and failed.
/// # Errors
/// What hinders the test itself.
pub fn on_node(node: &mut Node, handler: &str, args: Kills) -> Result<(u32, u32), Error> {
    let seed = args.seed.unwrap_or_else(clock);
    println!("chaos on {handler}, --seed {seed}");
    let mut chaos = Chaos::prepare(node, handler, seed)?;
    for number in 0..args.shim_kills as usize {
        chaos.incident(node, number, Victim::Shim)?;
    }
    // A short run shall see Start and Execs.
    for number in 0..args.containerd_kills as usize {
        chaos.incident(node, number + 2, Victim::Containerd)?;
    }
    chaos.away(node)?;
    chaos.finish(node)
}

struct Chaos {
    random: Random,
    configs: Configs,
    handler: String,
    /// How long each moment lasts when nothing is killed.
    spans: Vec<(Moment, Duration)>,
    writer: Writer,
    guard: Guard,
    told: Told,
    ledger: Ledger,
    passed: u32,
    failed: u32,
    /// How often containerd left a bundle.
    bundles: usize,
    /// How many sockets of shims that it never met.
    sockets: usize,
}

impl Chaos {
    fn prepare(node: &Node, handler: &str, seed: u64) -> Result<Self, Error> {
        let configs = Configs::write(node.dir())?;
        let mut ledger = Ledger::default();
        let writer = Writer::start(node, handler, &configs)?;
        // Warms up: the first makes the state directory.
        Life::new(node, handler, &configs).pod(true, &|_| {});
        let told = Told::subscribe(node)?;
        let times = std::sync::Mutex::new(Vec::new());
        let stamp = |moment| {
            let mut times = times.lock().unwrap_or_else(|lock| lock.into_inner());
            times.push((moment, Instant::now()));
        };
        let life = Life::new(node, handler, &configs);
        life.pod(true, &stamp);
        life.pod(false, &stamp);
        life.task(&stamp);
        let end = Instant::now();
        life::remove_all(node, writer.pod())?;
        let times = times.into_inner().unwrap_or_else(|lock| lock.into_inner());
        let ends = times.iter().skip(1).map(|(_, at)| *at).chain([end]);
        // Of a moment that came twice the later counts.
        let spans: BTreeMap<Moment, Duration> = times
            .iter()
            .zip(ends)
            .map(|((moment, at), end)| (*moment, end - *at))
            .collect();
        let spans = spans.into_iter().collect();
        let guard = Guard::of_node(node)?;
        ledger.undisturbed(&told)?;
        Ok(Self {
            random: Random(seed | 1),
            configs,
            handler: handler.to_owned(),
            spans,
            writer,
            guard,
            told,
            ledger,
            passed: 0,
            failed: 0,
            bundles: 0,
            sockets: 0,
        })
    }

    /// One kill, the removal after it, and the checks.
    fn incident(&mut self, node: &mut Node, number: usize, victim: Victim) -> Result<(), Error> {
        // Each moment in turn, so that a short run sees all; the last two belong to `ctr run`.
        let (moment, span) = self.spans[number % self.spans.len()];
        let start = Instant::now();
        let mut delay = self.random.below(span);
        let mut killed = self.kill(node, victim, moment, delay)?;
        for _ in 0..5 {
            if killed {
                break;
            }
            // The shim had gone. Nobody was killed: once more.
            life::remove_all(node, self.writer.pod())?;
            delay = self.random.below(span);
            killed = self.kill(node, victim, moment, delay)?;
        }
        let mut outlived = Vec::new();
        if victim == Victim::Containerd {
            node.start_containerd()?;
            // What was told before the kill was heard; what is told until this stands is not.
            let mut told = std::mem::replace(&mut self.told, Told::subscribe(node)?);
            self.ledger.cut(&told.end()?);
            outlived = life::ready(node, self.writer.pod())?;
        }
        let removed = life::remove_all(node, self.writer.pod());
        let clean = removed.and_then(|()| self.guard.assert_clean(CLEAN));
        let clean = clean.or_else(|error| self.but_containerds_own(node, error));
        let mut wrong: Vec<String> = clean.iter_err();
        if victim == Victim::Shim {
            wrong.extend(self.ledger.shim_killed(&self.told)?);
        } else {
            wrong.extend(self.ledger.lived(&self.told, &outlived)?);
        }
        if !self.writer.lives(node) {
            wrong.push("the pod beside it ended".into());
        }
        let what = format!(
            "kill {} at {moment:?}+{delay:.1?}{}",
            victim.name(),
            if killed { "" } else { " (it had gone)" }
        );
        self.say(&what, start, &wrong);
        if !wrong.is_empty() {
            println!("    containerd's log:\n{}", node.log_tail(25));
            // What is left must not be found again after the next kill.
            self.guard = Guard::of_node(node)?;
        }
        Ok(())
    }

    /// Two processes end while no containerd runs.
    fn away(&mut self, node: &mut Node) -> Result<(), Error> {
        let start = Instant::now();
        let scene = Scene::build(node, &self.handler, &self.configs)?;
        node.kill_containerd()?;
        scene.end_them()?;
        node.start_containerd()?;
        let mut told = std::mem::replace(&mut self.told, Told::subscribe(node)?);
        self.ledger.cut(&told.end()?);
        let mut wrong = scene.wrong(node)?;
        let removed = life::remove_all(node, self.writer.pod());
        let clean = removed.and_then(|()| self.guard.assert_clean(CLEAN));
        wrong.extend(clean.iter_err());
        wrong.extend(self.ledger.lived(&self.told, &[scene.pod])?);
        self.say("exits while no containerd ran", start, &wrong);
        Ok(())
    }

    /// Lives a pod's life and kills at `delay` into `moment`; false when there was nobody left.
    fn kill(
        &self,
        node: &Node,
        victim: Victim,
        moment: Moment,
        delay: Duration,
    ) -> Result<bool, Error> {
        let (tell, moments) = channel();
        std::thread::scope(|scope| {
            let life = scope.spawn(move || {
                let life = Life::new(node, &self.handler, &self.configs);
                let step = |moment| {
                    // The killer may have gone on: the life does not mind.
                    let _ = tell.send(moment);
                };
                if moment.is_of_task() {
                    life.task(&step);
                } else {
                    life.pod(moment != Moment::Delete, &step);
                }
            });
            wait_for(&moments, moment)?;
            pause(delay);
            let killed = match victim {
                Victim::Shim => self.kill_shims(node, moment, delay),
                Victim::Containerd => node.kill_containerd().map(|()| true)?,
            };
            // Its calls fail or time out; a panic in it would be a fault of the test.
            let _ = life.join();
            Ok(killed)
        })
    }

    /// Kills the shims but the writer's. Not what containerd itself started (`start`, `delete`),
    /// and not the stage children: those are left to see by themselves that they are alone.
    fn kill_shims(&self, node: &Node, moment: Moment, delay: Duration) -> bool {
        let end = Instant::now() + BIRTH;
        loop {
            let shims = self.shims(node);
            shims.iter().for_each(Process::kill);
            if !shims.is_empty() {
                return true;
            }
            if !moment.is_birth() || Instant::now() > end {
                return false;
            }
            // It is not born yet. A pod is made in the milliseconds after.
            while self.shims(node).is_empty() && Instant::now() < end {}
            pause(delay / 16);
        }
    }

    fn shims(&self, node: &Node) -> Vec<Process> {
        process::descendants(node.keeper_pid())
            .into_iter()
            .filter(|process| process.comm.starts_with("containerd-shim"))
            .filter(|process| process.pid != self.writer.shim() && process.leads_session())
            .collect()
    }

    /// What containerd itself leaves, whatever the runtime: the bundle of a container whose Start
    /// its shim did not answer any more, until it starts again (it calls `delete` for the sandbox
    /// alone), and the socket of a shim that died before it could connect (it calls no `delete`).
    fn but_containerds_own(&mut self, node: &Node, error: Error) -> Result<(), Error> {
        let Error::Leak(text) = error else {
            return Err(error);
        };
        let log = std::fs::read_to_string(node.log()).unwrap_or_default();
        let sockets = text.lines().filter_map(|line| unmet_socket(line, &log));
        let sockets: Vec<_> = sockets.collect();
        let bundles = text.lines().filter(|line| line[1..].starts_with(BUNDLE));
        let bundles = bundles.count();
        if sockets.len() + bundles != text.lines().count() {
            return Err(Error::Leak(text));
        }
        for socket in &sockets {
            let _ = std::fs::remove_file(socket);
        }
        self.sockets += sockets.len();
        self.bundles += usize::from(bundles > 0 && text.contains("+ file"));
        self.guard = Guard::of_node(node)?;
        Ok(())
    }

    /// The checks over all incidents.
    fn finish(mut self, node: &Node) -> Result<(u32, u32), Error> {
        let start = Instant::now();
        let wrong = self.writer.finish(node)?;
        println!("  {}", self.writer.story());
        self.say("output of the pod beside them", start, &wrong);
        let last = self.told.end()?;
        let wrong = self.ledger.close(&last, self.writer.ids());
        println!("  {}", self.ledger.story());
        println!(
            "  {} times containerd left a container's bundle until its restart, {} times the socket \
             of a shim that was killed before it connected",
            self.bundles, self.sockets
        );
        self.say("exits told", start, &wrong);
        Ok((self.passed, self.failed))
    }

    fn say(&mut self, what: &str, start: Instant, wrong: &[String]) {
        let word = if wrong.is_empty() { "ok" } else { "FAILED" };
        println!("{what} ... {word} ({:.2}s)", start.elapsed().as_secs_f32());
        for line in wrong.iter().flat_map(|text| text.lines()) {
            println!("    {line}");
        }
        match wrong.is_empty() {
            true => self.passed += 1,
            false => self.failed += 1,
        }
    }
}

/// The path in a guard's line, if that is the socket of a shim that containerd, by its own `log`,
/// never reached.
fn unmet_socket<'a>(line: &'a str, log: &str) -> Option<&'a str> {
    let path = line
        .starts_with(SOCKET)
        .then_some(&line["+ file ".len()..])?;
    log.contains(&format!("dial unix {path}: connect: connection refused"))
        .then_some(path)
}

/// The error as a line, for what is collected and not given up.
trait IterErr {
    fn iter_err(&self) -> Vec<String>;
}

impl IterErr for Result<(), Error> {
    fn iter_err(&self) -> Vec<String> {
        self.as_ref().err().map(chain).into_iter().collect()
    }
}

fn wait_for(moments: &Receiver<Moment>, wanted: Moment) -> Result<(), Error> {
    loop {
        match moments.recv_timeout(MOMENT) {
            Ok(moment) if moment == wanted => return Ok(()),
            Ok(_) => {}
            Err(e) => {
                let ended = matches!(e, RecvTimeoutError::Disconnected);
                let what = format!("the way to {wanted:?} (the life ended: {ended})");
                let limit = MOMENT;
                return Err(Error::Deadline { what, limit });
            }
        }
    }
}

fn clock() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let now = now.unwrap_or_default();
    now.as_secs() << 20 | u64::from(now.subsec_micros())
}

/// xorshift64*.
#[derive(Debug)]
struct Random(u64);

impl Random {
    fn below(&mut self, limit: Duration) -> Duration {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let top = self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 32;
        let micros = u64::try_from(limit.as_micros()).unwrap_or(u64::MAX);
        Duration::from_micros(top % micros.max(1))
    }
}
