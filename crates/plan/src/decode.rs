//! JSON → OCI types, with nothing silently dropped: an unknown key is an error with its path.

use serde::de::DeserializeOwned;
use serde_ignored::Path;
use serde_path_to_error::Segment;

use crate::refusal::{Error, VERSION, unsupported};

/// No spec that containerd writes comes near it; its own limit for a gRPC message is 16 MiB.
const MAX_BYTES: usize = 4 << 20;

/// Reads `json` as a `T`. `prefix` is the path of the document in the spec (`process` for an
/// exec's), which errors about fields begin with.
pub(crate) fn decode<T: DeserializeOwned>(
    document: &'static str,
    prefix: &str,
    json: &[u8],
) -> Result<T, Error> {
    if json.len() > MAX_BYTES {
        return Err(Error::TooLong {
            document,
            bytes: json.len(),
            max: MAX_BYTES,
        });
    }
    // serde would take a list of values for an object.
    if json.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'[') {
        let reason = "an object is expected, not a list".to_owned();
        return Err(Error::Json {
            document,
            at: String::new(),
            reason,
            line: 1,
            column: 0,
        });
    }
    match parse(document, prefix, json) {
        Err(Error::Json { .. }) if contains(json, OVERRUN) => {
            let text = String::from_utf8_lossy(json).replace(OVERRUN, THEIR_OVERRUN);
            parse(document, prefix, text.as_bytes())
        }
        parsed => parsed,
    }
}

/// A flag of `process.scheduler`, and how the types' crate (0.10) spells it by mistake.
const OVERRUN: &str = "\"SCHED_FLAG_DL_OVERRUN\"";
const THEIR_OVERRUN: &str = "\"SCHED_FLAG_D_L_OVERRUN\"";

fn contains(json: &[u8], text: &str) -> bool {
    json.windows(text.len()).any(|part| part == text.as_bytes())
}

fn parse<T: DeserializeOwned>(
    document: &'static str,
    prefix: &str,
    json: &[u8],
) -> Result<T, Error> {
    let mut parser = serde_json::Deserializer::from_slice(json);
    let mut track = serde_path_to_error::Track::new();
    let mut unknown = None;
    let tracked = serde_path_to_error::Deserializer::new(&mut parser, &mut track);
    let value = serde_ignored::deserialize(tracked, |path| {
        unknown.get_or_insert_with(|| spelled(prefix, &path));
    });
    let value = value.map_err(|e| broken(document, reached(prefix, &track.path()), &e))?;
    parser
        .end()
        .map_err(|e| broken(document, String::new(), &e))?;
    match unknown {
        Some(field) => Err(unsupported(
            field,
            format!("not known to Berm {VERSION}"),
            "leave it out, or run this pod with another runtime",
        )),
        None => Ok(value),
    }
}

fn broken(document: &'static str, at: String, error: &serde_json::Error) -> Error {
    let text = error.to_string();
    // serde_json appends the place, which the error has in fields of its own.
    let reason = text
        .rsplit_once(" at line ")
        .map_or(text.as_str(), |(reason, _)| reason);
    let reason = reason.chars().take(200).collect();
    let at = if at.is_empty() { at } else { at + ": " };
    Error::Json {
        document,
        at,
        reason,
        line: error.line(),
        column: error.column(),
    }
}

/// The path of the field where parsing ended; empty for the document itself.
fn reached(prefix: &str, path: &serde_path_to_error::Path) -> String {
    let mut segments = path.iter().peekable();
    if segments.peek().is_none() {
        return String::new();
    }
    segments.fold(prefix.to_owned(), |at, segment| match segment {
        Segment::Seq { index } => format!("{at}[{index}]"),
        Segment::Map { key } => join(&at, &shortened(key)),
        Segment::Enum { .. } | Segment::Unknown => at,
    })
}

