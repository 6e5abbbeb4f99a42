//! Mount options: runc's names, each mapped, accepted as the kernel's default, or refused.

use berm_sys::mount::attr as bit;

use crate::refusal::{Error, quoted, unsupported};
use crate::step::{Atime, Attr, Propagate, Propagation, Recursive};

/// The options of one mount.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Options {
    pub(crate) attr: Attr,
    /// What the options with a leading `r` say of a whole tree.
    pub(crate) all: Recursive,
    /// In order.
    pub(crate) propagation: Vec<Propagate>,
    /// `bind` or `rbind`
    pub(crate) bind: bool,
    /// `rbind`
    pub(crate) recursive: bool,
    /// `idmap` or `ridmap`
    pub(crate) idmap: bool,
    /// `ridmap`
    pub(crate) idmap_recursive: bool,
    /// `tmpcopyup`
    pub(crate) copy_up: bool,
    /// Flags of a whole file system, which a bind mount has not: `sync`, `lazytime` …
    pub(crate) superblock: Vec<&'static str>,
    /// What is no flag: options of the file system, in order.
    pub(crate) data: Vec<(String, String)>,
}

/// Options of runc that are refused, with reason and way out.
const REFUSED: [(&[&str], &str, &str); 2] = [
    (
        &["remount"],
        "changes a mount that the spec has made before",
        "give the options to the mount itself",
    ),
    (
        &["iversion"],
        "the kernel's mount API has no such flag",
        "drop it, file systems that need it set it by themselves",
    ),
];

/// Options that ask for what the kernel does anyway.
const DEFAULTS: [&str; 4] = ["defaults", "loud", "silent", "noiversion"];

/// Flags of a file system, and the option that takes each back (`vfs_parse_sb_flag`).
const SUPERBLOCK: [(&str, &str); 4] = [
    ("sync", "async"),
    ("dirsync", ""),
    ("mand", "nomand"),
    ("lazytime", "nolazytime"),
];

/// Options for a whole tree (mount_setattr(2) with `AT_RECURSIVE`): bits set, bits cleared.
/// Access times are one field, which is always cleared as a whole.
const RECURSIVE: [(&str, u64, u64); 18] = [
    ("rro", bit::RDONLY, 0),
    ("rrw", 0, bit::RDONLY),
    ("rnosuid", bit::NOSUID, 0),
    ("rsuid", 0, bit::NOSUID),
    ("rnodev", bit::NODEV, 0),
    ("rdev", 0, bit::NODEV),
    ("rnoexec", bit::NOEXEC, 0),
    ("rexec", 0, bit::NOEXEC),
    ("rnodiratime", bit::NODIRATIME, 0),
    ("rdiratime", 0, bit::NODIRATIME),
    ("rnosymfollow", bit::NOSYMFOLLOW, 0),
    ("rsymfollow", 0, bit::NOSYMFOLLOW),
    ("rnoatime", bit::NOATIME, bit::ATIME),
    ("rstrictatime", bit::STRICTATIME, bit::ATIME),
    ("rrelatime", 0, bit::ATIME),
    ("rnorelatime", 0, bit::ATIME),
    ("ratime", 0, bit::ATIME),
    ("rnostrictatime", 0, bit::ATIME),
];

/// Reads the options of `mounts[index]`.
pub(crate) fn parse(index: usize, options: &[String]) -> Result<Options, Error> {
    parse_list(options, &|option: &str| field(index, option))
}

/// Reads options; `field` is what an error about one of them begins with.
pub(crate) fn parse_list(
    options: &[String],
    field: &dyn Fn(&str) -> String,
) -> Result<Options, Error> {
    let mut parsed = Options::default();
    for option in options {
        if parsed.take(option) {
            continue;
        }
        let refused = |(names, ..): &&(&[&str], _, _)| names.contains(&option.as_str());
        if let Some((_, reason, way_out)) = REFUSED.iter().find(refused) {
            return Err(unsupported(field(option), *reason, *way_out));
        }
        let (key, value) = option.split_once('=').unwrap_or((option, ""));
        parsed.data.push((key.to_owned(), value.to_owned()));
    }
    Ok(parsed)
}

