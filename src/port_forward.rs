//! `berm port-forward`: a port of this host that leads to one of a pod.

use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::sync::Arc;

use berm_sandbox::Config;
use berm_sandbox::urpc::Empty;
use serde_json::json;
use tokio::io::copy_bidirectional_with_sizes;
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::task::{JoinSet, spawn_blocking};

use crate::error::{Error, io};
use crate::find::{Pod, Target};
use crate::progress::Progress;
use crate::signals::Signals;

/// Leads connections to a port of this host's loopback to a port of a pod's, until it is interrupted
///
/// The pod's process sees a connection of its own loopback; it need not listen on another address.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Id of a sandbox or container, or its beginning; or a pod: NAME or NAMESPACE/NAME
    id: String,
    /// LOCAL:REMOTE, or one port for both; LOCAL 0: any that is free
    #[arg(value_parser = ports)]
    ports: Ports,
    /// Print the address as JSON
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "\
Examples:
  berm port-forward shop/web 8080:80
  berm port-forward shop/web 5432";

#[derive(Clone, Copy, Debug, PartialEq)]
struct Ports {
    local: u16,
    remote: u16,
}

fn ports(text: &str) -> Result<Ports, String> {
    let (local, remote) = text.split_once(':').unwrap_or((text, text));
    let port = |text: &str| {
        let number = text.parse::<u16>();
        number.map_err(|_| format!("{text:?} is no port, which is within 0 to 65535"))
    };
    match (port(local)?, port(remote)?) {
        (_, 0) => Err("port 0 of a pod is none".into()),
        (local, remote) => Ok(Ports { local, remote }),
    }
}

/// Bytes per system call.
const CHUNK: usize = 64 << 10;

pub(crate) fn main(args: &Args, config: &Config) -> Result<(), Error> {
    let target = Target::find(config, &args.id)?;
    let runtime = crate::runtime()?;
    let done = runtime.block_on(forward(args, target));
    // A call that was not answered yet may still be blocked.
    runtime.shutdown_background();
    done
}

async fn forward(args: &Args, target: Target) -> Result<(), Error> {
    let mut signals = Signals::new()?;
    // Refused here, and not once by each connection.
    drop(target.pod.connect()?);
    let id = Arc::<str>::from(target.id());
    let pod = Arc::new(target.pod);
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, args.ports.local)).await;
    let listener = listener.map_err(io("bind()"))?;
    let address = listener.local_addr().map_err(io("getsockname()"))?;
    let remote = args.ports.remote;
    match args.json {
        true => println!("{}", json!({"listen": address.to_string(), "port": remote})),
        false => println!("{address} leads to port {remote} of {id}"),
    }
    let mut connections = JoinSet::new();
    let mut progress = Progress::new(args.json);
    let mut count = 0_u64;
    loop {
        progress.show(&format!(
            "connections: {} open, {count} in all",
            connections.len()
        ));
        tokio::select! {
            accepted = listener.accept() => {
                let (here, peer) = accepted.map_err(io("accept4()"))?;
                count += 1;
                let (pod, id) = (Arc::clone(&pod), Arc::clone(&id));
                connections.spawn(async move {
                    let carried = carry(here, pod, id, remote).await;
                    carried.map_err(|e| format!("berm: {peer}: {}", e.text()))
                });
            }
            Some(ended) = connections.join_next() => if let Ok(Err(said)) = ended {
                progress.clear();
                eprintln!("{said}");
            },
            _ = signals.next() => return Ok(()),
        }
    }
}

/// Carries one connection until both ways have ended.
async fn carry(mut here: TcpStream, pod: Arc<Pod>, id: Arc<str>, port: u16) -> Result<(), Error> {
    let (ours, theirs) = StdUnixStream::pair().map_err(io("socketpair()"))?;
    let connected = spawn_blocking(move || {
        let arg = json!({"ContainerID": &*id, "Port": port});
        let (Empty {}, _) =
            pod.connect()?
                .call("containerManager.PortForward", &arg, &[theirs.as_fd()])?;
        Ok::<_, Error>(())
    });
    connected.await.map_err(|e| io("connect()")(e.into()))??;
    ours.set_nonblocking(true).map_err(io("ioctl(FIONBIO)"))?;
    let mut ours = UnixStream::from_std(ours).map_err(io("epoll_ctl()"))?;
    let copied = copy_bidirectional_with_sizes(&mut here, &mut ours, CHUNK, CHUNK).await;
    copied.map(drop).map_err(io("copy"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_two_or_one_for_both() {
        let want = |local, remote| Ok(Ports { local, remote });
        assert_eq!(ports("8080:80"), want(8080, 80));
        assert_eq!(ports("80"), want(80, 80));
        assert_eq!(ports("0:80"), want(0, 80));
        for bad in ["", "80:", ":80", "80:0", "0", "65536", "a:b", "1:2:3"] {
            assert!(ports(bad).is_err(), "{bad:?}");
        }
    }
}
