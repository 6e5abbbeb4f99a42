//! The runtime options that come with Create: any type is accepted, two are read.
//!
//! CRI sends runc's type with every container of a pod that has a user namespace, whatever the
//! runtime; other types are for other shims and ask nothing of this one.

use std::path::PathBuf;

use containerd_shim_protos::protobuf::rt::skip_field_for_tag;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{self, CodedInputStream, Message};
use containerd_shim_protos::shim::oci;

use crate::error::Error;

/// What of the options concerns Berm.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Options {
    /// Host uid and gid that the process's stdio shall belong to.
    pub(crate) io_owner: Option<(u32, u32)>,
    /// A configuration file in place of the one named after the shim.
    pub(crate) config_path: Option<PathBuf>,
    /// A configuration sent along; it wins over the path.
    pub(crate) config_body: Option<String>,
}

/// Reads the options of a Create request.
/// # Errors
/// `InvalidArgument` if a type that is read does not parse.
pub(crate) fn decode(any: Option<&Any>) -> Result<Options, Error> {
    let Some(any) = any else {
        return Ok(Options::default());
    };
    let failed = |what| move |source| Error::Decode { what, source };
    match any.type_url.rsplit('/').next() {
        Some("runtimeoptions.v1.Options") => {
            runtime(&any.value).map_err(failed("options runtimeoptions.v1.Options"))
        }
        Some("containerd.runc.v1.Options") => {
            runc(&any.value).map_err(failed("options containerd.runc.v1.Options"))
        }
        _ => Ok(Options::default()),
    }
}

/// `runtimeoptions.v1.Options` {1 type_url, 2 config_path, 3 config_body}, which the protos crate
/// lacks.
fn runtime(bytes: &[u8]) -> protobuf::Result<Options> {
    let mut options = Options::default();
    let mut input = CodedInputStream::from_bytes(bytes);
    while let Some(tag) = input.read_raw_tag_or_eof()? {
        match tag {
            18 => options.config_path = Some(input.read_string()?.into()),
            26 => options.config_body = Some(input.read_string()?),
            other => skip_field_for_tag(other, &mut input)?,
        }
    }
    options.config_path = options
        .config_path
        .filter(|path| !path.as_os_str().is_empty());
    options.config_body = options.config_body.filter(|body| !body.is_empty());
    Ok(options)
}

fn runc(bytes: &[u8]) -> protobuf::Result<Options> {
    let runc = oci::Options::parse_from_bytes(bytes)?;
    let owner = (runc.io_uid, runc.io_gid);
    Ok(Options {
        io_owner: Some(owner).filter(|owner| *owner != (0, 0)),
        ..Options::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn any(type_url: &str, value: &[u8]) -> Any {
        Any {
            type_url: type_url.into(),
            value: value.to_vec(),
            ..Any::default()
        }
    }

    #[test]
    fn every_type_is_accepted_and_two_are_read() {
        let none = Options::default();
        let both = Options {
            config_path: Some("/a.toml".into()),
            config_body: Some("x = 1".into()),
            ..Options::default()
        };
        let bytes = b"\x0a\x01t\x12\x07/a.toml\x1a\x05x = 1\x20\x07";
        let cases = [
            ("nothing", None, none.clone()),
            (
                "unknown",
                Some(any("some.Thing", b"\xff\xff")),
                none.clone(),
            ),
            (
                "runtimeoptions",
                Some(any("runtimeoptions.v1.Options", bytes)),
                both.clone(),
            ),
            (
                "with a prefix",
                Some(any("types.containerd.io/runtimeoptions.v1.Options", bytes)),
                both,
            ),
            (
                "empty",
                Some(any("runtimeoptions.v1.Options", b"\x12\x00\x1a\x00")),
                none.clone(),
            ),
            (
                "runc",
                Some(any(
                    "containerd.runc.v1.Options",
                    b"\x20\xe8\x07\x28\xe9\x07",
                )),
                Options {
                    io_owner: Some((1000, 1001)),
                    ..Options::default()
                },
            ),
            (
                "runc without ids",
                Some(any("containerd.runc.v1.Options", b"\x48\x01")),
                none,
            ),
        ];
        for (name, given, want) in cases {
            assert_eq!(decode(given.as_ref()).unwrap(), want, "{name}");
        }
    }

    #[test]
    fn broken_bytes_of_a_known_type_are_an_error_that_names_it() {
        let e = decode(Some(&any("runtimeoptions.v1.Options", b"\x12\x7fx"))).unwrap_err();
        assert!(e.to_string().contains("runtimeoptions.v1.Options"), "{e}");
        assert_eq!(e.kind(), berm_sys::Kind::InvalidArgument);
    }
}