/// An option of `mounts[index]`, as errors name it.
pub(crate) fn field(index: usize, option: &str) -> String {
    format!("mounts[{index}].options {}", quoted(option))
}

/// A refusal of one option.
pub(crate) fn refuse(index: usize, option: &str, reason: &str, way_out: &str) -> Error {
    unsupported(field(index, option), reason, way_out)
}

/// What `linux.rootfsPropagation` and the option of a mount have in common.
pub(crate) fn propagation(name: &str) -> Option<Propagate> {
    let (recursive, plain) = match name.strip_prefix('r') {
        Some(plain) => (true, plain),
        None => (false, name),
    };
    let kind = match plain {
        "private" => Propagation::Private,
        "slave" => Propagation::Slave,
        "shared" => Propagation::Shared,
        "unbindable" => Propagation::Unbindable,
        _ => return None,
    };
    Some(Propagate { kind, recursive })
}

impl Options {
    /// Takes an option that is a flag or a default; false: it is none.
    pub(crate) fn take(&mut self, option: &str) -> bool {
        self.flag(option)
            || self.tree(option)
            || self.superblock(option)
            || DEFAULTS.contains(&option)
    }

    fn flag(&mut self, option: &str) -> bool {
        let attr = &mut self.attr;
        match option {
            "ro" => attr.ro = true,
            "rw" => attr.ro = false,
            "nosuid" => attr.nosuid = true,
            "suid" => attr.nosuid = false,
            "nodev" => attr.nodev = true,
            "dev" => attr.nodev = false,
            "noexec" => attr.noexec = true,
            "exec" => attr.noexec = false,
            "nosymfollow" => attr.nosymfollow = true,
            "symfollow" => attr.nosymfollow = false,
            "nodiratime" => attr.nodiratime = true,
            "diratime" => attr.nodiratime = false,
            "relatime" => attr.atime = Atime::Relatime,
            "noatime" => attr.atime = Atime::Noatime,
            "strictatime" => attr.atime = Atime::Strictatime,
            "atime" => attr.unless(Atime::Noatime),
            "norelatime" => attr.unless(Atime::Relatime),
            "nostrictatime" => attr.unless(Atime::Strictatime),
            "bind" => self.bind = true,
            "rbind" => (self.bind, self.recursive) = (true, true),
            "idmap" => self.idmap = true,
            "ridmap" => (self.idmap, self.idmap_recursive) = (true, true),
            "tmpcopyup" => self.copy_up = true,
            name => match propagation(name) {
                Some(change) => self.propagation.push(change),
                None => return false,
            },
        }
        true
    }

    fn tree(&mut self, option: &str) -> bool {
        let Some((_, set, clear)) = RECURSIVE.iter().find(|(name, ..)| *name == option) else {
            return false;
        };
        // A bit that was set is taken back by its opposite, and the other way round.
        self.all.set = self.all.set & !clear | set;
        self.all.clear = self.all.clear & !set | clear;
        if set & bit::ATIME != 0 {
            self.all.clear |= bit::ATIME;
        }
        true
    }

    fn superblock(&mut self, option: &str) -> bool {
        for (set, clear) in SUPERBLOCK {
            if option == set || option == clear {
                self.superblock.retain(|flag| *flag != set);
                self.superblock.extend((option == set).then_some(set));
                return true;
            }
        }
        false
    }
}

