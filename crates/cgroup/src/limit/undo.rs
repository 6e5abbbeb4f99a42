//! What the files of a cgroup in use said before they were written.

use super::Setting;
use crate::Error;
use crate::dir::Dir;

/// What was written, newest last.
#[derive(Debug, Default)]
pub(super) struct Undo<'c>(Vec<(&'c Dir, Before)>);

/// A file and what brings it back.
#[derive(Debug)]
pub(super) struct Before {
    file: String,
    /// `None`: nothing that is known to.
    value: Option<String>,
}

impl<'c> Undo<'c> {
    /// Reads what `setting` is about to change.
    pub(super) fn look(dir: &Dir, setting: &Setting) -> Option<Before> {
        let (file, value) = setting.target(dir)?;
        let mut buf = Vec::new();
        // What cannot be read (`memory.reclaim`) cannot be brought back.
        let text = dir.read(file, &mut buf).ok();
        Some(Before {
            file: file.to_owned(),
            value: text.and_then(|text| restoring(file, value, text)),
        })
    }

    /// It was written.
    pub(super) fn remember(&mut self, dir: &'c Dir, before: Option<Before>) {
        self.0.extend(before.map(|before| (dir, before)));
    }

    /// Writes everything back, newest first. The last of a pair may only be taken back after the
    /// other one, so what is refused is tried again as long as something else went through.
    pub(super) fn take_back(mut self, error: Error) -> Error {
        loop {
            let before = self.0.len();
            let pending = self.0.drain(..).rev();
            let mut refused: Vec<_> = pending
                .filter(|(dir, before)| match &before.value {
                    Some(value) => dir.try_write(&before.file, value).is_err(),
                    None => true,
                })
                .collect();
            if refused.is_empty() {
                return error;
            }
            if refused.len() == before {
                refused.reverse();
                let stays = refused.into_iter().map(|(_, before)| before.file);
                return Error::NotTakenBack {
                    files: stays.collect(),
                    source: Box::new(error),
                };
            }
            refused.reverse();
            self.0 = refused;
        }
    }
}

/// What to write to `file`, which says `text`, to undo a write of `value`.
fn restoring(file: &str, value: &str, text: &str) -> Option<String> {
    let Some(key) = key(file, value) else {
        return Some(whole(file, text));
    };
    let line = text
        .lines()
        .find(|line| line.split_whitespace().next() == Some(key));
    match line {
        Some(line) => Some(line.trim().to_owned()),
        None => Some(format!("{key} {}", unset(file)?)),
    }
}

/// The first word of a line of a file that has one for each device.
fn key<'v>(file: &str, value: &'v str) -> Option<&'v str> {
    let (key, _) = value.split_once(' ')?;
    (key != "default" && file != "cpu.max").then_some(key)
}

/// What a file that is no list says, in the form that it takes.
fn whole(file: &str, text: &str) -> String {
    let first = text.lines().next().unwrap_or_default().trim();
    match file {
        "memory.oom_control" => first.rsplit(' ').next().unwrap_or_default().to_owned(),
        // An empty cpuset of v2; a write of nothing would be none.
        _ if first.is_empty() => "\n".to_owned(),
        _ => first.to_owned(),
    }
}

/// What a device has that a file does not list.
fn unset(file: &str) -> Option<&'static str> {
    match file {
        "io.max" => Some("rbps=max wbps=max riops=max wiops=max"),
        "io.weight" | "io.bfq.weight" => Some("default"),
        _ if file.starts_with("blkio.") => Some("0"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_is_undone_by_what_the_file_said() {
        let cases = [
            ("cpu.max", "5000 9000", "max 100000\n", Some("max 100000")),
            ("memory.max", "1", "max\n", Some("max")),
            ("cpuset.cpus", "0", "\n", Some("\n")),
            (
                "memory.oom_control",
                "1",
                "oom_kill_disable 0\nunder_oom 0\n",
                Some("0"),
            ),
            (
                "io.weight",
                "default 50",
                "default 100\n8:0 7\n",
                Some("default 100"),
            ),
            ("io.weight", "8:0 50", "default 100\n8:0 7\n", Some("8:0 7")),
            (
                "io.weight",
                "8:16 50",
                "default 100\n8:0 7\n",
                Some("8:16 default"),
            ),
            (
                "io.max",
                "8:0 rbps=1",
                "8:0 rbps=2 wbps=max riops=max wiops=max\n",
                Some("8:0 rbps=2 wbps=max riops=max wiops=max"),
            ),
            (
                "io.max",
                "8:1 rbps=1",
                "",
                Some("8:1 rbps=max wbps=max riops=max wiops=max"),
            ),
            ("blkio.throttle.read_bps_device", "8:0 5", "", Some("8:0 0")),
            ("net_prio.ifpriomap", "lo 5", "lo 0\neth0 3\n", Some("lo 0")),
            ("misc.max", "sev 5", "", None),
        ];
        for (file, value, text, want) in cases {
            assert_eq!(
                restoring(file, value, text).as_deref(),
                want,
                "{file} {value}"
            );
        }
    }
}
