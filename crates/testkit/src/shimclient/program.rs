//! Files that are to be run.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::Error;

/// Writes a script, mode 0755.
///
/// A process of its own does it: whatever another thread forks just then has this process's open
/// files until its execve, and a file that is open for writing cannot be run (`ETXTBSY`).
///
/// # Errors
/// [`Error::Program`] with the shell's words.
pub fn write_program(path: &Path, text: &str) -> Result<(), Error> {
    let program = PathBuf::from("/bin/sh");
    let failed = |source| Error::Spawn {
        program: program.clone(),
        source,
    };
    let mut shell = Command::new(&program);
    shell
        .args(["-c", "cat >\"$0\" && chmod 755 \"$0\""])
        .arg(path);
    shell.stdin(Stdio::piped()).stderr(Stdio::piped());
    let mut child = shell.spawn().map_err(failed)?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(text.as_bytes()).map_err(failed)?;
    }
    let output = child.wait_with_output().map_err(failed)?;
    if output.status.success() {
        return Ok(());
    }
    Err(Error::Program {
        program: program.clone(),
        action: format!("cat >{}", path.display()),
        status: output.status,
        output: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}
