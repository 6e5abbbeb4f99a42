//! Mutated messages through scanner and parser: never a panic, never past a bound.

use serde_json::Value;

use crate::scan::{Limits, Scanner};
use crate::{Malformed, envelope};

const LIMITS: Limits = Limits {
    bytes: 256,
    depth: 8,
    values: 32,
};
const ROUNDS: usize = 20_000;
const SEEDS: [&str; 8] = [
    r#"{"method":"containerManager.Processes","arg":"c1"}"#,
    r#"{"method":"containerManager.Signal","arg":{"CID":"c1","Signo":9,"PID":0,"Mode":0}}"#,
    r#"{"method":"debug.Stacks","arg":null} {"method":"Usage.Collect","arg":{"Full":false}}"#,
    r#"{"method":"x","arg":[[1,2.5e-3],{"a":[{"b":"\\\"}]\u00e9\ud83d\ude00"}]},true,null]}"#,
    r#"{"success":true,"err":"","result":{}}"#,
    r#"{"success":true,"err":"","result":[{"uid":0,"pid":1,"threads":[1],"cmd":"sh"}]}"#,
    r#"{"success":false,"err":"container \"x\" not found","kind":"NotFound","result":null}"#,
    "\r\n\t {\"method\":\"\u{e9}\u{1f600}\",\"arg\":-0}\n",
];
/// Bytes that mean something to the scanner or to the parser.
const TELLING: &[u8] = b"{}[]\",:\\ \n\x00\x1f\x7f\x80\xc3\xff0-e";

/// xorshift64*, seeded, so that a failure can be run again.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end.max(1) as u64).unwrap()
    }

    fn byte(&mut self) -> u8 {
        match self.below(3) {
            0 => self.next().to_le_bytes()[7],
            _ => TELLING[self.below(TELLING.len())],
        }
    }

    fn mutate(&mut self, message: &mut Vec<u8>) {
        let at = self.below(message.len());
        let len = self.below(message.len() - at.min(message.len())).min(64);
        match self.below(6) {
            0 => message.insert(at, self.byte()),
            1 if !message.is_empty() => message[at] = self.byte(),
            2 => drop(message.drain(at..at + len)),
            3 => message.truncate(at),
            4 => {
                let part = message[at..at + len].to_vec();
                let to = self.below(message.len());
                message.splice(to..to, part);
            }
            _ => {
                let other = SEEDS[self.below(SEEDS.len())].as_bytes();
                let from = self.below(other.len());
                message.splice(at..at, other[from..].iter().copied());
            }
        }
    }
}

/// Scans in pieces of random size, as a stream delivers them.
fn scan(random: &mut Random, message: &[u8]) -> Result<Option<usize>, Malformed> {
    let mut scanner = Scanner::new(LIMITS);
    let mut at = 0;
    while at < message.len() {
        let to = message.len().min(at + 1 + random.below(16));
        if let Some(end) = scanner.scan(&message[at..to])? {
            return Ok(Some(at + end));
        }
        at = to;
    }
    Ok(None)
}

fn depth(value: &Value) -> u32 {
    match value {
        Value::Array(values) => 1 + values.iter().map(depth).max().unwrap_or(0),
        Value::Object(members) => 1 + members.values().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}

fn values(value: &Value) -> usize {
    match value {
        Value::Array(all) => all.len().max(1) + all.iter().map(values).sum::<usize>(),
        Value::Object(all) => all.len().max(1) + all.values().map(values).sum::<usize>(),
        _ => 0,
    }
}

#[test]
fn mutated_messages_never_panic_and_never_pass_a_bound() {
    let mut random = Random(0x6265_726d_7572_7063);
    let (mut accepted, mut parsed) = (0, 0);
    for round in 0..ROUNDS {
        let mut message = SEEDS[random.below(SEEDS.len())].as_bytes().to_vec();
        for _ in 0..=random.below(4) {
            random.mutate(&mut message);
        }
        let end = scan(&mut random, &message);
        let mut stream = serde_json::Deserializer::from_slice(&message).into_iter::<Value>();
        let first = stream.next();
        match (&end, first) {
            // What the parser takes for an object ends where the scanner says, unless bounded.
            (Ok(end), Some(Ok(object @ Value::Object(_)))) => {
                assert_eq!(
                    *end,
                    Some(stream.byte_offset()),
                    "round {round}: {message:?}"
                );
                assert!(depth(&object) <= LIMITS.depth, "round {round}");
                assert!(values(&object) <= LIMITS.values, "round {round}");
            }
            (Err(Malformed::Syntax { .. }), Some(Ok(object))) => {
                assert!(!object.is_object(), "round {round}: {message:?}");
            }
            _ => {}
        }
        let Ok(Some(end)) = end else { continue };
        assert!(end <= LIMITS.bytes.min(message.len()), "round {round}");
        accepted += 1;
        parsed += usize::from(envelope::Request::parse(&message[..end]).is_ok());
        parsed += usize::from(envelope::result::<Value>("m", &message[..end]).is_ok());
    }
    // The mutations leave enough whole that the parsers are reached at all.
    assert!(accepted > ROUNDS / 4, "{accepted}");
    assert!(parsed > ROUNDS / 20, "{parsed}");
}
