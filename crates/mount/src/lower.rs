//! An overlay that the host has mounted, put together anew of idmapped layers.
//!
//! An overlay mount cannot be idmapped, its layers can. So a volume that is an overlay, as the
//! image volumes of containerd are, is shown through a second, read-only overlay of the same
//! layers. Its upper directory is then the topmost lower one: two overlays may not write to it.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Dir, Mode, OFlags, openat};

use crate::mountinfo::{Entry, path_of};
use crate::{Error, Owner, Scratch, overlay, rootfs};

/// Layers of an overlay, topmost first.
#[derive(Debug, Default, PartialEq, Eq)]
struct Layers {
    lower: Vec<PathBuf>,
    upper: Option<PathBuf>,
    /// Options that decide what files look like.
    options: Vec<(String, String)>,
}

/// What is at `path`, which is on the overlay `entry`, read-only and with the pod's ids.
pub(crate) fn rebuild(
    path: &Path,
    entry: &Entry,
    owner: Owner<'_>,
    scratch: Scratch<'_>,
) -> Result<OwnedFd, Error> {
    let Layers {
        mut lower,
        upper,
        mut options,
    } = Layers::parse(&entry.options);
    if lower.is_empty() || lower.iter().chain(&upper).any(|layer| !layer.is_absolute()) {
        return Err(Error::Layers { path: path.into() });
    }
    if let Some(upper) = upper
        && !is_empty(&upper)?
    {
        lower.insert(0, upper);
        // The kernel refuses a lower layer that another overlay writes to, unless told.
        options.retain(|(key, _)| key != "index");
        options.push(("index".into(), "off".into()));
    }
    let whole = rootfs::view(&lower, &options, owner, scratch)?;
    if entry.root == Path::new("/") {
        return Ok(whole);
    }
    overlay::part_of(&whole, &entry.root, scratch)?
        .ok_or_else(|| Error::Layers { path: path.into() })
}

fn is_empty(dir: &Path) -> Result<bool, Error> {
    let failed = |source| Error::Resolve {
        path: dir.into(),
        source,
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd = openat(CWD, dir, flags, Mode::empty()).map_err(failed)?;
    for entry in Dir::new(fd).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            return Ok(false);
        }
    }
    Ok(true)
}

impl Layers {
    /// Reads what overlayfs shows of its options (ovl_show_options): a comma or a colon of a
    /// layer's path has a backslash before it.
    fn parse(options: &str) -> Self {
        const KEEP: [&str; 4] = ["redirect_dir", "metacopy", "userxattr", "index"];
        let mut layers = Self::default();
        for option in split(options, ',') {
            match option.split_once('=').unwrap_or((&option, "")) {
                ("lowerdir", list) => {
                    layers.lower = split(list, ':').iter().map(|layer| path(layer)).collect()
                }
                ("lowerdir+", layer) => layers.lower.push(path(layer)),
                ("upperdir", upper) => layers.upper = Some(path(upper)),
                (key, value) if KEEP.contains(&key) => {
                    layers.options.push((key.to_owned(), value.to_owned()));
                }
                _ => {}
            }
        }
        layers
    }
}

/// Parts between separators that have no backslash before them; escapes stay.
fn split(text: &str, separator: char) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (c, parts.last_mut()) {
            (c, _) if c == separator => parts.push(String::new()),
            ('\\', Some(part)) => {
                part.push('\\');
                part.extend(chars.next());
            }
            (c, Some(part)) => part.push(c),
            (_, None) => {}
        }
    }
    parts
}

/// A layer's path without the escapes of mountinfo, nor those of overlayfs.
fn path(text: &str) -> PathBuf {
    let path = path_of(text);
    let text = path.to_string_lossy();
    if !text.contains('\\') {
        return path;
    }
    let mut plain = String::new();
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => plain.extend(chars.next()),
            c => plain.push(c),
        }
    }
    plain.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layers_of_an_overlay_are_read_as_the_kernel_shows_them() {
        let old = r"rw,lowerdir=/a:/b\:c,upperdir=/u,workdir=/w,index=off,volatile,uuid=on";
        let want = Layers {
            lower: vec!["/a".into(), "/b:c".into()],
            upper: Some("/u".into()),
            options: vec![("index".into(), "off".into())],
        };
        assert_eq!(Layers::parse(old), want);
        let new = r"ro,lowerdir+=/a\040b,lowerdir+=/c\\,d,redirect_dir=nofollow,userxattr";
        let got = Layers::parse(new);
        assert_eq!(got.lower[0], PathBuf::from("/a b"));
        assert_eq!(got.upper, None);
        assert_eq!(got.options[1], ("userxattr".into(), String::new()));
        assert_eq!(Layers::parse("rw").lower, Vec::<PathBuf>::new());
    }
}