/// The path of an unknown key, as specs are spoken of: `mounts[3].foo`.
fn spelled(prefix: &str, path: &Path<'_>) -> String {
    match path {
        Path::Root => prefix.to_owned(),
        Path::Seq { parent, index } => format!("{}[{index}]", spelled(prefix, parent)),
        Path::Map { parent, key } => join(&spelled(prefix, parent), &shortened(key)),
        Path::Some { parent }
        | Path::NewtypeStruct { parent }
        | Path::NewtypeVariant { parent } => spelled(prefix, parent),
    }
}

fn join(at: &str, key: &str) -> String {
    if at.is_empty() {
        key.to_owned()
    } else {
        format!("{at}.{key}")
    }
}

fn shortened(key: &str) -> String {
    key.chars()
        .take(64)
        .collect::<String>()
        .escape_debug()
        .to_string()
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime;

    use super::*;

    #[test]
    fn bad_json_is_refused_with_its_place() {
        let cases = [
            (
                "{\n \"root\": {\n",
                "config.json: root: EOF while parsing an object (line 3, column 0)",
            ),
            (
                "",
                "config.json: EOF while parsing a value (line 1, column 0)",
            ),
            (
                "{} x",
                "config.json: trailing characters (line 1, column 4)",
            ),
            (
                r#"{"process":{"user":{},"cwd":"/","rlimits":[{"type":"RLIMIT_X"}]}}"#,
                "config.json: process.rlimits[0].type: unknown variant `RLIMIT_X`",
            ),
            (
                r#"{"process":{"user":{"uid":-1},"cwd":"/"}}"#,
                "config.json: process.user.uid: invalid value",
            ),
            (
                r#"{"process":{"user":{}}}"#,
                "config.json: process: missing field `cwd`",
            ),
            (
                r#"{"root":{"path":"a"},"root":{"path":"b"}}"#,
                "config.json: duplicate field `root`",
            ),
        ];
        for (json, want) in cases {
            let error = decode::<runtime::Spec>("config.json", "", json.as_bytes()).unwrap_err();
            assert!(error.to_string().starts_with(want), "{json}: {error}");
            assert_eq!(error.kind(), berm_sys::Kind::InvalidArgument);
        }
    }

    #[test]
    fn an_unknown_key_is_refused_by_its_path() {
        let cases = [
            (r#"{"frobnicate":{}}"#, "frobnicate: not known to Berm "),
            (r#"{"freebsd":{"jail":{}}}"#, "freebsd: not known"),
            (
                r#"{"process":{"user":{},"cwd":"/","foo":1}}"#,
                "process.foo: not known",
            ),
            (
                r#"{"mounts":[{"destination":"/a"},{"destination":"/b","x":[]}]}"#,
                "mounts[1].x: not known",
            ),
            (
                r#"{"linux":{"resources":{"cpu":{"turbo":1}}}}"#,
                "linux.resources.cpu.turbo: not known",
            ),
            (r#"{"root":{"path":"a","b":1}}"#, "root.b: not known"),
        ];
        for (json, want) in cases {
            let error = decode::<runtime::Spec>("config.json", "", json.as_bytes()).unwrap_err();
            assert!(error.to_string().starts_with(want), "{json}: {error}");
            assert_eq!(error.kind(), berm_sys::Kind::NotSupported);
        }
        let error =
            decode::<runtime::Process>("process", "process", br#"{"user":{"shell":1},"cwd":"/"}"#);
        assert!(
            error
                .unwrap_err()
                .to_string()
                .starts_with("process.user.shell: not known")
        );
    }

    #[test]
    fn a_document_beyond_4_mib_is_not_parsed() {
        let json = vec![b' '; MAX_BYTES + 1];
        let error = decode::<runtime::Spec>("config.json", "", &json).unwrap_err();
        assert!(matches!(error, Error::TooLong { bytes, .. } if bytes == json.len()));
    }

    #[test]
    fn deep_nesting_does_not_exhaust_the_stack() {
        for json in ["{\"x\":", "{\"mounts\":"] {
            let json = format!("{json}{}", "[".repeat(1_000_000));
            assert!(decode::<runtime::Spec>("config.json", "", json.as_bytes()).is_err());
        }
    }
}
