//! What the process that owns the sandbox logs.

use log::LevelFilter;

use crate::error::Error;
use crate::live::Sandbox;

/// A change of what is logged; what it does not name stays.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogChange {
    /// The level of all that is named by no target.
    pub level: Option<LevelFilter>,
    /// Levels of targets and of all below them (`berm_sandbox`, `berm_sandbox::exec`, `ttrpc`); the
    /// longest that fits counts. They take the place of those before.
    pub targets: Option<Vec<(String, LevelFilter)>>,
}

/// The owner's part of [`Sandbox::change_logging`]: false if it has no log.
pub type ChangeLogging = fn(&LogChange) -> bool;

impl Sandbox {
    /// Changes what the process logs, from the next line on, for all of its sandboxes: by
    /// [`Config::change_logging`](crate::Config::change_logging), or without that by
    /// [`log::set_max_level`].
    /// # Errors
    /// `FailedPrecondition` if the process has no log; `NotSupported` for targets where its owner
    /// has not said how.
    pub fn change_logging(&self, change: &LogChange) -> Result<(), Error> {
        let Some(owners) = self.0.host.config.change_logging else {
            if change.targets.is_some() {
                return Err(Error::NoTargets);
            }
            change.level.into_iter().for_each(log::set_max_level);
            return Ok(());
        };
        owners(change).then_some(()).ok_or(Error::NoLog)
    }
}