impl Attr {
    fn unless(&mut self, taken_back: Atime) {
        if self.atime == taken_back {
            self.atime = Atime::Inherit;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(options: &[&str]) -> Result<Options, Error> {
        let options: Vec<_> = options.iter().map(|&o| o.to_owned()).collect();
        parse(3, &options)
    }

    fn private(recursive: bool) -> Propagate {
        let kind = Propagation::Private;
        Propagate { kind, recursive }
    }

    #[test]
    fn every_flag_of_a_mount_is_read_and_can_be_taken_back() {
        let attr = Attr::default();
        let atime = |atime| Attr {
            atime,
            ..Attr::default()
        };
        let all = Attr {
            ro: true,
            nosuid: true,
            nodev: true,
            noexec: true,
            nosymfollow: true,
            nodiratime: true,
            ..attr
        };
        let set = [
            "ro",
            "nosuid",
            "nodev",
            "noexec",
            "nosymfollow",
            "nodiratime",
        ];
        let clear = ["rw", "suid", "dev", "exec", "symfollow", "diratime"];
        let both: Vec<_> = set.iter().chain(&clear).copied().collect();
        let cases: &[(&[&str], Attr)] = &[
            (&set, all),
            (&both, attr),
            (&["noatime"], atime(Atime::Noatime)),
            (&["relatime"], atime(Atime::Relatime)),
            (&["strictatime"], atime(Atime::Strictatime)),
            (&["noatime", "relatime"], atime(Atime::Relatime)),
            (&["noatime", "atime"], attr),
            (&["strictatime", "nostrictatime"], attr),
            (&["relatime", "norelatime"], attr),
            (&["strictatime", "atime"], atime(Atime::Strictatime)),
            (&DEFAULTS, attr),
            (&["async", "nomand", "nolazytime"], attr),
        ];
        for (options, want) in cases {
            let attr = *want;
            let want = Options {
                attr,
                ..Options::default()
            };
            assert_eq!(read(options).unwrap(), want, "{options:?}");
        }
    }

    #[test]
    fn options_for_a_tree_are_bits_to_set_and_to_clear_and_the_last_word_wins() {
        let all = |set, clear| Recursive { set, clear };
        let cases: &[(&[&str], Recursive)] = &[
            (&["rro"], all(bit::RDONLY, 0)),
            (&["rro", "rrw"], all(0, bit::RDONLY)),
            (&["rrw", "rro"], all(bit::RDONLY, 0)),
            (
                &["rnosuid", "rnodev", "rexec"],
                all(bit::NOSUID | bit::NODEV, bit::NOEXEC),
            ),
            (&["rnoatime"], all(bit::NOATIME, bit::ATIME)),
            (
                &["rnoatime", "rstrictatime"],
                all(bit::STRICTATIME, bit::ATIME),
            ),
            (&["rnoatime", "ratime"], all(0, bit::ATIME)),
            (
                &["rnosymfollow", "rnodiratime"],
                all(bit::NOSYMFOLLOW | bit::NODIRATIME, 0),
            ),
        ];
        for (options, want) in cases {
            assert_eq!(read(options).unwrap().all, *want, "{options:?}");
        }
    }

    #[test]
    fn bind_propagation_and_the_rest_are_read() {
        let got = read(&["rbind", "rslave", "uid=5", "huge", "sync", "ridmap"]).unwrap();
        assert!(got.bind && got.recursive && got.idmap && got.idmap_recursive);
        assert_eq!(
            got.data,
            [("uid".into(), "5".into()), ("huge".into(), String::new())]
        );
        assert_eq!(got.superblock, ["sync"]);
        let got = read(&["bind", "slave", "rprivate", "sync", "async"]).unwrap();
        assert_eq!((got.bind, got.recursive), (true, false));
        let slave = Propagate {
            kind: Propagation::Slave,
            recursive: false,
        };
        assert_eq!(got.propagation, [slave, private(true)]);
        assert!(got.superblock.is_empty());
        assert_eq!(propagation("runbindable").map(|p| p.recursive), Some(true));
        assert_eq!(propagation("rw"), None);
    }

    #[test]
    fn every_option_of_runc_that_cannot_be_applied_is_refused_by_name() {
        for (names, reason, way_out) in REFUSED {
            for name in names {
                let error = read(&["nosuid", name]).unwrap_err();
                let want = format!("mounts[3].options \"{name}\": {reason}; {way_out}");
                assert_eq!(error.to_string(), want);
                assert!(want.len() <= 200);
                assert_eq!(error.kind(), berm_sys::Kind::NotSupported);
            }
        }
    }
}
