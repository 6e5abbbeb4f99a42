//! A process that writes 10 MB/s for a minute while containerd, and with it the reader of its
//! output, is killed and started again: no byte is lost, and no write waits for longer than that.
//!
//! The reader is the test itself: what containerd has read and not written yet goes with it, and
//! nobody outside could tell it from what a shim has lost. `chaos` watches a log of CRI's.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::command;
use crate::error::{Error, call, chain, file};
use crate::guard::{Guard, pause};
use crate::image::BUSYBOX;
use crate::node::{CALL, Node, Setup};
use crate::peers::Peers;
use crate::total;

/// How much, and how often containerd is killed meanwhile.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// The shim under test [default: the one that `make build` left]
    #[arg(long)]
    shim: Option<PathBuf>,
    /// containerd's name of the runtime
    #[arg(long, default_value = "io.containerd.berm.v1")]
    runtime: String,
    /// Megabytes to write; at most ten a second
    #[arg(long, default_value_t = 600)]
    megabytes: u64,
    /// How often containerd and the reader are killed and started again
    #[arg(long, default_value_t = 3)]
    kills: u64,
}

/// Bytes of a line, its end among them.
const LINE: usize = 4096;
/// Lines in each hundredth of a second, the tick of the writer's clock: 10.2 MB/s. A writer that is
/// late rests no more until it is where it should be.
const BURST: u32 = 25;
/// What a busy machine may add to the longest wait: the clock that the writer reads has 10 ms.
const SLACK: Duration = Duration::from_millis(1500);
/// Longest time without a byte.
const SILENCE: Duration = Duration::from_secs(60);
/// The code that the writer ends with.
const CODE: i32 = 4;
const TASK: &str = "flood";
/// Time that the writer's remains have to go.
const CLEAN: Duration = Duration::from_secs(30);

/// Runs the test; false when something went wrong.
/// # Errors
/// What hinders the test itself.
pub fn run(peers: &Peers, args: &Args) -> Result<bool, Error> {
    let start = Instant::now();
    let setup = Setup::of_shim(args.shim.clone());
    let mut node = Node::start(peers, &setup)?;
    let wrong = flood(&mut node, args);
    if wrong.is_err() {
        println!("    containerd's log:\n{}", node.log_tail(25));
    }
    node.stop()?;
    let wrong = wrong?;
    wrong.iter().for_each(|text| println!("    {text}"));
    let failed = usize::from(!wrong.is_empty());
    Ok(total::tell(1 - failed, failed, start))
}

fn flood(node: &mut Node, args: &Args) -> Result<Vec<String>, Error> {
    let lines = args.megabytes * 1_000_000 / LINE as u64;
    let fifos = node.dir().join("flood-fifos");
    warm_up(node, args)?;
    let guard = Guard::of_node(node)?;
    start(node, args, &fifos, lines)?;
    let path = find(&fifos, "-stdout")?;
    let mut reader = Reader::default();
    let mut stream = Stream::open(&path)?;
    let begun = Instant::now();
    let pulse = Pulse::start();
    let go_fifos = node.dir().join("go-fifos").to_string_lossy().into_owned();
    let mut go = vec!["task", "exec", "--exec-id", "go", "--fifo-dir", &go_fifos];
    go.extend([TASK, "touch", "/tmp/go"]);
    node.run("ctr", &go)?;
    let mut outages = Vec::new();
    for kill in 0..=args.kills {
        let until = lines * (kill + 1) / (args.kills + 1) * LINE as u64;
        while reader.bytes < until && stream.read_into(&mut reader)? {}
        if kill < args.kills {
            drop(stream);
            let away = Instant::now();
            node.kill_containerd()?;
            node.start_containerd()?;
            stream = Stream::open(&path)?;
            outages.push(away.elapsed());
        } else {
            while stream.read_into(&mut reader)? {}
            break;
        }
    }
    let took = begun.elapsed();
    let still = pulse.end();
    let mut wrong = reader.wrong(lines);
    let longest = outages.iter().max().copied().unwrap_or_default();
    if reader.longest > longest + still + SLACK {
        wrong.push(format!(
            "a write took {:.2?}, an outage at most {longest:.2?}, and the machine stood still for \
             at most {still:.2?}",
            reader.longest
        ));
    }
    wrong.extend(end(node)?);
    wrong.extend(guard.assert_clean(CLEAN).err().map(|e| chain(&e)));
    println!(
        "{} MB in {:.1}s ({:.1} MB/s), containerd and the reader away for {outages:.1?}, longest \
         wait of the writer {:.2?} ... {}",
        reader.bytes / 1_000_000,
        took.as_secs_f32(),
        reader.bytes as f64 / 1e6 / took.as_secs_f64(),
        reader.longest,
        if wrong.is_empty() { "ok" } else { "FAILED" }
    );
    Ok(wrong)
}

