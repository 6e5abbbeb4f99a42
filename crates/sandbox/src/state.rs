//! The state machine of a process: one table, one owner.
//!
//! A container's first process and an exec go through the same states. What is allowed in a
//! state, and what comes next, is decided here alone; the golden test prints the whole matrix.

use std::fmt;

/// Where a process is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// Being made; an exec that was announced but not started stays `Created`.
    Creating,
    /// Made, or announced: not started.
    Created,
    /// The gate is open, the outcome not known yet.
    Starting,
    /// Ended before the outcome of its start was told; the exit is held back until then.
    Ending,
    /// Running.
    Running,
    /// Frozen.
    Paused,
    /// Ended.
    Stopped,
    /// Forgotten.
    Deleted,
}

impl State {
    /// How people call it.
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Creating => "being created",
            Self::Created => "created",
            Self::Starting | Self::Ending => "being started",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
            Self::Deleted => "deleted",
        }
    }
}

/// What happens to a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Happening {
    /// It stands at its gate.
    Made,
    /// Start was called.
    Start,
    /// execve succeeded.
    Started,
    /// The start failed.
    StartFailed,
    /// The kernel told its end.
    Exit,
    /// Pause was called and done.
    Pause,
    /// Resume was called and done.
    Resume,
    /// Delete was called.
    Delete,
}

/// A call that the state does not allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    state: State,
    happening: Happening,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verb = match self.happening {
            Happening::Start => "start",
            Happening::Pause => "pause",
            Happening::Resume => "resume",
            Happening::Delete => "delete",
            _ => return write!(f, "{:?} in state {:?}", self.happening, self.state),
        };
        write!(f, "cannot {verb} a process that is {}", self.state.word())
    }
}

/// The state after `happening`, or why it cannot happen.
pub(crate) fn next(state: State, happening: Happening) -> Result<State, Refused> {
    use Happening as H;
    use State as S;
    Ok(match (state, happening) {
        (S::Creating, H::Made) => S::Created,
        (S::Created, H::Start) => S::Starting,
        (S::Starting, H::Started) => S::Running,
        // Its exit comes next, or came already.
        (S::Starting, H::StartFailed) => S::Created,
        (S::Ending, H::Started | H::StartFailed) => S::Stopped,
        (S::Starting, H::Exit) => S::Ending,
        (S::Creating | S::Created | S::Running | S::Paused, H::Exit) => S::Stopped,
        (S::Running, H::Pause) => S::Paused,
        (S::Paused, H::Resume) => S::Running,
        (S::Created | S::Stopped, H::Delete) => S::Deleted,
        _ => return Err(Refused { state, happening }),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATES: [State; 8] = [
        State::Creating,
        State::Created,
        State::Starting,
        State::Ending,
        State::Running,
        State::Paused,
        State::Stopped,
        State::Deleted,
    ];
    const HAPPENINGS: [Happening; 8] = [
        Happening::Made,
        Happening::Start,
        Happening::Started,
        Happening::StartFailed,
        Happening::Exit,
        Happening::Pause,
        Happening::Resume,
        Happening::Delete,
    ];

    #[test]
    fn the_whole_matrix_is_as_reviewed() {
        let mut matrix = String::new();
        for state in STATES {
            for happening in HAPPENINGS {
                if let Ok(next) = next(state, happening) {
                    matrix += &format!("{state:?} + {happening:?} -> {next:?}\n");
                }
            }
        }
        let want = "\
Creating + Made -> Created
Creating + Exit -> Stopped
Created + Start -> Starting
Created + Exit -> Stopped
Created + Delete -> Deleted
Starting + Started -> Running
Starting + StartFailed -> Created
Starting + Exit -> Ending
Ending + Started -> Stopped
Ending + StartFailed -> Stopped
Running + Exit -> Stopped
Running + Pause -> Paused
Paused + Exit -> Stopped
Paused + Resume -> Running
Stopped + Delete -> Deleted
";
        assert_eq!(matrix, want);
    }

    #[test]
    fn a_refusal_says_what_cannot_be_done_to_what() {
        let refused = next(State::Running, Happening::Delete).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "cannot delete a process that is running"
        );
    }
}
