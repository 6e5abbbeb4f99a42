//! Output for people: aligned columns.

/// Rows under a head, columns two spaces apart, no blanks at the ends of lines.
pub(crate) fn table<const N: usize>(head: [&str; N], rows: &[[String; N]]) -> String {
    let mut widths = head.map(|title| title.chars().count());
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = line(&head, &widths);
    for row in rows {
        text += &line(&row.each_ref().map(String::as_str), &widths);
    }
    text
}

fn line<const N: usize>(cells: &[&str; N], widths: &[usize; N]) -> String {
    let padded = cells.iter().zip(widths).map(|(cell, &width)| {
        let blanks = width.saturating_sub(cell.chars().count());
        format!("{cell}{}", " ".repeat(blanks))
    });
    let line = padded.collect::<Vec<_>>().join("  ");
    format!("{}\n", line.trim_end())
}

/// `5s`, `3m`, `2h14m`, `9d`: as exact as people want it.
pub(crate) fn age(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m{}s", seconds % 60),
        (0, _, _) => format!("{hours}h{}m", minutes % 60),
        _ => format!("{days}d{}h", hours % 24),
    }
}

/// `3.2M`: bytes in units of 1024.
pub(crate) fn size(bytes: u64) -> String {
    let units = [(1_u64 << 30, "G"), (1 << 20, "M"), (1 << 10, "K")];
    match units.iter().find(|(unit, _)| bytes >= *unit) {
        Some((unit, name)) => format!("{}.{}{name}", bytes / unit, bytes % unit * 10 / unit),
        None => format!("{bytes}B"),
    }
}

/// An id as long as people need it: containerd's of 64 digits are cut.
pub(crate) fn short(id: &str) -> &str {
    let long = id.len() == 64 && id.bytes().all(|b| b.is_ascii_hexdigit());
    if long { &id[..13] } else { id }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [
            ["é".to_owned(), "1".to_owned()],
            ["long name".to_owned(), String::new()],
        ];
        assert_eq!(
            table(["ID", "PID"], &rows),
            "ID         PID\né          1\nlong name\n"
        );
    }

    #[test]
    fn ages_have_two_units() {
        let cases = [
            (5, "5s"),
            (185, "3m5s"),
            (8_040, "2h14m"),
            (781_200, "9d1h"),
        ];
        for (seconds, want) in cases {
            assert_eq!(age(seconds), want);
        }
    }

    #[test]
    fn sizes_are_short() {
        let cases = [
            (12, "12B"),
            (1024, "1.0K"),
            (3 << 20, "3.0M"),
            (1_600 << 20, "1.5G"),
        ];
        for (bytes, want) in cases {
            assert_eq!(size(bytes), want);
        }
    }

    #[test]
    fn only_containerds_long_ids_are_cut() {
        assert_eq!(short(&"a".repeat(64)), "a".repeat(13));
        assert_eq!(short(&"z".repeat(64)), "z".repeat(64));
        assert_eq!(short("run-1"), "run-1");
    }
}
