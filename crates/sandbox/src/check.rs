//! What this host can do for sandboxes: probes, not version numbers.
//!
//! Each probe does the thing itself, in a way that leaves nothing behind: mounts stay detached,
//! what changes the process is done by a forked child.

mod host;
mod kernel;

pub(crate) use kernel::user_namespace;

use crate::config::Config;
use crate::error::Error;
use crate::rootless::Nested;

/// What a probe found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What was tried.
    pub name: String,
    /// How it went.
    pub verdict: Verdict,
    /// What was seen: a value, or the errno.
    pub found: String,
    /// What is lost without it.
    pub lost: &'static str,
}

/// How a probe went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// Berm works, with what [`Finding::lost`] says.
    Degraded,
    /// Berm does not work without it.
    Missing,
}

impl Finding {
    fn new(
        name: impl Into<String>,
        lost: &'static str,
        otherwise: Verdict,
        probed: Result<String, String>,
    ) -> Self {
        let (verdict, found) = match probed {
            Ok(found) => (Verdict::Ok, found),
            Err(found) => (otherwise, found),
        };
        Self {
            name: name.into(),
            verdict,
            found,
            lost,
        }
    }
}

/// Tries what sandboxes need of this host. Blocking, some milliseconds. The caller is root, maybe
/// only of a user namespace ([`crate::rootless::enter`]), and has one thread.
/// # Errors
/// The errno of reading which ids the caller has.
pub fn check(config: &Config) -> Result<Vec<Finding>, Error> {
    let (mut all, host) = match Nested::detect()? {
        Some(nested) => (
            kernel::check_rootless(&nested.ids),
            host::check_rootless(&nested.ids),
        ),
        None => (kernel::check(config), host::check(config)),
    };
    all.extend(host);
    Ok(all)
}