/// The first task makes directories that stay.
fn warm_up(node: &Node, args: &Args) -> Result<(), Error> {
    let fifos = node.dir().join("warm-up").to_string_lossy().into_owned();
    let mut run = vec![
        "run",
        "--rm",
        "--runtime",
        &args.runtime,
        "--fifo-dir",
        &fifos,
    ];
    run.extend([BUSYBOX, "warm-up", "true"]);
    node.run("ctr", &run).map(drop)
}

/// Starts the writer, which waits for a word: until then ctr still reads.
fn start(node: &Node, args: &Args, fifos: &Path, lines: u64) -> Result<(), Error> {
    let pad = LINE - 8 - 1 - 12 - 1 - 1;
    let script = format!(
        "x=$(head -c {pad} /dev/zero | tr '\\0' x); n=0; mkfifo /tmp/never; exec 3<>/tmp/never
        until [ -e /tmp/go ]; do read -t 0.1 -u 3 none; done
        read up idle </proc/uptime; start=${{up%.*}}${{up#*.}}; bursts=0
        while [ $n -lt {lines} ]; do read up idle </proc/uptime; now=${{up%.*}}${{up#*.}}; i=0
        if [ $bursts -gt $((now-start)) ]; then read -t 0.01 -u 3 none; continue; fi
        while [ $i -lt {BURST} -a $n -lt {lines} ]; do n=$((n+1)); i=$((i+1))
        printf '%08d %-12s %s\\n' $n $up $x || exit 9; done
        bursts=$((bursts+1)); done; exit {CODE}"
    );
    std::fs::create_dir_all(fifos).map_err(file("mkdir", fifos))?;
    let fifos = fifos.to_string_lossy();
    let mut run = vec![
        "run",
        "--detach",
        "--runtime",
        &args.runtime,
        "--fifo-dir",
        &fifos,
    ];
    run.extend([BUSYBOX, TASK, "sh", "-c", &script]);
    node.run("ctr", &run).map(drop)
}

/// The fifo that ctr has made.
fn find(dir: &Path, end: &str) -> Result<PathBuf, Error> {
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(&dir).map_err(file("readdir", &dir))? {
            let path = entry.map_err(file("readdir", &dir))?.path();
            if path.is_dir() {
                dirs.push(path);
            } else if path.to_string_lossy().ends_with(end) {
                return Ok(path);
            }
        }
    }
    Err(Error::Missing {
        what: format!("a fifo …{end} in {}", dir.display()),
        way_out: "ctr run --fifo-dir makes it".into(),
    })
}

/// Waits for the end of the task and deletes it; what was wrong with its exit.
fn end(node: &Node) -> Result<Vec<String>, Error> {
    let limit = Duration::from_secs(30);
    let end = Instant::now() + limit;
    while !node
        .run("ctr", &["task", "list"])?
        .stdout
        .contains("STOPPED")
    {
        if Instant::now() > end {
            let what = "the end of the writer".into();
            return Err(Error::Deadline { what, limit });
        }
        pause(Duration::from_millis(50));
    }
    let deleted = node.command("ctr", &["task", "delete", TASK]);
    let deleted = command::run(deleted, b"", CALL)?;
    node.run("ctr", &["containers", "delete", TASK])?;
    let right = deleted.stderr.contains(&format!("exit code {CODE}")) || deleted.code == CODE;
    Ok((!right)
        .then(|| format!("the exit code is not {CODE}: {deleted:?}"))
        .into_iter()
        .collect())
}

/// containerd's end of the fifo.
struct Stream {
    fifo: File,
    buffer: Vec<u8>,
}

impl Stream {
    fn open(path: &Path) -> Result<Self, Error> {
        Ok(Self {
            fifo: File::open(path).map_err(file("open", path))?,
            buffer: vec![0; 64 << 10],
        })
    }

    /// False at the end of file.
    fn read_into(&mut self, reader: &mut Reader) -> Result<bool, Error> {
        if !command::readable(&self.fifo, Instant::now() + SILENCE)? {
            let what = "output".into();
            return Err(Error::Deadline {
                what,
                limit: SILENCE,
            });
        }
        let n = self
            .fifo
            .read(&mut self.buffer)
            .map_err(call("read(fifo)"))?;
        reader.take(&self.buffer[..n]);
        Ok(n > 0)
    }
}

/// A thread that wants to run every 10 ms, and so knows for how long nobody could.
struct Pulse {
    ended: Arc<AtomicBool>,
    thread: JoinHandle<Duration>,
}

impl Pulse {
    fn start() -> Self {
        let ended = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&ended);
        let thread = std::thread::spawn(move || {
            let mut longest = Duration::ZERO;
            while !told.load(Ordering::Relaxed) {
                let rested = Instant::now();
                pause(Duration::from_millis(10));
                longest = longest.max(rested.elapsed());
            }
            longest
        });
        Self { ended, thread }
    }

    /// The longest time between two of its beats.
    fn end(self) -> Duration {
        self.ended.store(true, Ordering::Relaxed);
        self.thread.join().unwrap_or_default()
    }
}

/// What was read, and what was wrong with it.
#[derive(Debug, Default)]
struct Reader {
    bytes: u64,
    partial: Vec<u8>,
    lines: u64,
    /// The first line that is not as it was written.
    broken: Option<String>,
    /// When the last burst began, by the writer's clock.
    last: Option<f64>,
    longest: Duration,
}

impl Reader {
    fn take(&mut self, bytes: &[u8]) {
        self.bytes += bytes.len() as u64;
        self.partial.extend_from_slice(bytes);
        let whole = self.partial.len() / LINE * LINE;
        let rest = self.partial.split_off(whole);
        let lines = std::mem::replace(&mut self.partial, rest);
        lines.chunks(LINE).for_each(|line| self.line(line));
    }

    fn line(&mut self, line: &[u8]) {
        self.lines += 1;
        let text = String::from_utf8_lossy(line);
        let mut words = text.split_whitespace();
        let number = words.next().and_then(|word| word.parse().ok());
        let up: Option<f64> = words.next().and_then(|word| word.parse().ok());
        let pad = words.next().unwrap_or_default();
        let right = number == Some(self.lines)
            && text.ends_with("x\n")
            && pad.bytes().all(|byte| byte == b'x')
            && pad.len() == LINE - 23;
        if !right && self.broken.is_none() {
            let start: String = text.chars().take(40).collect();
            self.broken = Some(format!("line {} begins with {start:?}", self.lines));
        }
        if let (Some(last), Some(up)) = (self.last, up) {
            let waited = Duration::from_secs_f64((up - last).max(0.0));
            self.longest = self.longest.max(waited);
        }
        self.last = up.or(self.last);
    }

    fn wrong(&mut self, lines: u64) -> Vec<String> {
        let mut wrong: Vec<String> = self.broken.take().into_iter().collect();
        if self.lines != lines || !self.partial.is_empty() {
            let rest = self.partial.len();
            wrong.push(format!(
                "{} lines and {rest} bytes of {lines} lines",
                self.lines
            ));
        }
        wrong
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(number: u64, up: &str) -> Vec<u8> {
        format!("{number:08} {up:<12} {}\n", "x".repeat(LINE - 23)).into_bytes()
    }

    #[test]
    fn a_lost_byte_is_seen_and_the_longest_wait_is_known() {
        let all = [line(1, "5.00"), line(2, "5.01"), line(3, "7.51")].concat();
        let mut whole = Reader::default();
        all.chunks(1000).for_each(|bytes| whole.take(bytes));
        assert_eq!(whole.wrong(3), Vec::<String>::new());
        assert_eq!(whole.longest.as_millis(), 2500);
        let mut lossy = Reader::default();
        lossy.take(&all[..5000]);
        lossy.take(&all[5001..]);
        assert_eq!(lossy.wrong(3).len(), 2);
    }
}
