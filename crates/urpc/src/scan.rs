//! Finds the end of one JSON object in a stream, within bounds and without building anything.
//!
//! The wire has no length header, so the only way to know where a message ends is to read it. The
//! scanner knows strings, escapes and brackets and nothing else; the parser that runs afterwards
//! sees a slice whose size, depth and number of values are bounded.

use crate::Malformed;

/// Bounds of one message, checked before it is parsed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes, white space in front of the object included.
    pub bytes: usize,
    /// Nested objects and arrays, the message itself included; at most 64.
    pub depth: u32,
    /// Objects, arrays, and their members: what a parser allocates for.
    pub values: usize,
}

impl Limits {
    /// For requests: 1 MiB, 64 levels, 64 Ki values.
    pub const REQUEST: Self = Self {
        bytes: 1 << 20,
        depth: MAX_DEPTH,
        values: 1 << 16,
    };
    /// For replies: 16 MiB, 64 levels, 1 Mi values.
    pub const REPLY: Self = Self {
        bytes: 16 << 20,
        depth: MAX_DEPTH,
        values: 1 << 20,
    };
}

/// One bit of a `u64` per open bracket; below serde_json's own limit of 128.
const MAX_DEPTH: u32 = u64::BITS;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Only white space so far.
    Start,
    /// Inside the object, outside strings.
    Between,
    String,
    /// After a backslash in a string.
    Escape,
}

/// The state of a scan; copied to look ahead without consuming.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scanner {
    limits: Limits,
    state: State,
    bytes: usize,
    values: usize,
    depth: u32,
    /// The open brackets, innermost in the lowest bit: 1 for `{`, 0 for `[`.
    open: u64,
}

impl Scanner {
    pub(crate) fn new(limits: Limits) -> Self {
        let limits = Limits {
            depth: limits.depth.min(MAX_DEPTH),
            ..limits
        };
        Self {
            limits,
            state: State::Start,
            bytes: 0,
            values: 0,
            depth: 0,
            open: 0,
        }
    }

    /// True from the first byte that is not white space on.
    pub(crate) fn started(&self) -> bool {
        self.state != State::Start
    }

    /// Scans on; returns how many of `bytes` belong to the object if it ends among them.
    pub(crate) fn scan(&mut self, bytes: &[u8]) -> Result<Option<usize>, Malformed> {
        let room = self.limits.bytes - self.bytes;
        let before = self.bytes;
        let mut rest = &bytes[..bytes.len().min(room)];
        while let Some((&byte, behind)) = rest.split_first() {
            self.bytes += 1;
            if self.step(byte)? {
                return Ok(Some(self.bytes - before));
            }
            // Most bytes are text: skipped here, more than twice as fast.
            let plain = if self.state == State::String {
                plain(behind)
            } else {
                0
            };
            self.bytes += plain;
            rest = &behind[plain..];
        }
        if bytes.len() > room {
            return Err(Malformed::TooLarge {
                limit: self.limits.bytes,
            });
        }
        Ok(None)
    }

    /// Takes one byte; true if it ends the object.
    fn step(&mut self, byte: u8) -> Result<bool, Malformed> {
        match (self.state, byte) {
            (State::Start, b' ' | b'\t' | b'\r' | b'\n') => {}
            (State::Start, b'{') => {
                self.state = State::Between;
                self.open(byte)?;
            }
            (State::Start, _) => return Err(self.syntax()),
            (State::Between, b'{' | b'[') => self.open(byte)?,
            (State::Between, b'}' | b']') => return self.close(byte),
            (State::Between, b',') => self.count()?,
            (State::Between, b'"') => self.state = State::String,
            (State::String, b'"') => self.state = State::Between,
            (State::String, b'\\') => self.state = State::Escape,
            (State::Escape, _) => self.state = State::String,
            (State::Between | State::String, _) => {}
        }
        Ok(false)
    }

    fn open(&mut self, bracket: u8) -> Result<(), Malformed> {
        if self.depth == self.limits.depth {
            return Err(Malformed::TooDeep {
                limit: self.limits.depth,
            });
        }
        self.depth += 1;
        self.open = self.open << 1 | u64::from(bracket == b'{');
        self.count()
    }

