//! A secret: a text that cannot be printed by accident.
//!
//! It has no `Display`, no `Serialize`, and a `Debug` that hides it: whoever wants the content
//! has to write `expose`, which is easy to find in a review.

use std::fmt;

/// An access token or a password.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Takes the content of a variable or a file: one newline at its end is not part of it.
    ///
    /// # Errors
    /// A phrase that does not contain the content, if it is not text, is empty, or
    /// has control characters, which could end the header or the line it is written into.
    pub(crate) fn from_bytes(content: Vec<u8>) -> Result<Self, &'static str> {
        let Ok(mut text) = String::from_utf8(content) else {
            return Err("is not valid UTF-8");
        };
        if text.ends_with('\n') {
            text.pop();
            if text.ends_with('\r') {
                text.pop();
            }
        }
        if text.is_empty() {
            return Err("is empty");
        }
        if text.chars().any(char::is_control) {
            return Err("contains a control character; it must be one line of text");
        }
        Ok(Self(text))
    }

    /// The content. Never to be logged, put on a command line, or brought into a sandbox.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_newline_is_trimmed_and_odd_content_refused() {
        let cases: [(&[u8], Result<&str, &str>); 8] = [
            (b"abc", Ok("abc")),
            (b"abc\n", Ok("abc")),
            (b"abc\r\n", Ok("abc")),
            (b" a b ", Ok(" a b ")),
            (b"", Err("is empty")),
            (b"\n", Err("is empty")),
            (
                b"abc\n\n",
                Err("contains a control character; it must be one line of text"),
            ),
            (b"\xff", Err("is not valid UTF-8")),
        ];
        for (content, expected) in cases {
            let found = Secret::from_bytes(content.to_vec());
            assert_eq!(found.as_ref().map(Secret::expose).map_err(|e| *e), expected);
        }
    }

    #[test]
    fn printing_a_secret_does_not_tell_it() {
        let secret = Secret::from_bytes(b"hunter2".to_vec()).unwrap();
        assert_eq!(format!("{secret:?} {:?}", Some(&secret)), "*** Some(***)");
    }
}
