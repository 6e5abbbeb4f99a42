//! Files of a bundle and of the configuration: read whole, but never more than a bound.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::error::Error;

/// Reads at most `limit` bytes of the file.
/// # Errors
/// The errno of open(2) or read(2); `InvalidArgument` if there is more.
pub(crate) fn read(path: &Path, limit: u64) -> Result<Vec<u8>, Error> {
    let failed = |call| {
        move |source| Error::Io {
            call,
            what: format!("{path:?}"),
            source,
        }
    };
    let mut bytes = Vec::new();
    File::open(path)
        .map_err(failed("open"))?
        .take(limit + 1)
        .read_to_end(&mut bytes)
        .map_err(failed("read"))?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > limit {
        return Err(Error::TooLarge {
            path: path.to_owned(),
            limit,
        });
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_is_a_bound() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, [7; 10]).unwrap();
        assert_eq!(read(&path, 10).unwrap(), [7; 10]);
        assert!(matches!(
            read(&path, 9),
            Err(Error::TooLarge { limit: 9, .. })
        ));
        assert_eq!(
            read(&dir.path().join("none"), 9).unwrap_err().kind(),
            berm_sys::Kind::NotFound
        );
    }
}
