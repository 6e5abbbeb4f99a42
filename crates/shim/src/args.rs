//! The command line as containerd writes it: Go's `flag` package, then one action.

use std::ffi::OsString;

use crate::error::Error;

/// What the binary is asked to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Action {
    /// Find or make the pod's shim and print its address.
    Start,
    /// Clean up after a shim that is gone.
    Delete,
    /// Print name, version and features.
    Info,
    /// Print the version for people.
    #[default]
    Version,
}

/// The flags that containerd passes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Args {
    /// What to do.
    pub action: Action,
    /// Log at debug level.
    pub debug: bool,
    /// containerd's namespace; one path component.
    pub namespace: String,
    /// Container or sandbox id; one path component.
    pub id: String,
    /// Bundle directory (`delete` only; `start` runs in it).
    pub bundle: String,
    /// containerd's gRPC address.
    pub address: String,
    /// containerd's binary; not used, events go by ttrpc.
    pub publish_binary: String,
}

/// Parses everything after the program's name.
///
/// As in Go: `-flag value`, `-flag=value`, `--flag` alike, `-bool` or `-bool=false`, and the
/// first word that is no flag ends the flags.
/// # Errors
/// `InvalidArgument` for an unknown flag, a missing value, an unknown action, or a missing or
/// unusable id or namespace.
pub(crate) fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Args, Error> {
    let mut words = arguments.into_iter().map(|word| {
        word.into_string().map_err(|word| Error::Argument {
            word: word.to_string_lossy().into(),
            why: "is not UTF-8",
        })
    });
    let mut args = Args::default();
    let (mut info, mut version) = (false, false);
    let action = loop {
        let Some(word) = words.next().transpose()? else {
            break None;
        };
        if word == "--" {
            break words.next().transpose()?;
        }
        let Some(flag) = word.strip_prefix("--").or_else(|| word.strip_prefix('-')) else {
            break Some(word);
        };
        let (name, value) = match flag.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (flag, None),
        };
        if let Some(switch) = match name {
            "debug" => Some(&mut args.debug),
            "info" => Some(&mut info),
            "v" | "version" => Some(&mut version),
            _ => None,
        } {
            *switch = boolean(&word, value.as_deref())?;
            continue;
        }
        let mut unused = String::new();
        let text = match name {
            "namespace" => &mut args.namespace,
            "id" => &mut args.id,
            "bundle" => &mut args.bundle,
            "address" => &mut args.address,
            "publish-binary" => &mut args.publish_binary,
            "socket" | "debug-socket" => &mut unused,
            _ => {
                return Err(Error::Argument {
                    word,
                    why: "is not a flag of a shim",
                });
            }
        };
        *text = match value {
            Some(value) => value,
            None => words.next().transpose()?.ok_or(Error::Argument {
                word,
                why: "needs a value",
            })?,
        };
    };
    args.action = match action.as_deref() {
        _ if version => Action::Version,
        _ if info => Action::Info,
        Some("start") => Action::Start,
        Some("delete") => Action::Delete,
        Some(other) => {
            return Err(Error::Argument {
                word: other.into(),
                why: "is not an action; start or delete",
            });
        }
        None => {
            return Err(Error::Argument {
                word: String::new(),
                why: "an action is missing; start or delete",
            });
        }
    };
    if matches!(args.action, Action::Start | Action::Delete) {
        component("-namespace", &args.namespace)?;
        component("-id", &args.id)?;
    }
    Ok(args)
}

fn boolean(word: &str, value: Option<&str>) -> Result<bool, Error> {
    match value {
        None | Some("1" | "t" | "T" | "true" | "TRUE" | "True") => Ok(true),
        Some("0" | "f" | "F" | "false" | "FALSE" | "False") => Ok(false),
        Some(_) => Err(Error::Argument {
            word: word.into(),
            why: "is neither true nor false",
        }),
    }
}

/// Refuses what could not be the name of a directory.
fn component(flag: &'static str, value: &str) -> Result<(), Error> {
    let why = match value {
        "" => "is missing",
        "." | ".." => "is not a name",
        _ if value.len() > 255 => "is longer than 255 bytes",
        _ if value.contains(['/', '\0']) => "is not one path component",
        _ => return Ok(()),
    };
    Err(Error::Argument {
        word: format!("{flag} {value:?}"),
        why,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(line: &str) -> Result<Args, Error> {
        parse(line.split_whitespace().map(OsString::from))
    }

    #[test]
    fn flags_are_read_as_containerd_writes_them() {
        let base = Args {
            namespace: "k8s.io".into(),
            id: "ab".into(),
            ..Args::default()
        };
        let start = Args {
            action: Action::Start,
            address: "/run/c.sock".into(),
            publish_binary: "/bin/containerd".into(),
            ..base.clone()
        };
        let cases = [
            (
                "-namespace k8s.io -address /run/c.sock -publish-binary /bin/containerd -id ab start",
                start.clone(),
            ),
            (
                "-namespace=k8s.io --address=/run/c.sock --publish-binary /bin/containerd -id ab -debug start",
                Args {
                    debug: true,
                    ..start.clone()
                },
            ),
            (
                "-namespace k8s.io -id ab -bundle /b -debug=false delete",
                Args {
                    action: Action::Delete,
                    bundle: "/b".into(),
                    ..base.clone()
                },
            ),
            (
                "-namespace k8s.io -id ab -socket /x -- delete",
                Args {
                    action: Action::Delete,
                    ..base
                },
            ),
            (
                "-info",
                Args {
                    action: Action::Info,
                    ..Args::default()
                },
            ),
            (
                "-v",
                Args {
                    action: Action::Version,
                    ..Args::default()
                },
            ),
            (
                "--version start",
                Args {
                    action: Action::Version,
                    ..Args::default()
                },
            ),
        ];
        for (line, want) in cases {
            assert_eq!(of(line).unwrap(), want, "{line}");
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        let cases = [
            ("", "action is missing"),
            ("-namespace a -id b", "action is missing"),
            ("-namespace a -id b stop", "stop"),
            ("-bogus start", "-bogus"),
            ("-namespace", "-namespace"),
            ("-debug=maybe start", "-debug=maybe"),
            ("-id b start", "-namespace"),
            ("-namespace a start", "-id"),
            ("-namespace a -id ../b start", "-id"),
            ("-namespace .. -id b delete", "-namespace"),
        ];
        for (line, want) in cases {
            let e = of(line).unwrap_err();
            assert!(e.to_string().contains(want), "{line}: {e}");
            assert_eq!(e.kind(), berm_sys::Kind::InvalidArgument, "{line}");
        }
    }
}
