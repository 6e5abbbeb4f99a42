//! Text of the other side, made fit to keep and to print.

/// The first `limit` bytes of `text`, cut between characters, with the full size noted.
pub(crate) fn bounded(mut text: String, limit: usize) -> String {
    if text.len() > limit {
        let bytes = text.len();
        let end = (0..=limit)
            .rev()
            .find(|&at| text.is_char_boundary(at))
            .unwrap_or(0);
        text.truncate(end);
        text.push_str(&format!("... ({bytes} bytes)"));
    }
    text
}

/// `text` with control characters escaped, so that it cannot move a terminal's cursor.
pub(crate) fn printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() {
            out.extend(c.escape_default())
        } else {
            out.push(c)
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_cut_between_characters_and_says_so() {
        assert_eq!(bounded("abc".into(), 3), "abc");
        assert_eq!(bounded("abcd".into(), 3), "abc... (4 bytes)");
        assert_eq!(bounded("aéé".into(), 2), "a... (5 bytes)");
    }

    #[test]
    fn control_characters_are_printed_as_escapes() {
        assert_eq!(printable("a\u{1b}[2J\né\u{9b}"), "a\\u{1b}[2J\\né\\u{9b}");
    }
}
