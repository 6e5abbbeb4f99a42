//! How containerd hands parameters to `start`, and the form in which each generation reads the
//! answer.
//!
//! | containerd | stdin | the answer it reads |
//! |---|---|---|
//! | 2.3 | `BootstrapParams` | protobuf `BootstrapResult`, version 3 |
//! | 1.6 … 2.2 | options as an `Any`, or nothing | the plain address (Task v2) |
//!
//! 1.7 and 2.0 … 2.2 send the same bytes, and 1.7 refuses version 3; all of them take the plain
//! address.

use std::io::Read;
use std::path::{Path, PathBuf};

use containerd_shim_protos::bootstrap_api::{BootstrapParams, BootstrapResult};
use containerd_shim_protos::protobuf::Message;
use log::LevelFilter;

use crate::args::Args;
use crate::error::Error;

/// As much as containerd's own shims read.
const STDIN_LIMIT: u64 = 10 << 20;
/// Where sockets lie if containerd names no directory.
const SOCKET_DIR: &str = "/run/containerd/s";

/// Which form of answer the caller understands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Generation {
    /// protobuf, Task v3.
    Params,
    /// The bare address, Task v2.
    Plain,
}

/// What `start` needs to know of containerd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Bootstrap {
    pub(crate) generation: Generation,
    pub(crate) log_level: LevelFilter,
    /// Where events go; a path.
    pub(crate) ttrpc_address: String,
    /// Names the containerd in the hash of the socket.
    pub(crate) grpc_address: String,
    pub(crate) socket_dir: PathBuf,
}

/// Reads stdin to its end.
/// # Errors
/// The errno of read(2); `InvalidArgument` above 10 MiB.
pub(crate) fn read(input: impl Read) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    input
        .take(STDIN_LIMIT + 1)
        .read_to_end(&mut bytes)
        .map_err(|source| Error::Io {
            call: "read",
            what: "stdin".into(),
            source,
        })?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > STDIN_LIMIT {
        return Err(Error::TooLarge {
            path: "stdin".into(),
            limit: STDIN_LIMIT,
        });
    }
    Ok(bytes)
}

/// Makes sense of stdin. `ttrpc_address` is the environment's `TTRPC_ADDRESS`.
///
/// An options `Any` can parse as `BootstrapParams` (its type URL as instance id), so the params
/// count only if they name what the command line names.
pub(crate) fn parse(stdin: &[u8], args: &Args, ttrpc_address: &str) -> Bootstrap {
    let plain = Bootstrap {
        generation: Generation::Plain,
        log_level: if args.debug {
            LevelFilter::Debug
        } else {
            LevelFilter::Info
        },
        ttrpc_address: ttrpc_address.to_owned(),
        grpc_address: args.address.clone(),
        socket_dir: SOCKET_DIR.into(),
    };
    let Ok(params) = BootstrapParams::parse_from_bytes(stdin) else {
        return plain;
    };
    if params.instance_id != args.id || params.namespace != args.namespace {
        return plain;
    }
    let or = |value: String, default: String| if value.is_empty() { default } else { value };
    Bootstrap {
        generation: Generation::Params,
        log_level: level(params.log_level.value()).max(if args.debug {
            LevelFilter::Debug
        } else {
            LevelFilter::Off
        }),
        ttrpc_address: or(params.containerd_ttrpc_address, plain.ttrpc_address),
        grpc_address: or(params.containerd_grpc_address, plain.grpc_address),
        socket_dir: params
            .socket_dir
            .filter(|dir| !dir.is_empty())
            .map_or(plain.socket_dir, PathBuf::from),
    }
}

/// The nearest level of an open enum: 0 is info, down is more verbose.
fn level(number: i32) -> LevelFilter {
    match number {
        ..=-8 => LevelFilter::Trace,
        -7..=-1 => LevelFilter::Debug,
        0..=3 => LevelFilter::Info,
        4..=7 => LevelFilter::Warn,
        8.. => LevelFilter::Error,
    }
}

/// The answer to `start` for a shim that listens on `socket`.
/// # Errors
/// `Internal` if protobuf fails.
pub(crate) fn answer(generation: Generation, socket: &Path) -> Result<Vec<u8>, Error> {
    let address = address(socket);
    match generation {
        Generation::Plain => Ok(address.into_bytes()),
        Generation::Params => BootstrapResult {
            version: containerd_shim_protos::TASK_API_VERSION,
            address,
            protocol: "ttrpc".into(),
            ..BootstrapResult::default()
        }
        .write_to_bytes()
        .map_err(|source| Error::Encode {
            what: "BootstrapResult",
            source,
        }),
    }
}