    fn close(&mut self, bracket: u8) -> Result<bool, Malformed> {
        if self.open & 1 != u64::from(bracket == b'}') {
            return Err(self.syntax());
        }
        self.open >>= 1;
        self.depth -= 1;
        Ok(self.depth == 0)
    }

    fn count(&mut self) -> Result<(), Malformed> {
        self.values += 1;
        if self.values > self.limits.values {
            return Err(Malformed::TooManyValues {
                limit: self.limits.values,
            });
        }
        Ok(())
    }

    fn syntax(&self) -> Malformed {
        Malformed::Syntax { at: self.bytes }
    }
}

/// How many bytes at the start of `text` neither end a string nor escape the next byte.
fn plain(text: &[u8]) -> usize {
    text.iter()
        .position(|&byte| byte == b'"' || byte == b'\\')
        .unwrap_or(text.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(text: &str) -> Result<Option<usize>, Malformed> {
        Scanner::new(Limits {
            bytes: 64,
            depth: 4,
            values: 6,
        })
        .scan(text.as_bytes())
    }

    #[test]
    fn the_end_of_an_object_is_found_behind_strings_escapes_and_white_space() {
        let cases: &[(&str, Option<usize>)] = &[
            ("{}", Some(2)),
            ("{}{}", Some(2)),
            (" \r\n\t{}\n", Some(6)),
            (r#"{"a":"}"}x"#, Some(9)),
            (r#"{"a":"\"}"}x"#, Some(11)),
            (r#"{"a":"\\"}x"#, Some(10)),
            (r#"{"a":[{"b":[]}]}"#, Some(16)),
            ("", None),
            (" ", None),
            ("{", None),
            (r#"{"a":"}"#, None),
            (r#"{"a":"\"}"#, None),
        ];
        for (text, want) in cases {
            assert_eq!(end(text).unwrap(), *want, "{text}");
        }
    }

    #[test]
    fn the_first_byte_that_cannot_belong_to_an_object_is_refused() {
        for (text, want) in [
            ("x", 1),
            ("[]", 1),
            ("  null", 3),
            ("{]", 2),
            ("{[}", 3),
            ("\0", 1),
        ] {
            assert!(
                matches!(end(text), Err(Malformed::Syntax { at }) if at == want),
                "{text}: {:?}",
                end(text)
            );
        }
    }

    #[test]
    fn bounds_hold_exactly() {
        assert_eq!(end(r#"{"a":[[[]]]}"#).unwrap(), Some(12));
        assert!(matches!(
            end(r#"{"a":[[[["#),
            Err(Malformed::TooDeep { limit: 4 })
        ));
        assert_eq!(end("{[1,2,3,4]}").unwrap(), Some(11));
        assert!(matches!(
            end("{[1,2,3,4,5,6]}"),
            Err(Malformed::TooManyValues { limit: 6 })
        ));
        let full = format!("{{\"{}\"}}", "x".repeat(60));
        assert_eq!(end(&full).unwrap(), Some(64));
        let over = format!("{{\"{}\"}}", "x".repeat(61));
        assert!(matches!(end(&over), Err(Malformed::TooLarge { limit: 64 })));
        assert!(matches!(
            end(&" ".repeat(65)),
            Err(Malformed::TooLarge { limit: 64 })
        ));
    }

    #[test]
    fn a_depth_above_64_is_clamped_and_64_levels_fit() {
        let limits = Limits {
            bytes: 1024,
            depth: 1000,
            values: 1024,
        };
        let nested = |n: usize| format!("{{{}{}}}", "[".repeat(n - 1), "]".repeat(n - 1));
        assert_eq!(
            Scanner::new(limits).scan(nested(64).as_bytes()).unwrap(),
            Some(128)
        );
        assert!(Scanner::new(limits).scan(nested(65).as_bytes()).is_err());
    }

    #[test]
    fn a_scan_may_be_cut_at_any_byte() {
        let text = r#" {"a":["\\\"]}",{"b":1}]}tail"#;
        let want = end(text).unwrap().unwrap();
        for cut in 0..want {
            let mut scanner = Scanner::new(Limits::REQUEST);
            assert_eq!(scanner.scan(&text.as_bytes()[..cut]).unwrap(), None);
            let rest = scanner.scan(&text.as_bytes()[cut..]).unwrap();
            assert_eq!(rest, Some(want - cut));
        }
    }
}
