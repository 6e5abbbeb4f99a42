//! The answer of a shim's `start`, in the forms that the generations of containerd read.

use containerd_shim_protos::bootstrap_api::BootstrapResult;
use containerd_shim_protos::protobuf::Message;
use serde::Deserialize;

/// Which containerd is played.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Generation {
    /// 1.6: no version in the environment, options on stdin, a plain answer.
    V1_6,
    /// 1.7: options on stdin, a plain answer or JSON version 2.
    V1_7,
    /// 2.0 to 2.2: options on stdin, a plain answer or JSON version 2 or 3.
    V2_0,
    /// 2.3: `BootstrapParams` on stdin, any form of answer.
    #[default]
    V2_3,
}

/// How to reach a shim, from the answer of `start`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The version of the Task API, 2 or 3.
    pub version: u32,
    /// `unix://` and a path.
    pub address: String,
    /// `ttrpc`, or `grpc` which this client does not speak.
    pub protocol: String,
}

/// Reads an answer of `start` as that generation of containerd does; `None` if it would not.
pub fn parse_answer(output: &[u8], generation: Generation) -> Option<Answer> {
    #[derive(Deserialize)]
    struct Json {
        version: u32,
        address: String,
        protocol: String,
    }
    let ttrpc = || "ttrpc".to_owned();
    if generation >= Generation::V2_3
        && let Ok(result) = BootstrapResult::parse_from_bytes(output)
        && let (Ok(version @ 2..=3), false) =
            (u32::try_from(result.version), result.address.is_empty())
    {
        let protocol = if result.protocol.is_empty() {
            ttrpc()
        } else {
            result.protocol
        };
        return Some(Answer {
            version,
            address: result.address,
            protocol,
        });
    }
    let newest = if generation >= Generation::V2_0 { 3 } else { 2 };
    if generation > Generation::V1_6
        && let Ok(json) = serde_json::from_slice::<Json>(output)
    {
        let Json {
            version,
            address,
            protocol,
        } = json;
        return (2..=newest).contains(&version).then_some(Answer {
            version,
            address,
            protocol,
        });
    }
    let address = std::str::from_utf8(output).ok()?.trim();
    address.starts_with("unix://").then(|| Answer {
        version: 2,
        address: address.to_owned(),
        protocol: ttrpc(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_generation_reads_only_the_answers_that_it_knows() {
        let result = BootstrapResult {
            version: 3,
            address: "unix:///a".to_owned(),
            protocol: "ttrpc".to_owned(),
            ..BootstrapResult::default()
        };
        let protobuf = result.write_to_bytes().unwrap();
        let json = |version| {
            format!(r#"{{"version":{version},"address":"unix:///a","protocol":"ttrpc"}}"#)
        };
        let (json2, json3) = (json(2), json(3));
        let cases: [(&[u8], [Option<u32>; 4]); 5] = [
            (&protobuf, [None, None, None, Some(3)]),
            (json2.as_bytes(), [None, Some(2), Some(2), Some(2)]),
            (json3.as_bytes(), [None, None, Some(3), Some(3)]),
            (b"unix:///a\n", [Some(2); 4]),
            (b"level=warning", [None; 4]),
        ];
        let all = [
            Generation::V1_6,
            Generation::V1_7,
            Generation::V2_0,
            Generation::V2_3,
        ];
        for (output, versions) in cases {
            let read = all.map(|generation| parse_answer(output, generation).map(|a| a.version));
            assert_eq!(read, versions, "{}", String::from_utf8_lossy(output));
        }
    }
}
