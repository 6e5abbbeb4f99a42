//! Paths of a container, as text: nothing here looks at a file system.

use std::path::{Component, Path, PathBuf};

use crate::refusal::{Error, invalid, no_nul, quoted};

/// The path from the container's root, without `.`, `..` and double slashes.
///
/// Links are not resolved: whoever uses the path stays below the root while walking it.
pub(crate) fn clean(path: &Path) -> PathBuf {
    let mut clean = PathBuf::from("/");
    for component in path.components() {
        match component {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => {
                clean.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    clean
}

/// Reads a list of absolute paths, cleaned.
pub(crate) fn absolute(field: &str, paths: Option<&[String]>) -> Result<Vec<PathBuf>, Error> {
    let read = |(index, path): (usize, &String)| {
        let field = format!("{field}[{index}]");
        no_nul(&field, path)?;
        if !path.starts_with('/') {
            let reason = format!("{} is not an absolute path", quoted(path));
            return Err(invalid(field, reason, "use a path that begins with /"));
        }
        Ok(clean(Path::new(path)))
    };
    paths
        .unwrap_or_default()
        .iter()
        .enumerate()
        .map(read)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_cleaned_as_go_does_it() {
        let cases = [
            ("/a/b", "/a/b"),
            ("a//b/", "/a/b"),
            ("/a/./../b", "/b"),
            ("/../..", "/"),
            ("", "/"),
        ];
        for (path, want) in cases {
            assert_eq!(clean(Path::new(path)), Path::new(want), "{path}");
        }
    }

    #[test]
    fn a_relative_path_in_a_list_is_refused_by_its_index() {
        let list = ["/proc/kcore".to_owned(), "kcore".to_owned()];
        let error = absolute("linux.maskedPaths", Some(&list))
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with("linux.maskedPaths[1]: \"kcore\" is not"),
            "{error}"
        );
    }
}
