//! The bearer token: read once from a file that only its owner can read, kept as a digest.
//!
//! In the provider the token's text is gone after [`Token::from_file`], so no log, error or core dump
//! of a later moment can show it.

use std::fmt;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

/// Longest token file, in bytes; a request's header has no room for more.
const MAX_FILE: u64 = 4096;

/// What a request must carry as `Authorization: Bearer …`.
#[derive(Clone)]
pub struct Token {
    digest: [u8; 32],
}

/// Why a token file is not accepted.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// It cannot be read.
    #[error("cannot read the token file {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// It is not what a token file must be.
    #[error("cannot use the token file {path}: {reason}")]
    Unfit {
        /// The file.
        path: PathBuf,
        /// What is wrong and what to do.
        reason: &'static str,
    },
}

impl Token {
    /// Reads the token in `path`; a newline at its end does not count.
    ///
    /// # Errors
    ///
    /// [`TokenError::Unfit`] for a file that is not regular, that others can read or write, that
    /// belongs to neither the provider's user nor root, or whose token has less than 128 bits or
    /// cannot be sent in a header (RFC 6750, section 2.1).
    pub fn from_file(path: &Path) -> Result<Self, TokenError> {
        Ok(Self {
            digest: Sha256::digest(read_token(path)?).into(),
        })
    }

    /// Whether `presented` is this token, in a time that does not depend on the token.
    pub(super) fn matches(&self, presented: &[u8]) -> bool {
        // Digests are of one length, so not even the token's length can be measured.
        let presented: [u8; 32] = Sha256::digest(presented).into();
        self.digest.ct_eq(&presented).into()
    }
}

/// Reads the token in `path` as a client shows it.
///
/// # Errors
///
/// As [`Token::from_file`].
pub fn read_token(path: &Path) -> Result<String, TokenError> {
    let read = |source| TokenError::Read {
        path: path.to_owned(),
        source,
    };
    let unfit = |reason| TokenError::Unfit {
        path: path.to_owned(),
        reason,
    };
    // Opened first and looked at afterwards, so that what is checked is what is read. Without
    // O_NONBLOCK a FIFO would hold the start for ever.
    let file = std::fs::OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
        .map_err(read)?;
    let found = file.metadata().map_err(read)?;
    if !found.is_file() {
        return Err(unfit("it is not a regular file"));
    }
    if found.mode() & 0o077 != 0 {
        return Err(unfit("other users can use it; make it mode 0600"));
    }
    if ![0, rustix::process::geteuid().as_raw()].contains(&found.uid()) {
        return Err(unfit(
            "it belongs to neither the user that derrick runs as nor root",
        ));
    }
    let mut text = String::new();
    file.take(MAX_FILE + 1)
        .read_to_string(&mut text)
        .map_err(read)?;
    text.truncate(text.trim_end_matches(['\r', '\n']).len());
    check(&text).map_err(unfit)?;
    Ok(text)
}

/// Why `text` is no token.
fn check(text: &str) -> Result<(), &'static str> {
    let bytes = text.as_bytes();
    let sendable = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~+/=".contains(byte);
    if bytes.len() as u64 > MAX_FILE {
        return Err("the token is longer than 4096 characters");
    }
    if !bytes.iter().all(sendable) {
        return Err("the token may have letters, digits and -._~+/= only, on one line");
    }
    // 128 bits are 32 hexadecimal or 22 base64 digits.
    let hexadecimal = bytes.iter().all(u8::is_ascii_hexdigit);
    if bytes.len() < if hexadecimal { 32 } else { 22 } {
        return Err("the token has less than 128 bits; make one with 'openssl rand -hex 32'");
    }
    // 32 random hexadecimal digits have fewer than 6 different ones once in about 10^12 tokens.
    let mut different = bytes.to_vec();
    different.sort_unstable();
    different.dedup();
    if different.len() < 6 {
        return Err("the token is not random; make one with 'openssl rand -hex 32'");
    }
    Ok(())
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const GOOD: &str = "0123456789abcdef0123456789abcdef";

    fn file(text: &str, mode: u32) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        std::fs::set_permissions(file.path(), PermissionsExt::from_mode(mode)).unwrap();
        file
    }

    #[test]
    fn a_token_matches_itself_and_nothing_else() {
        let token = Token::from_file(file(&format!("{GOOD}\n"), 0o600).path()).unwrap();
        assert!(token.matches(GOOD.as_bytes()));
        for other in [
            "",
            "0",
            &GOOD[1..],
            &format!("{GOOD}0"),
            &format!("{GOOD}\n"),
        ] {
            assert!(!token.matches(other.as_bytes()), "{other:?}");
        }
        assert_eq!(format!("{token:?}"), "Token(…)");
    }

    #[test]
    fn a_file_that_others_can_read_is_refused() {
        for mode in [0o640, 0o604, 0o660, 0o602, 0o644] {
            let error = Token::from_file(file(GOOD, mode).path()).unwrap_err();
            assert!(error.to_string().contains("mode 0600"), "{mode:o}: {error}");
        }
        Token::from_file(file(GOOD, 0o400).path()).unwrap();
    }

    #[test]
    fn what_is_no_file_of_a_token_is_refused_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let error = Token::from_file(dir.path()).unwrap_err();
        assert!(error.to_string().contains("not a regular file"), "{error}");
        let fifo = dir.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRUSR).unwrap();
        let error = Token::from_file(&fifo).unwrap_err();
        assert!(error.to_string().contains("not a regular file"), "{error}");
        let error = Token::from_file(&dir.path().join("none")).unwrap_err();
        assert!(matches!(error, TokenError::Read { .. }), "{error}");
    }

    #[test]
    fn a_weak_token_is_refused() {
        for (text, why) in [
            ("", "128 bits"),
            ("0123456789abcdef0123456789abcde", "128 bits"),
            ("Zm9vYmFyZm9vYmFyZm9vY", "128 bits"),
            ("aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "not random"),
            ("two words that are long enough", "one line"),
            ("0123456789abcdef\n0123456789abcdef", "one line"),
        ] {
            let error = Token::from_file(file(text, 0o600).path()).unwrap_err();
            assert!(error.to_string().contains(why), "{text:?}: {error}");
        }
        let error = Token::from_file(file(&GOOD.repeat(200), 0o600).path()).unwrap_err();
        assert!(error.to_string().contains("4096"), "{error}");
    }
}
