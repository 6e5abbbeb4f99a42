//! D-Bus messages: what systemd's calls are made of, and what comes back.
//!
//! Of the protocol (D-Bus specification, "Message Protocol") only what these calls need. What is
//! written is little-endian; what is read says its order itself.

/// The value of a unit's property.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Value {
    /// `b`
    Bool(bool),
    /// `t`
    Number(u64),
    /// `s`
    Text(String),
    /// `au`
    Numbers(Vec<u32>),
    /// `ay`
    Bytes(Vec<u8>),
}

impl Value {
    fn signature(&self) -> &'static str {
        match self {
            Self::Bool(_) => "b",
            Self::Number(_) => "t",
            Self::Text(_) => "s",
            Self::Numbers(_) => "au",
            Self::Bytes(_) => "ay",
        }
    }
}

/// The arguments of a call, or a whole message: every value at a multiple of its size.
#[derive(Debug, Default)]
pub(crate) struct Body(Vec<u8>);

impl Body {
    fn pad(&mut self, to: usize) {
        self.0.resize(self.0.len().next_multiple_of(to), 0);
    }

    fn u32(&mut self, value: u32) {
        self.pad(4);
        self.0.extend(value.to_le_bytes());
    }

    /// `b`
    pub(crate) fn bool(&mut self, value: bool) {
        self.u32(value.into());
    }

    /// `s` and `o`
    pub(crate) fn text(&mut self, text: &str) {
        self.u32(length(text.len()));
        self.0.extend(text.as_bytes());
        self.0.push(0);
    }

    /// `g`
    fn signature(&mut self, signature: &str) {
        self.0
            .push(u8::try_from(signature.len()).unwrap_or(u8::MAX));
        self.0.extend(signature.as_bytes());
        self.0.push(0);
    }

    /// An array: its length in bytes, without the padding before the first element.
    fn array(&mut self, align: usize, elements: impl FnOnce(&mut Self)) {
        self.u32(0);
        let at = self.0.len() - 4;
        self.pad(align);
        let begin = self.0.len();
        elements(self);
        let bytes = length(self.0.len() - begin).to_le_bytes();
        self.0[at..at + 4].copy_from_slice(&bytes);
    }

    /// `v`
    fn variant(&mut self, value: &Value) {
        self.signature(value.signature());
        match value {
            Value::Bool(value) => self.bool(*value),
            Value::Number(value) => {
                self.pad(8);
                self.0.extend(value.to_le_bytes());
            }
            Value::Text(text) => self.text(text),
            Value::Numbers(all) => self.array(4, |body| all.iter().for_each(|n| body.u32(*n))),
            Value::Bytes(bytes) => self.array(1, |body| body.0.extend(bytes)),
        }
    }

    /// `a(sv)`
    pub(crate) fn properties(&mut self, properties: &[(&str, Value)]) {
        self.array(8, |body| {
            for (name, value) in properties {
                body.pad(8);
                body.text(name);
                body.variant(value);
            }
        });
    }

    /// An array of structures that is empty.
    pub(crate) fn nothing(&mut self) {
        self.array(8, |_| {});
    }
}

/// Texts and arrays here are far below the protocol's 64 MiB.
fn length(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

/// A call of a method.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Method {
    pub(crate) destination: &'static str,
    pub(crate) path: &'static str,
    pub(crate) interface: &'static str,
    pub(crate) member: &'static str,
    pub(crate) signature: &'static str,
}

/// The whole message of a call.
pub(crate) fn call(method: Method, serial: u32, body: &Body) -> Vec<u8> {
    const METHOD_CALL: u8 = 1;
    let mut message = Body::default();
    message.0.extend([b'l', METHOD_CALL, 0, 1]);
    message.u32(length(body.0.len()));
    message.u32(serial);
    message.array(8, |fields| {
        let mut field = |code: u8, kind: &str, value: &str| {
            fields.pad(8);
            fields.0.push(code);
            fields.signature(kind);
            if kind == "g" {
                fields.signature(value);
            } else {
                fields.text(value);
            }
        };
        field(1, "o", method.path);
        field(2, "s", method.interface);
        field(3, "s", method.member);
        field(6, "s", method.destination);
        if !method.signature.is_empty() {
            field(8, "g", method.signature);
        }
    });
    message.pad(8);
    message.0.extend(&body.0);
    message.0
}