/// The socket as containerd dials it; without the scheme it would be an abstract socket.
pub(crate) fn address(socket: &Path) -> String {
    format!("unix://{}", socket.display())
}

#[cfg(test)]
mod tests {
    use containerd_shim_protos::protobuf::well_known_types::any::Any;

    use super::*;

    fn args() -> Args {
        Args {
            namespace: "k8s.io".into(),
            id: "ab12".into(),
            address: "/run/containerd/containerd.sock".into(),
            ..Args::default()
        }
    }

    /// Field 1 `ab12`, 2 `k8s.io`, 3 log level -4, 4 `2.3.4`, 5 and 6 addresses, 9 `/run/x`.
    fn params() -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut text = |field: u8, value: &str| {
            bytes.push(field << 3 | 2);
            bytes.push(u8::try_from(value.len()).unwrap());
            bytes.extend_from_slice(value.as_bytes());
        };
        text(1, "ab12");
        text(2, "k8s.io");
        text(4, "2.3.4");
        text(5, "/run/c.sock.ttrpc");
        text(6, "/run/c.sock");
        text(9, "/run/x");
        bytes.push(3 << 3);
        // -4 as a ten-byte varint.
        bytes.extend_from_slice(&[0xfc, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01]);
        bytes
    }

    #[test]
    fn params_of_2_3_are_read_and_answered_with_protobuf_version_3() {
        let boot = parse(&params(), &args(), "/run/env.ttrpc");
        assert_eq!(
            boot,
            Bootstrap {
                generation: Generation::Params,
                log_level: LevelFilter::Debug,
                ttrpc_address: "/run/c.sock.ttrpc".into(),
                grpc_address: "/run/c.sock".into(),
                socket_dir: "/run/x".into(),
            }
        );
        let answer = answer(boot.generation, Path::new("/run/x/s")).unwrap();
        assert_eq!(answer, b"\x08\x03\x12\x0funix:///run/x/s\x1a\x05ttrpc");
    }

    #[test]
    fn older_generations_get_the_plain_address() {
        let options = Any {
            type_url: "runtimeoptions.v1.Options".into(),
            value: b"\x12\x04/a/b".to_vec(),
            ..Any::default()
        };
        let invalid = Any {
            type_url: "x".into(),
            value: vec![0xff, 0xfe],
            ..Any::default()
        };
        for stdin in [
            Vec::new(),
            options.write_to_bytes().unwrap(),
            invalid.write_to_bytes().unwrap(),
            b"\xff\xff\xff".to_vec(),
        ] {
            let boot = parse(&stdin, &args(), "/run/env.ttrpc");
            assert_eq!(boot.generation, Generation::Plain, "{stdin:?}");
            assert_eq!(boot.ttrpc_address, "/run/env.ttrpc");
            assert_eq!(boot.grpc_address, "/run/containerd/containerd.sock");
            assert_eq!(boot.socket_dir, Path::new(SOCKET_DIR));
            assert_eq!(
                answer(boot.generation, Path::new("/a/s")).unwrap(),
                b"unix:///a/s"
            );
        }
    }

    #[test]
    fn params_for_another_id_are_not_ours() {
        let other = Args {
            id: "cd".into(),
            ..args()
        };
        assert_eq!(parse(&params(), &other, "").generation, Generation::Plain);
    }

    #[test]
    fn the_flag_makes_it_more_verbose_never_less() {
        let mut args = args();
        args.debug = true;
        assert_eq!(parse(&[], &args, "").log_level, LevelFilter::Debug);
        let only_ids = b"\x0a\x04ab12\x12\x06k8s.io";
        assert_eq!(parse(only_ids, &args, "").log_level, LevelFilter::Debug);
        args.debug = false;
        assert_eq!(parse(only_ids, &args, "").log_level, LevelFilter::Info);
    }

    #[test]
    fn unknown_levels_map_to_the_nearest() {
        let levels = [-20, -8, -5, -1, 0, 2, 5, 9, 99].map(level);
        use LevelFilter::{Debug, Error, Info, Trace, Warn};
        assert_eq!(
            levels,
            [Trace, Trace, Debug, Debug, Info, Info, Warn, Error, Error]
        );
    }

    #[test]
    fn stdin_is_bounded() {
        assert_eq!(read(&b"abc"[..]).unwrap(), b"abc");
        let e = read(std::io::repeat(0)).unwrap_err();
        assert!(matches!(
            e,
            Error::TooLarge {
                limit: STDIN_LIMIT,
                ..
            }
        ));
    }
}
