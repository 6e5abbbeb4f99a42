//! The configuration file of a handler, named after the shim that runs it.
//!
//! `containerd-shim-berm-v1` reads `/etc/berm/config.toml`; a link to it called
//! `containerd-shim-berm-<name>-v1` reads `/etc/berm/<name>.toml`. No file is fine. An unknown
//! key is an error with its line, because a setting that is silently ignored is worse than none.

use std::path::{Path, PathBuf};
use std::time::Duration;

use berm_sys::Kind;
use serde::Deserialize;

use crate::error::Error;
use crate::file;
use crate::options::Options;

const DIR: &str = "/etc/berm";
const LIMIT: u64 = 1 << 20;
/// What `allow_annotations` may name.
const ANNOTATIONS: [&str; 2] = ["dev.berm.rootfs_upper", "dev.berm.userns"];
/// Ids of one pod.
const RANGE: u32 = 65_536;

/// The keys of the file; each has a default, [`berm_sandbox::Config`]'s.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Keys {
    /// Where records and control sockets live.
    state_dir: Option<PathBuf>,
    /// Host ids that pods without a mapping of their own get 65,536 each of.
    id_pool_start: Option<u32>,
    id_pool_end: Option<u32>,
    /// What happens to a container that asks for a capability the kernel will not honour.
    dead_capabilities: Option<DeadCapabilities>,
    /// Low ports and ping sockets by sysctl where CNI made the network namespace.
    open_low_ports_and_ping: Option<bool>,
    /// The user namespace of a pod whose spec says nothing.
    userns: Option<UserNs>,
    /// Whether pods that share the host's namespaces or are privileged are refused.
    refuse_host_pods: Option<bool>,
    /// Ids above 65535 that every pod with a range of the pool has.
    extra_ids: Option<Vec<u32>>,
    /// Where what containers write to their root file systems goes.
    rootfs_upper: Option<String>,
    /// Annotations `dev.berm.*` that a pod may set.
    allow_annotations: Option<Vec<String>>,
    /// Where the node's metric server listens; without it pods register no metrics.
    metric_server: Option<String>,
    /// Whether `berm.log` in a pod's log directory tells why its containers cannot run.
    user_log: Option<bool>,
    /// Seconds that a stage child may take.
    stage_deadline_s: Option<u32>,
    /// Seconds that killed processes may take to die.
    kill_deadline_s: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum DeadCapabilities {
    Refuse,
    Warn,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum UserNs {
    Auto,
    Host,
}

impl Keys {
    /// Puts what is set over the defaults. The error names a key and what is wrong with it.
    fn apply(self) -> Result<berm_sandbox::Config, (&'static str, &'static str)> {
        let mut config = berm_sandbox::Config::default();
        if let Some(dir) = self.state_dir {
            if !dir.is_absolute() {
                return Err(("state_dir", "is not an absolute path"));
            }
            config.state_dir = dir;
        }
        config.id_pool_start = self.id_pool_start.unwrap_or(config.id_pool_start);
        config.id_pool_end = self.id_pool_end.unwrap_or(config.id_pool_end);
        if config.id_pool_start < RANGE {
            return Err((
                "id_pool_start",
                "is below 65536, where the host's own users are",
            ));
        }
        if config.id_pool_end < config.id_pool_start.saturating_add(RANGE - 1) {
            let key = if self.id_pool_end.is_some() {
                "id_pool_end"
            } else {
                "id_pool_start"
            };
            return Err((key, "leaves no room for one range of 65536 ids"));
        }
        if let Some(dead) = self.dead_capabilities {
            config.allow_dead_capabilities = dead == DeadCapabilities::Warn;
        }
        if let Some(open) = self.open_low_ports_and_ping {
            config.policy.open_low_ports_and_ping = open;
        }
        let policy = &mut config.policy;
        policy.host_users = self.userns == Some(UserNs::Host);
        policy.refuse_host_pods = self.refuse_host_pods.unwrap_or(policy.refuse_host_pods);
        if policy.host_users && policy.refuse_host_pods {
            return Err((
                "userns",
                "is \"host\" where refuse_host_pods refuses such pods",
            ));
        }
        policy.extra_ids = self.extra_ids.unwrap_or_default();
        if let Some(upper) = self.rootfs_upper {
            policy.rootfs_upper = upper.parse().map_err(|_| {
                let why = "is none of none, memory, self and dir=/PATH, with ,size=SIZE behind it";
                ("rootfs_upper", why)
            })?;
        }
        if let Some(allowed) = self.allow_annotations {
            if !allowed.iter().all(|name| ANNOTATIONS.contains(&&**name)) {
                return Err(("allow_annotations", "names one that Berm does not have"));
            }
            policy.allow_annotations = allowed;
        }
        if let Some(address) = self.metric_server {
            let address = address.parse().map_err(|_| {
                let why = "is neither IP:PORT nor the absolute path of a socket";
                ("metric_server", why)
            })?;
            config.metric_server = Some(address);
        }
        config.user_log = self.user_log.unwrap_or(config.user_log);
        let seconds = |seconds: u32| Duration::from_secs(seconds.into());
        config.stage_deadline = self.stage_deadline_s.map_or(config.stage_deadline, seconds);
        config.kill_deadline = self.kill_deadline_s.map_or(config.kill_deadline, seconds);
        if config.stage_deadline.is_zero() {
            return Err(("stage_deadline_s", "must be at least 1"));
        }
        if config.kill_deadline.is_zero() {
            return Err(("kill_deadline_s", "must be at least 1"));
        }
        Ok(config)
    }
}

/// The file of the shim that runs under this name.
pub(crate) fn path(program: &str) -> PathBuf {
    let name = program
        .strip_prefix("containerd-shim-berm-")
        .and_then(|rest| rest.strip_suffix("-v1"))
        .filter(|name| !name.is_empty())
        .unwrap_or("config");
    Path::new(DIR).join(format!("{name}.toml"))
}

/// Reads the file; one that is not there leaves every default.
/// # Errors
/// `InvalidArgument` with file, line and key; the errno of open(2) or read(2).
pub(crate) fn load(path: &Path) -> Result<berm_sandbox::Config, Error> {
    match file::read(path, LIMIT) {
        Ok(bytes) => parse(&path.display().to_string(), &bytes),
        Err(e) if e.kind() == Kind::NotFound => Ok(berm_sandbox::Config::default()),
        Err(e) => Err(e),
    }
}

/// The configuration that came with a Create request; `None` if it names none.
/// # Errors
/// As [`load`], and `NotFound` for a file that is named but missing.
pub(crate) fn of_options(options: &Options) -> Result<Option<berm_sandbox::Config>, Error> {
    if let Some(body) = &options.config_body {
        return parse("runtime options", body.as_bytes()).map(Some);
    }
    let Some(path) = &options.config_path else {
        return Ok(None);
    };
    parse(&path.display().to_string(), &file::read(path, LIMIT)?).map(Some)
}

fn parse(file: &str, bytes: &[u8]) -> Result<berm_sandbox::Config, Error> {
    let failed = |line, why: &str| Error::Config {
        file: file.to_owned(),
        line,
        why: why.to_owned(),
    };
    let text = std::str::from_utf8(bytes).map_err(|e| {
        let before = bytes.get(..e.valid_up_to()).unwrap_or_default();
        failed(
            1 + before.iter().filter(|byte| **byte == b'\n').count(),
            "is not UTF-8",
        )
    })?;
    let keys: Keys = toml::from_str(text).map_err(|e| {
        let start = e.span().map_or(0, |span| span.start);
        let before = text.get(..start).unwrap_or_default();
        let line = 1 + before.matches('\n').count();
        let key = text
            .lines()
            .nth(line - 1)
            .and_then(|line| line.split('=').next());
        failed(
            line,
            &format!("{}: {}", key.unwrap_or_default().trim(), e.message()),
        )
    })?;
    keys.apply().map_err(|(key, why)| {
        let set = |line: &str| {
            line.split('=')
                .next()
                .is_some_and(|word| word.trim() == key)
        };
        let line = 1 + text.lines().position(set).unwrap_or_default();
        failed(line, &format!("{key}: {why}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_named_after_the_shim() {
        let cases = [
            ("containerd-shim-berm-v1", "/etc/berm/config.toml"),
            ("containerd-shim-berm-strict-v1", "/etc/berm/strict.toml"),
            ("containerd-shim-berm--v1", "/etc/berm/config.toml"),
            ("berm", "/etc/berm/config.toml"),
        ];
        for (program, want) in cases {
            assert_eq!(path(program), Path::new(want), "{program}");
        }
    }

    #[test]
    fn no_file_and_an_empty_file_leave_the_defaults() {
        let dir = tempfile::tempdir().unwrap();
        let default = berm_sandbox::Config::default();
        assert_eq!(
            load(&dir.path().join("none")).unwrap().state_dir,
            default.state_dir
        );
        assert_eq!(
            parse("f", b"").unwrap().id_pool_start,
            default.id_pool_start
        );
    }

    #[test]
    fn keys_are_applied() {
        let config = parse(
            "f",
            b"state_dir = \"/run/x\"\nid_pool_start = 100000\nid_pool_end = 300000\n\
              dead_capabilities = \"warn\"\nopen_low_ports_and_ping = false\n\
              stage_deadline_s = 7\nkill_deadline_s = 8\nuserns = \"host\"\n\
              allow_annotations = [\"dev.berm.userns\"]\n\
              metric_server = \"127.0.0.1:9469\"\nuser_log = true\n\
              rootfs_upper = \"memory,size=64m\"\n",
        )
        .unwrap();
        let upper = config.policy.rootfs_upper.to_string();
        assert_eq!(upper, "memory,size=67108864");
        assert!(config.user_log && !berm_sandbox::Config::default().user_log);
        assert!(config.policy.host_users && !config.policy.refuse_host_pods);
        assert_eq!(config.policy.allow_annotations, ["dev.berm.userns"]);
        let strict = parse("f", b"refuse_host_pods = true\nuserns = \"auto\"").unwrap();
        assert!(strict.policy.refuse_host_pods && !strict.policy.host_users);
        assert_eq!(config.metric_server.unwrap().to_string(), "127.0.0.1:9469");
        assert_eq!(config.state_dir, Path::new("/run/x"));
        assert_eq!(
            (config.id_pool_start, config.id_pool_end),
            (100_000, 300_000)
        );
        assert!(config.allow_dead_capabilities && !config.policy.open_low_ports_and_ping);
        assert_eq!(config.stage_deadline.as_secs(), 7);
        assert_eq!(config.kill_deadline.as_secs(), 8);
    }

    #[test]
    fn what_is_wrong_is_told_with_file_line_and_key() {
        let cases: [(&[u8], &str); 13] = [
            (
                b"\nrootfs_upper = \"disk\"",
                "/f:2: rootfs_upper: is none of none, memory",
            ),
            (
                b"metric_server = \"localhost\"",
                "/f:1: metric_server: is neither IP:PORT nor",
            ),
            (
                b"# c\n\nstate_dri = 1\n",
                "/f:3: state_dri: unknown field `state_dri`",
            ),
            (
                b"\nid_pool_start = \"x\"\n",
                "/f:2: id_pool_start: invalid type",
            ),
            (
                b"dead_capabilities = \"maybe\"",
                "/f:1: dead_capabilities: unknown variant",
            ),
            (b"id_pool_start = 7", "/f:1: id_pool_start: is below 65536"),
            (b"\n\nid_pool_end = 7", "/f:3: id_pool_end: leaves no room"),
            (
                b"state_dir = \"run\"",
                "/f:1: state_dir: is not an absolute path",
            ),
            (
                b"kill_deadline_s = 0",
                "/f:1: kill_deadline_s: must be at least 1",
            ),
            (b"a = 1\n\xff\n", "/f:2: is not UTF-8"),
            (
                b"userns = \"host\"\nrefuse_host_pods = true",
                "/f:1: userns: is \"host\" where",
            ),
            (
                b"\nallow_annotations = [\"dev.berm.x\"]",
                "/f:2: allow_annotations: names one",
            ),
            (
                b"id_pool_start = 1\nid_pool_start = 2",
                "/f:2: id_pool_start: duplicate key",
            ),
        ];
        for (bytes, want) in cases {
            let e = parse("/f", bytes).unwrap_err();
            assert!(e.to_string().starts_with(want), "{e}\n  not {want}");
            assert_eq!(e.kind(), Kind::InvalidArgument);
        }
    }

    #[test]
    fn a_file_that_the_options_name_must_be_there_and_a_body_wins() {
        let mut options = Options::default();
        assert!(of_options(&options).unwrap().is_none());
        options.config_path = Some("/does/not/exist.toml".into());
        assert_eq!(of_options(&options).unwrap_err().kind(), Kind::NotFound);
        options.config_body = Some("kill_deadline_s = 3".into());
        assert_eq!(
            of_options(&options)
                .unwrap()
                .unwrap()
                .kill_deadline
                .as_secs(),
            3
        );
        options.config_body = Some("x = 3".into());
        let e = of_options(&options).unwrap_err();
        assert!(e.to_string().starts_with("runtime options:1: x"), "{e}");
    }
}
