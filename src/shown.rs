//! Which characters of a text show in their place: text of others is made fit to be shown by them.

/// Whether a character shows. Control characters do not, nor what joins, parts or turns others, which can make one
/// name look like another, or put together what stood apart.
#[must_use]
pub fn is_shown(char: char) -> bool {
    let is_format = matches!(
        char,
        '\u{ad}'
            | '\u{61c}'
            | '\u{180e}'
            | '\u{200b}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}'
            | '\u{feff}'
            | '\u{fff9}'..='\u{fffb}'
            | '\u{e0000}'..='\u{e007f}'
    );
    !(char.is_control() || is_format)
}

#[cfg(test)]
mod tests {
    use super::is_shown;

    #[test]
    fn what_steers_a_terminal_or_hides_does_not_show() {
        for char in [
            '\n', '\u{1b}', '\u{9b}', '\u{ad}', '\u{202e}', '\u{2066}', '\u{feff}',
        ] {
            assert!(!is_shown(char), "{char:?}");
        }
        for char in ['a', ' ', 'ü', '\u{a0}', '漢', '🦀'] {
            assert!(is_shown(char), "{char:?}");
        }
    }
}
