//! The tables of the README that a test run writes, and checks.
//!
//! Each stands between `<!-- NAME: written by COMMAND -->` and `<!-- /NAME -->`.

use std::path::{Path, PathBuf};

use crate::error::{Error, file};

/// A table as the tests would have it.
#[derive(Debug)]
pub(crate) struct Table {
    /// Its name in the markers.
    pub(crate) name: &'static str,
    /// Its lines.
    pub(crate) text: String,
}

impl Table {
    /// Puts it in the README in the place of what is there.
    pub(crate) fn write(&self) -> Result<(), Error> {
        let path = path();
        let readme = std::fs::read_to_string(&path).map_err(file("read", &path))?;
        let (start, end) = self.place(&readme, &path)?;
        let new = format!("{}{}{}", &readme[..start], self.text, &readme[end..]);
        std::fs::write(&path, new).map_err(file("write", path))
    }

    /// Whether the README has it as it is; in words if not.
    pub(crate) fn check(&self) -> Result<Result<(), Vec<String>>, Error> {
        let path = path();
        let readme = std::fs::read_to_string(&path).map_err(file("read", &path))?;
        let (start, end) = self.place(&readme, &path)?;
        if readme[start..end] == self.text {
            return Ok(Ok(()));
        }
        let wrong = format!(
            "README.md has another table {}: make readme-table",
            self.name
        );
        Ok(Err(vec![wrong]))
    }

    fn place(&self, readme: &str, path: &Path) -> Result<(usize, usize), Error> {
        let first = readme.find(&format!("<!-- {}: ", self.name));
        let start = first.and_then(|at| Some(at + readme[at..].find('\n')? + 1));
        let end = readme.find(&format!("<!-- /{} -->", self.name));
        match (start, end) {
            (Some(start), Some(end)) if start <= end => Ok((start, end)),
            _ => Err(Error::Data {
                path: path.to_owned(),
                why: format!("no markers of the table {}", self.name),
            }),
        }
    }
}

fn path() -> PathBuf {
    crate::peers::workspace().join("README.md")
}
