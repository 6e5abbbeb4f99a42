//! The two JSON objects of the wire.

use berm_sys::Kind;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::dispatch::CallError;
use crate::text::bounded;
use crate::{Error, Malformed};

/// Bytes of an error's text that are sent, and that are kept by a client.
const TEXT_LIMIT: usize = 4096;

/// A request as a server reads it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Request {
    pub(crate) method: String,
    #[serde(default)]
    pub(crate) arg: Value,
}

impl Request {
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        Ok(serde_json::from_slice(bytes)?)
    }
}

/// A request as a client writes it.
pub(crate) fn request<A: Serialize + ?Sized>(method: &str, arg: &A) -> Result<Vec<u8>, Malformed> {
    #[derive(Serialize)]
    struct Out<'a, A: ?Sized> {
        method: &'a str,
        arg: &'a A,
    }
    Ok(serde_json::to_vec(&Out { method, arg })?)
}

/// A reply as a server writes it: gVisor's bytes, plus `kind` if the call failed.
#[derive(Serialize)]
struct ReplyOut<'a> {
    success: bool,
    err: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    kind: Option<&'static str>,
    result: &'a Value,
}

pub(crate) fn success(result: &Value) -> Result<Vec<u8>, Malformed> {
    Ok(serde_json::to_vec(&ReplyOut {
        success: true,
        err: "",
        kind: None,
        result,
    })?)
}

pub(crate) fn failure(error: CallError) -> Result<Vec<u8>, Malformed> {
    let err = &bounded(error.text, TEXT_LIMIT);
    let kind = Some(error.kind.as_str());
    Ok(serde_json::to_vec(&ReplyOut {
        success: false,
        err,
        kind,
        result: &Value::Null,
    })?)
}

/// A reply as a client reads it; unknown keys pass, because gVisor may add some as Berm did.
#[derive(Deserialize)]
struct ReplyIn<R> {
    success: bool,
    #[serde(default)]
    err: String,
    #[serde(default)]
    kind: Option<String>,
    result: Option<R>,
}

/// Reads the reply to `method`: its result, [`Error::Remote`] or [`Error::Reply`].
pub(crate) fn result<'a, R: Deserialize<'a>>(method: &str, bytes: &'a [u8]) -> Result<R, Error> {
    let bad = |error: serde_json::Error| Error::Reply {
        method: method.to_owned(),
        source: Malformed::from(error),
    };
    let reply: ReplyIn<R> = serde_json::from_slice(bytes).map_err(bad)?;
    match (reply.success, reply.result) {
        (true, Some(result)) => Ok(result),
        // `null` is a result too: of a list without members, for one.
        (true, None) => R::deserialize(Value::Null).map_err(bad),
        (false, _) => Err(Error::Remote {
            kind: reply.kind.as_deref().and_then(Kind::parse),
            text: bounded(reply.err, TEXT_LIMIT),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Empty;
    use serde_json::json;

    fn text(bytes: Result<Vec<u8>, Malformed>) -> String {
        String::from_utf8(bytes.unwrap()).unwrap()
    }

    #[test]
    fn messages_are_gvisors_byte_for_byte() {
        assert_eq!(
            text(request("containerManager.Processes", "c1")),
            r#"{"method":"containerManager.Processes","arg":"c1"}"#
        );
        assert_eq!(
            text(request("debug.Stacks", &())),
            r#"{"method":"debug.Stacks","arg":null}"#
        );
        assert_eq!(
            text(success(&json!({}))),
            r#"{"success":true,"err":"","result":{}}"#
        );
        assert_eq!(
            text(success(&Value::Null)),
            r#"{"success":true,"err":"","result":null}"#
        );
        assert_eq!(
            text(failure(CallError::new(
                Kind::NotFound,
                "container \"x\" not found"
            ))),
            concat!(
                r#"{"success":false,"err":"container \"x\" not found","#,
                r#""kind":"NotFound","result":null}"#
            )
        );
    }

    #[test]
    fn a_request_has_a_method_perhaps_an_arg_and_nothing_else() {
        let request = Request::parse(br#"{"method":"a.B"}"#).unwrap();
        assert_eq!((request.method.as_str(), request.arg), ("a.B", Value::Null));
        for bad in [
            r#"{}"#,
            r#"{"arg":1}"#,
            r#"{"method":1}"#,
            r#"{"method":null}"#,
            r#"{"method":"a","arg":1,"more":2}"#,
            r#"{"Method":"a"}"#,
            r#"{"method":"a","method":"b"}"#,
            r#"{"method":"a","arg":1,"arg":2}"#,
            r#"{"method":"a","arg":01}"#,
            "{\"method\":\"a\nb\"}",
        ] {
            assert!(
                matches!(Request::parse(bad.as_bytes()), Err(Malformed::Json { .. })),
                "{bad}"
            );
        }
        assert!(Request::parse(b"{\"method\":\"\xff\"}").is_err());
    }

    #[test]
    fn replies_of_a_gvisor_sandbox_are_understood() {
        let ok: u32 = result("m", br#"{"success":true,"err":"","result":499}"#).unwrap();
        assert_eq!(ok, 499);
        let _: Empty = result("m", br#"{"success":true,"err":"","result":{}}"#).unwrap();
        let none: Option<Vec<u8>> = result("m", br#"{"success":true,"result":null}"#).unwrap();
        assert_eq!(none, None);
        let newer: u32 = result("m", br#"{"success":true,"err":"","new":1,"result":3}"#).unwrap();
        assert_eq!(newer, 3);
        let error = result::<u32>("m", br#"{"success":false,"err":"no","result":null}"#);
        let Err(Error::Remote { kind: None, text }) = error else {
            panic!("{error:?}")
        };
        assert_eq!(text, "no");
    }

    #[test]
    fn every_kind_survives_the_socket() {
        for kind in [
            Kind::InvalidArgument,
            Kind::DeadlineExceeded,
            Kind::Denied,
            Kind::Internal,
        ] {
            let bytes = failure(CallError::new(kind, "text")).unwrap();
            let error = result::<Empty>("m", &bytes).unwrap_err();
            assert!(matches!(&error, Error::Remote { kind: Some(k), .. } if *k == kind));
            assert_eq!(error.kind(), kind);
        }
    }

    #[test]
    fn a_reply_of_another_type_is_the_servers_fault_not_a_remote_error() {
        for bad in [
            r#"{"success":true,"result":"x"}"#,
            r#"{"success":true}"#,
            r#"{"result":1}"#,
        ] {
            let error = result::<u32>("m", bad.as_bytes()).unwrap_err();
            assert!(matches!(error, Error::Reply { .. }), "{bad}: {error:?}");
            assert_eq!(error.kind(), Kind::Internal);
        }
    }

    #[test]
    fn a_remote_text_is_bounded_and_printed_escaped() {
        let long = "x".repeat(10_000);
        let error = result::<Empty>("m", &failure(CallError::new(Kind::Internal, long)).unwrap())
            .unwrap_err();
        assert!(error.to_string().len() < 4200);
        let error = Error::Remote {
            kind: None,
            text: "\u{1b}[2Jgone".into(),
        };
        assert_eq!(error.to_string(), "\\u{1b}[2Jgone");
    }
}
