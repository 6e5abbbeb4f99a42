//! What the scheme of stdout asks for: it decides for stderr too.

use std::path::PathBuf;

use berm_sandbox::LoggerArgs;

use crate::error::Error;

/// Whom a logger is told that it works for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Who<'a> {
    /// containerd's namespace.
    pub(crate) namespace: &'a str,
    /// Container id, for an exec the exec's.
    pub(crate) id: &'a str,
}

/// The logger that a stdout path names; `None` for a fifo or nothing.
/// # Errors
/// `NotSupported` for a streaming address, `InvalidArgument` for any other scheme and for a
/// logger without a path.
pub(super) fn logger(stdout: &str, who: Who<'_>) -> Result<Option<LoggerArgs>, Error> {
    let Some((scheme, rest)) = stdout.split_once("://") else {
        return Ok(None);
    };
    let bad = |why| Error::StdioPath {
        stream: "stdout",
        path: stdout.to_owned(),
        why,
    };
    let rest = rest.split_once('#').map_or(rest, |(rest, _)| rest);
    let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
    // What stands before the path is a host, which means nothing here.
    let path = place
        .find('/')
        .and_then(|at| decode(&place[at..], false))
        .ok_or_else(|| bad("names no absolute path"))?;
    let path = PathBuf::from(path);
    match scheme {
        "binary" | "binary-v2" => Ok(Some(LoggerArgs::Program {
            path,
            args: arguments(query),
            env: vec![
                format!("CONTAINER_ID={}", who.id),
                format!("CONTAINER_NAMESPACE={}", who.namespace),
            ],
            must_say_ready: scheme == "binary-v2",
        })),
        "file" => Ok(Some(LoggerArgs::File(path))),
        "ttrpc+unix" | "ttrpc+vsock" | "ttrpc+hvsock" => Err(Error::NotYet {
            field: "stdout",
            value: stdout.to_owned(),
            way_out: "streams are not supported; set io_type = \"fifo\" in containerd's CRI \
                      configuration",
        }),
        _ => Err(bad(
            "has a scheme other than binary, binary-v2 and file; a fifo is given by its path",
        )),
    }
}

/// Each key and its first value, as Go's `url.ParseQuery` reads them: a pair with a semicolon or a
/// broken escape is left out. containerd passes the keys in no order; here they keep theirs.
fn arguments(query: &str) -> Vec<String> {
    let mut args: Vec<String> = Vec::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let decoded = (decode(key, true), decode(value, true));
        let (false, (Some(key), Some(value))) = (pair.contains(';'), decoded) else {
            continue;
        };
        if !args.chunks(2).any(|known| known.first() == Some(&key)) {
            args.extend([key, value]);
        }
    }
    args
}

/// Resolves `%41`, and `+` in a query; `None` for a broken escape or what is no UTF-8.
fn decode(text: &str, is_query: bool) -> Option<String> {
    let mut bytes = text.bytes();
    let mut decoded = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'%' => {
                let mut digit = || char::from(bytes.next()?).to_digit(16);
                u8::try_from(digit()? << 4 | digit()?).ok()?
            }
            b'+' if is_query => b' ',
            byte => byte,
        });
    }
    String::from_utf8(decoded).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHO: Who<'_> = Who {
        namespace: "ns",
        id: "c1",
    };

    #[test]
    fn a_programs_arguments_are_those_that_gos_url_package_gives() {
        for (uri, path, want) in [
            ("binary:///l", "/l", vec![]),
            ("binary:///l?k=v&f", "/l", vec!["k", "v", "f", ""]),
            ("binary:///l?k=1&k=2&j=", "/l", vec!["k", "1", "j", ""]),
            (
                "binary:///l?a+b=c%20d%2F&x;y=1&%zz=1&&=e",
                "/l",
                vec!["a b", "c d/", "", "e"],
            ),
            ("binary://host/l%20x?a#b", "/l x", vec!["a", ""]),
        ] {
            let Some(LoggerArgs::Program {
                path: at,
                args,
                env,
                must_say_ready,
            }) = logger(uri, WHO).unwrap()
            else {
                panic!("{uri}")
            };
            assert_eq!(
                (at.to_str().unwrap(), args),
                (path, want.iter().map(|s| (*s).to_owned()).collect())
            );
            assert_eq!(env, ["CONTAINER_ID=c1", "CONTAINER_NAMESPACE=ns"]);
            assert!(!must_say_ready);
        }
        let strict = logger("binary-v2:///l", WHO).unwrap().unwrap();
        assert!(matches!(
            strict,
            LoggerArgs::Program {
                must_say_ready: true,
                ..
            }
        ));
        let file = logger("file:///var/log/a%2Fb", WHO).unwrap();
        assert_eq!(file, Some(LoggerArgs::File("/var/log/a/b".into())));
        assert_eq!(logger("/run/fifo", WHO).unwrap(), None);
        assert_eq!(logger("", WHO).unwrap(), None);
    }

    #[test]
    fn other_schemes_are_refused_with_the_way_out() {
        use berm_sys::Kind;
        for (uri, kind, want) in [
            (
                "ttrpc+unix:///run/x?streaming_id=a-stdout",
                Kind::NotSupported,
                "io_type = \"fifo\"",
            ),
            (
                "npipe:///x",
                Kind::InvalidArgument,
                "a scheme other than binary",
            ),
            ("binary://", Kind::InvalidArgument, "no absolute path"),
            ("binary://x?y", Kind::InvalidArgument, "no absolute path"),
            ("file:///%q", Kind::InvalidArgument, "no absolute path"),
        ] {
            let e = logger(uri, WHO).unwrap_err();
            assert!(e.to_string().contains(want), "{e}");
            assert_eq!(e.kind(), kind, "{uri}");
        }
    }
}