/// What a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Return,
    Failure,
    Signal,
    Other,
}

/// A message that came.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) kind: Kind,
    /// Serial of the call that it answers; 0: none.
    pub(crate) answers: u32,
    pub(crate) member: String,
    /// Name of the error of a [`Kind::Failure`].
    pub(crate) error: String,
    /// The texts among its arguments, in order: `s` and `o`, also inside `v`.
    pub(crate) texts: Vec<String>,
}

/// Length of the fixed part of a message, which says how long the rest is.
pub(crate) const FIXED: usize = 16;
/// Longest message that is read; systemd's own are some hundred bytes.
const MAX: usize = 1 << 20;

/// The length of a whole message by its fixed part; `None` for one that is none, or too long.
pub(crate) fn whole(fixed: &[u8; FIXED]) -> Option<usize> {
    let mut reader = Reader::new(fixed)?;
    reader.at = 4;
    let body = reader.u32()? as usize;
    reader.at = 12;
    let fields = reader.u32()? as usize;
    (body <= MAX && fields <= MAX).then(|| FIXED + fields.next_multiple_of(8) + body)
}

/// Reads a whole message; `None` for one that breaks the protocol.
pub(crate) fn parse(bytes: &[u8]) -> Option<Message> {
    let mut reader = Reader::new(bytes)?;
    let kind = match bytes.get(1)? {
        2 => Kind::Return,
        3 => Kind::Failure,
        4 => Kind::Signal,
        _ => Kind::Other,
    };
    let mut message = Message {
        kind,
        answers: 0,
        member: String::new(),
        error: String::new(),
        texts: Vec::new(),
    };
    reader.at = 12;
    let end = reader.u32()? as usize + FIXED;
    let mut signature = String::new();
    while reader.at < end {
        reader.align(8);
        let code = reader.byte()?;
        let kind = reader.signature()?;
        match (code, kind.as_str()) {
            (3, "s") => message.member = reader.text()?,
            (4, "s") => message.error = reader.text()?,
            (5, "u") => message.answers = reader.u32()?,
            (8, "g") => signature = reader.signature()?,
            (_, "s" | "o") => drop(reader.text()?),
            (_, "g") => drop(reader.signature()?),
            (_, "u") => drop(reader.u32()?),
            _ => return None,
        }
    }
    reader.at = end.next_multiple_of(8);
    reader.texts(&signature, &mut message.texts)?;
    Some(message)
}

/// Reads values one after the other.
struct Reader<'b> {
    bytes: &'b [u8],
    at: usize,
    big_endian: bool,
}

impl<'b> Reader<'b> {
    fn new(bytes: &'b [u8]) -> Option<Self> {
        let big_endian = match bytes.first()? {
            b'l' => false,
            b'B' => true,
            _ => return None,
        };
        Some(Self {
            bytes,
            at: 0,
            big_endian,
        })
    }

    fn align(&mut self, to: usize) {
        self.at = self.at.next_multiple_of(to);
    }

