//! A line of state on a terminal while something takes long; gone when it is over.

use std::io::{IsTerminal, Write, stderr};

use rustix::termios::tcgetwinsize;

/// Back to the line's beginning, and what is there erased (ECMA-48 EL).
const ERASE: &str = "\r\x1b[K";

/// The last line of the terminal that stderr is; nothing where it is none, and with --json.
#[derive(Debug)]
pub(crate) struct Progress {
    on: bool,
    shown: bool,
}

impl Progress {
    pub(crate) fn new(json: bool) -> Self {
        Self {
            on: !json && stderr().is_terminal(),
            shown: false,
        }
    }

    /// Shows `text` in place of what was shown, as much as fits into the line.
    pub(crate) fn show(&mut self, text: &str) {
        if !self.on {
            return;
        }
        let columns = tcgetwinsize(stderr()).map_or(0, |size| usize::from(size.ws_col));
        // A terminal without a size has one that nobody told.
        let room = if columns == 0 { 80 } else { columns } - 1;
        let text: String = text.chars().take(room).collect();
        self.write(&format!("{ERASE}{text}"));
        self.shown = true;
    }

    /// Erases it.
    pub(crate) fn clear(&mut self) {
        if std::mem::take(&mut self.shown) {
            self.write(ERASE);
        }
    }

    /// A terminal that is gone shows nothing: that is no failure of what takes long.
    fn write(&mut self, text: &str) {
        let mut stderr = stderr().lock();
        let written = stderr.write_all(text.as_bytes());
        self.on &= written.and_then(|()| stderr.flush()).is_ok();
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.clear();
    }
}
