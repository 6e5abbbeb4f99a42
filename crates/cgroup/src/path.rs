use std::fmt;
use std::path::Path;

use crate::Error;

/// The longest path; kernfs refuses more than `PATH_MAX` anyway.
const MAX_LEN: usize = 3072;
/// The longest part, the kernel's `NAME_MAX`.
const MAX_NAME: usize = 255;

/// Where a cgroup lies below the mount point of each hierarchy: clean, not the root, no `..`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CgroupPath(String);

impl CgroupPath {
    /// Reads `linux.cgroupsPath`. A relative path is taken from the root of the hierarchies
    /// (the spec leaves that to the runtime).
    ///
    /// # Errors
    /// [`berm_sys::Kind::InvalidArgument`] for systemd's `slice:prefix:name`, which
    /// [`crate::Place::parse`] reads, for the root, `..`, control characters and overlength.
    pub fn parse(path: &str) -> Result<Self, Error> {
        let bad = |reason| Error::BadPath {
            path: path.to_owned(),
            reason,
        };
        if crate::systemd::is_systemds(path) {
            return Err(bad("names a scope of systemd's, not a directory"));
        }
        if path.len() > MAX_LEN {
            return Err(bad("longer than 3072 bytes"));
        }
        if path.contains(|c: char| c.is_control()) {
            return Err(bad("has a control character"));
        }
        let mut clean = String::with_capacity(path.len());
        for part in path
            .split('/')
            .filter(|part| !part.is_empty() && *part != ".")
        {
            if part == ".." {
                return Err(bad("leads upwards with \"..\""));
            }
            if part.len() > MAX_NAME {
                return Err(bad("has a part longer than 255 bytes"));
            }
            if !clean.is_empty() {
                clean.push('/');
            }
            clean.push_str(part);
        }
        if clean.is_empty() {
            return Err(bad("is the root of the hierarchy"));
        }
        Ok(Self(clean))
    }

    /// The path without a leading slash, to be used below a mount point.
    pub fn relative(&self) -> &str {
        &self.0
    }

    /// The same below a mount point.
    pub(crate) fn below(&self, mount: &Path) -> std::path::PathBuf {
        mount.join(&self.0)
    }

    /// All prefixes from the topmost part to the whole path.
    pub(crate) fn prefixes(&self) -> impl DoubleEndedIterator<Item = &str> {
        let ends = self.0.match_indices('/').map(|(at, _)| at);
        let ends: Vec<usize> = ends.chain([self.0.len()]).collect();
        ends.into_iter().map(|end| &self.0[..end])
    }

    /// The path of the parent; empty for a cgroup right below the root.
    pub(crate) fn parent(&self) -> &str {
        self.0.rsplit_once('/').map_or("", |(parent, _)| parent)
    }
}

impl fmt::Display for CgroupPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/{}", self.0)
    }
}

impl From<CgroupPath> for String {
    fn from(path: CgroupPath) -> Self {
        path.to_string()
    }
}

impl TryFrom<String> for CgroupPath {
    type Error = Error;

    fn try_from(path: String) -> Result<Self, Error> {
        Self::parse(&path)
    }
}

#[cfg(test)]
mod tests {
    use berm_sys::Kind;

    use super::*;

    #[test]
    fn paths_are_cleaned_or_refused_with_the_reason() {
        let long = "x".repeat(256);
        let rows: &[(&str, Result<&str, Kind>)] = &[
            ("/kubepods/pod1/c1", Ok("kubepods/pod1/c1")),
            ("kubepods//./c1/", Ok("kubepods/c1")),
            ("/a:b:c", Ok("a:b:c")),
            ("a:b", Ok("a:b")),
            ("system.slice:cri-containerd:c1", Err(Kind::InvalidArgument)),
            (":cri:c1", Err(Kind::InvalidArgument)),
            ("/a/../b", Err(Kind::InvalidArgument)),
            ("..", Err(Kind::InvalidArgument)),
            ("/", Err(Kind::InvalidArgument)),
            ("", Err(Kind::InvalidArgument)),
            ("/a\nb", Err(Kind::InvalidArgument)),
            (&long, Err(Kind::InvalidArgument)),
        ];
        for (path, want) in rows {
            let got = CgroupPath::parse(path);
            let got = got.as_ref().map(CgroupPath::relative).map_err(Error::kind);
            assert_eq!(got, *want, "{path}");
        }
    }

    #[test]
    fn prefixes_run_from_the_top_to_the_leaf() {
        let path = CgroupPath::parse("/a/b/c").unwrap();
        assert_eq!(path.prefixes().collect::<Vec<_>>(), ["a", "a/b", "a/b/c"]);
        assert_eq!(path.parent(), "a/b");
        assert_eq!(CgroupPath::parse("/a").unwrap().parent(), "");
    }
}