    fn take(&mut self, length: usize) -> Option<&'b [u8]> {
        let end = self.at.checked_add(length)?;
        let taken = self.bytes.get(self.at..end)?;
        self.at = end;
        Some(taken)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1).map(|byte| byte[0])
    }

    fn u32(&mut self) -> Option<u32> {
        self.align(4);
        let bytes = self.take(4)?.try_into().ok()?;
        Some(if self.big_endian {
            u32::from_be_bytes(bytes)
        } else {
            u32::from_le_bytes(bytes)
        })
    }

    fn text(&mut self) -> Option<String> {
        let length = self.u32()? as usize;
        let text = self.take(length)?;
        self.byte()?;
        Some(String::from_utf8_lossy(text).into_owned())
    }

    fn signature(&mut self) -> Option<String> {
        let length = self.byte()?.into();
        let text = self.take(length)?;
        self.byte()?;
        Some(String::from_utf8_lossy(text).into_owned())
    }

    /// Collects the texts up to the first argument that is neither a text nor a number.
    fn texts(&mut self, signature: &str, texts: &mut Vec<String>) -> Option<()> {
        for kind in signature.chars() {
            match kind {
                's' | 'o' => texts.push(self.text()?),
                'u' | 'i' | 'b' => drop(self.u32()?),
                'v' => {
                    let inside = self.signature()?;
                    if !matches!(inside.as_str(), "s" | "o" | "u" | "i" | "b") {
                        return Some(());
                    }
                    self.texts(&inside, texts)?;
                }
                _ => return Some(()),
            }
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const METHOD: Method = Method {
        destination: "d.e",
        path: "/p",
        interface: "i.f",
        member: "Do",
        signature: "ssa(sv)a(sa(sv))",
    };

    #[test]
    fn a_call_is_laid_out_as_the_specification_says() {
        let mut body = Body::default();
        body.text("ab");
        body.properties(&[("N", Value::Number(7))]);
        let message = call(METHOD, 5, &body);
        assert_eq!(message[..4], [b'l', 1, 0, 1]);
        let fixed = message[..FIXED].try_into().unwrap();
        assert_eq!(whole(&fixed), Some(message.len()));
        let begin = message.len() - body.0.len();
        assert_eq!(begin % 8, 0);
        #[rustfmt::skip]
        let want = [
            2, 0, 0, 0, b'a', b'b', 0, 0, // text, padded for the array's length
            24, 0, 0, 0, 0, 0, 0, 0, // 24 bytes, and the first structure at 16
            0, 0, 0, 0,
        ];
        assert_eq!(message[begin..begin + 12], want[..12]);
        assert_eq!(
            message[begin + 16..begin + 24],
            [1, 0, 0, 0, b'N', 0, 1, b't']
        );
        assert_eq!(
            message[begin + 24..],
            [0, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0]
        );
    }

    #[test]
    fn what_came_is_read_in_either_order_of_bytes() {
        let little = [
            b'l', 4, 0, 1, 17, 0, 0, 0, 9, 0, 0, 0, 16, 0, 0, 0, // fixed: 17 bytes of body
            3, 1, b's', 0, 1, 0, 0, 0, b'J', 0, 0, 0, 0, 0, 0, 0, // member "J"
        ];
        // A second field would begin at the next multiple of 8: here comes the signature.
        let mut message = little.to_vec();
        message[12] = 16 + 8;
        message.extend([8, 1, b'g', 0, 2, b'u', b's', 0]);
        message.extend([
            5, 0, 0, 0, 4, 0, 0, 0, b'd', b'o', b'n', b'e', 0, 0, 0, 0, 0,
        ]);
        let read = parse(&message).unwrap();
        assert_eq!((read.kind, read.member.as_str()), (Kind::Signal, "J"));
        assert_eq!(read.texts, ["done"]);
        for cut in 1..message.len() - 4 {
            // Cut short it is no message, and nothing is read behind its end.
            assert_eq!(parse(&message[..cut]), None, "{cut}");
        }
        let mut big = message.clone();
        big[0] = b'B';
        for at in [4, 8, 12, 20, 40, 44] {
            big[at..at + 4].reverse();
        }
        assert_eq!(parse(&big), Some(read));
    }

    #[test]
    fn a_message_that_is_too_long_or_none_is_refused_before_it_is_read() {
        let mut fixed = [0; FIXED];
        assert_eq!(whole(&fixed), None);
        fixed[0] = b'l';
        fixed[7] = 1;
        assert_eq!(whole(&fixed), None);
    }
}
