//! Lists as people read them.

use std::time::{Duration, UNIX_EPOCH};

/// The last second that has four digits for its year.
const LAST: f64 = 253_402_300_799.0;

/// Rows in columns, each column as wide as it must be; the last one is not filled up. The texts
/// have no control characters and, but for the last column, ASCII only.
pub(super) fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let mut widths = [0; N];
    for row in rows {
        for (width, text) in widths.iter_mut().zip(row) {
            *width = text.len().max(*width);
        }
    }
    let line = |row: &[String; N]| {
        let mut line = String::new();
        for (text, &width) in row.iter().zip(&widths[..N - 1]) {
            line.push_str(&format!("{text:width$}  "));
        }
        line.push_str(&row[N - 1]);
        line
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// A moment, given in seconds since 1970, in UTC.
pub(super) fn moment(seconds: f64) -> String {
    // `clamp` keeps what is no number.
    let seconds = if seconds.is_nan() { 0.0 } else { seconds };
    let since = Duration::from_secs_f64(seconds.clamp(0.0, LAST));
    humantime::format_rfc3339_seconds(UNIX_EPOCH + since).to_string()
}

/// The beginning of a text, with a mark where it is cut.
pub(super) fn shortened(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_they_must_be() {
        let rows = [["ID", "NAME"], ["abc", "x"]].map(|row| row.map(str::to_owned));
        assert_eq!(table(&rows), "ID   NAME\nabc  x");
    }

    #[test]
    fn any_number_is_some_moment() {
        for (seconds, expected) in [
            (0.0, "1970-01-01T00:00:00Z"),
            (1_700_000_000.9, "2023-11-14T22:13:20Z"),
            (-5.0, "1970-01-01T00:00:00Z"),
            (1e300, "9999-12-31T23:59:59Z"),
            (f64::NAN, "1970-01-01T00:00:00Z"),
        ] {
            assert_eq!(moment(seconds), expected);
        }
    }

    #[test]
    fn a_long_text_is_cut_between_characters() {
        assert_eq!(shortened("ééé", 2), "éé…");
        assert_eq!(shortened("ééé", 3), "ééé");
    }
}
