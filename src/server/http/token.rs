//! The bearer tokens: read from a file that only its owner can read, kept as digests.
//!
//! A line of the file is a token, and may say whose it is and what it is good for:
//!
//! ```text
//! # comments and empty lines do not count
//! TOKEN                                    everything
//! TOKEN name=ci scope=own                  makes workspaces; sees those that a token called ci made
//! TOKEN name=agent-7 scope=ID,ID           these workspaces, and makes none
//! TOKEN name=lead scope=own,ID             both
//! ```
//!
//! The provider keeps no token's text once the file has been read, so no log or error of a later moment can
//! show it. (Memory that had it is freed and not wiped.) No error repeats what is in the file.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use sha2::{Digest, Sha256};
use subtle::{ConditionallySelectable, ConstantTimeEq};

use super::grant::{Grant, Scope};
use crate::provider::WorkspaceId;

/// Longest token file, in bytes; all tokens in it are compared with that of each request.
const MAX_FILE: u64 = 256 * 1024;

/// Longest token, in characters; a request's header has no room for many more.
const MAX_TOKEN: usize = 4096;

/// The tokens of which a request must carry one as `Authorization: Bearer …`.
pub struct Tokens {
    path: PathBuf,
    held: RwLock<Vec<Held>>,
}

struct Held {
    digest: [u8; 32],
    grant: Arc<Grant>,
}

/// What reading a token file again did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reread {
    /// Tokens that are good now.
    pub tokens: usize,
    /// Of these, how many were not before.
    pub added: usize,
    /// How many are not good any more.
    pub revoked: usize,
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
        reason: String,
    },
}

impl Tokens {
    /// Reads the tokens in `path`.
    ///
    /// # Errors
    ///
    /// [`TokenError::Unfit`] for a file that is not regular, that others can read or write, that belongs
    /// to neither the provider's user nor root, or that has no token in it, one with less than 128 bits,
    /// one that cannot be sent in a header (RFC 6750, section 2.1), one twice, or a line that says
    /// anything else of a token than its name and its scope.
    pub fn from_file(path: &Path) -> Result<Self, TokenError> {
        let held = read(path)?.into_iter().map(|line| Held {
            digest: line.digest(),
            grant: Grant::new(line.name, line.scope),
        });
        Ok(Self {
            path: path.to_owned(),
            held: RwLock::new(held.collect()),
        })
    }

    /// Reads the file again. What is being done with a token that is not in it any more, or is with
    /// another name or scope, breaks off.
    ///
    /// # Errors
    ///
    /// As [`from_file`](Self::from_file); the tokens are those from before then.
    pub fn reread(&self) -> Result<Reread, TokenError> {
        let lines = read(&self.path)?;
        let mut held = self.held.write().unwrap_or_else(PoisonError::into_inner);
        let mut before: BTreeMap<[u8; 32], Arc<Grant>> =
            held.drain(..).map(|one| (one.digest, one.grant)).collect();
        let mut added = 0;
        held.extend(lines.into_iter().map(|line| {
            let digest = line.digest();
            let is_same = |grant: &Arc<Grant>| grant.name == line.name && grant.scope == line.scope;
            let grant = match before.remove(&digest) {
                Some(grant) if is_same(&grant) => grant,
                other => {
                    before.extend(other.map(|grant| (digest, grant)));
                    added += 1;
                    Grant::new(line.name, line.scope)
                }
            };
            Held { digest, grant }
        }));
        // Nobody can come with them any more, so nothing is begun behind this.
        before.values().for_each(|grant| grant.revoke());
        Ok(Reread {
            tokens: held.len(),
            added,
            revoked: before.len(),
        })
    }

    /// What `presented` is good for, found in a time that does not depend on which of the tokens it is,
    /// nor on how much of one.
    pub(super) fn grant(&self, presented: &[u8]) -> Option<Arc<Grant>> {
        // Digests are of one length, so not even a token's length can be measured.
        let presented: [u8; 32] = Sha256::digest(presented).into();
        let held = self.held.read().unwrap_or_else(PoisonError::into_inner);
        let mut found = u64::MAX;
        for (index, one) in (0_u64..).zip(held.iter()) {
            found.conditional_assign(&index, one.digest.ct_eq(&presented));
        }
        let found = held.get(usize::try_from(found).ok()?)?;
        Some(Arc::clone(&found.grant))
    }
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tokens({})", self.path.display())
    }
}

/// Reads the first token in `path` as a client shows it.
///
/// # Errors
///
/// As [`Tokens::from_file`].
pub fn read_token(path: &Path) -> Result<String, TokenError> {
    Ok(read(path)?.swap_remove(0).token)
}

/// One token of a file.
struct Line {
    token: String,
    name: Option<String>,
    scope: Scope,
}

impl Line {
    fn digest(&self) -> [u8; 32] {
        Sha256::digest(&self.token).into()
    }
}

/// The tokens in `path`; at least one.
fn read(path: &Path) -> Result<Vec<Line>, TokenError> {
    let failed = |source| TokenError::Read {
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
        .map_err(failed)?;
    let found = file.metadata().map_err(failed)?;
    if !found.is_file() {
        return Err(unfit("it is not a regular file".to_owned()));
    }
    if found.mode() & 0o077 != 0 {
        return Err(unfit(format!(
            "its mode is {:04o}, so other users can use it; make it mode 0600 with 'chmod 600 {}'",
            found.mode() & 0o7777,
            path.display()
        )));
    }
    let own = rustix::process::geteuid().as_raw();
    if ![0, own].contains(&found.uid()) {
        return Err(unfit(format!(
            "it belongs to uid {}, which is neither the user that derrick runs as ({own}) nor root; give it to \
             that one, with 'chown {own} {}'",
            found.uid(),
            path.display()
        )));
    }
    let mut text = String::new();
    file.take(MAX_FILE + 1)
        .read_to_string(&mut text)
        .map_err(failed)?;
    if text.len() as u64 > MAX_FILE {
        return Err(unfit(format!("it is larger than {MAX_FILE} bytes")));
    }
    parse(&text).map_err(unfit)
}

fn parse(text: &str) -> Result<Vec<Line>, String> {
    let mut lines = Vec::new();
    let mut numbers = BTreeMap::new();
    for (number, text) in (1..).zip(text.lines()) {
        let text = text.trim_ascii();
        if text.is_empty() || text.starts_with('#') {
            continue;
        }
        let line = parse_line(text).map_err(|reason| format!("line {number}: {reason}"))?;
        if let Some(earlier) = numbers.insert(line.digest(), number) {
            return Err(format!(
                "line {number}: it has the same token as line {earlier}"
            ));
        }
        lines.push(line);
    }
    if lines.is_empty() {
        return Err(format!("there is no token in it; {MAKE_ONE}"));
    }
    Ok(lines)
}

fn parse_line(text: &str) -> Result<Line, String> {
    let mut words = text.split_ascii_whitespace();
    let token = words.next().unwrap_or_default();
    check(token)?;
    let (mut name, mut scope) = (None, None);
    for word in words {
        match word.split_once('=') {
            Some(("name", value)) if name.is_none() => name = Some(parse_name(value)?),
            Some(("scope", value)) if scope.is_none() => scope = Some(parse_scope(value)?),
            _ => {
                let reason = "behind the token may stand name=NAME and scope=SCOPE, once each, and nothing else";
                return Err(reason.to_owned());
            }
        }
    }
    let scope = scope.unwrap_or(Scope::Everything);
    if name.is_none() && matches!(scope, Scope::Workspaces { own: true, .. }) {
        let reason = "scope=own needs a name=NAME too: what the token makes belongs to that name";
        return Err(reason.to_owned());
    }
    Ok(Line {
        token: token.to_owned(),
        name,
        scope,
    })
}

fn parse_name(text: &str) -> Result<String, String> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    if (1..=63).contains(&text.len()) && text.bytes().all(allowed) {
        Ok(text.to_owned())
    } else {
        Err("a name has 1 to 63 letters, digits and ._-".to_owned())
    }
}

fn parse_scope(text: &str) -> Result<Scope, String> {
    if text == "all" {
        return Ok(Scope::Everything);
    }
    let (mut own, mut listed) = (false, BTreeSet::new());
    for part in text.split(',') {
        match part.parse::<WorkspaceId>() {
            _ if part == "own" => own = true,
            Ok(id) if part != "all" => drop(listed.insert(id)),
            _ => {
                return Err(
                    "a scope is all, or own and ids of workspaces with commas between them"
                        .to_owned(),
                );
            }
        }
    }
    Ok(Scope::Workspaces { own, listed })
}

const MAKE_ONE: &str = "make one with 'openssl rand -hex 32'";

/// Why `token` is none.
fn check(token: &str) -> Result<(), String> {
    let bytes = token.as_bytes();
    let sendable = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~+/=".contains(byte);
    if bytes.len() > MAX_TOKEN {
        return Err(format!("the token is longer than {MAX_TOKEN} characters"));
    }
    if !bytes.iter().all(sendable) {
        return Err("the token may have letters, digits and -._~+/= only".to_owned());
    }
    // 128 bits are 32 hexadecimal or 22 base64 digits.
    let hexadecimal = bytes.iter().all(u8::is_ascii_hexdigit);
    let enough = if hexadecimal { 32 } else { 22 };
    if bytes.len() < enough {
        return Err(format!(
            "the token has less than 128 bits, which take {enough} characters of its kind; {MAKE_ONE}"
        ));
    }
    // 32 random hexadecimal digits have fewer than 6 different ones once in about 10^12 tokens.
    let different: BTreeSet<_> = bytes.iter().collect();
    if different.len() < 6 {
        return Err(format!("the token is not random; {MAKE_ONE}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const GOOD: &str = "0123456789abcdef0123456789abcdef";
    const OTHER: &str = "fedcba9876543210fedcba9876543210";

    fn file(text: &str, mode: u32) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        std::fs::set_permissions(file.path(), PermissionsExt::from_mode(mode)).unwrap();
        file
    }

    fn refusal(text: &str, mode: u32) -> String {
        let error = Tokens::from_file(file(text, mode).path()).unwrap_err();
        let error = error.to_string();
        for word in text.split_ascii_whitespace().filter(|word| word.len() > 10) {
            assert!(!error.contains(word), "{error}");
        }
        error
    }

    #[test]
    fn a_token_matches_itself_and_nothing_else() {
        let tokens = Tokens::from_file(file(&format!("{GOOD}\n"), 0o600).path()).unwrap();
        assert!(tokens.grant(GOOD.as_bytes()).is_some());
        for other in [
            "",
            "0",
            &GOOD[1..],
            &format!("{GOOD}0"),
            &format!("{GOOD}\n"),
            OTHER,
        ] {
            assert!(tokens.grant(other.as_bytes()).is_none(), "{other:?}");
        }
        assert!(!format!("{tokens:?}").contains(&GOOD[..8]));
    }

    #[test]
    fn each_line_says_whose_a_token_is_and_what_it_is_good_for() {
        let some = |own, listed: &[&str]| Scope::Workspaces {
            own,
            listed: listed.iter().map(|id| id.parse().unwrap()).collect(),
        };
        for (rest, name, scope) in [
            ("", None, Scope::Everything),
            ("\r", None, Scope::Everything),
            (" scope=all", None, Scope::Everything),
            ("\tname=ci", Some("ci"), Scope::Everything),
            (" name=ci scope=own", Some("ci"), some(true, &[])),
            ("  scope=own  name=c.i_-7", Some("c.i_-7"), some(true, &[])),
            (" scope=a-1,b", None, some(false, &["a-1", "b"])),
            (" name=x scope=b,own", Some("x"), some(true, &["b"])),
        ] {
            let text = format!("# one\n\n  {GOOD}{rest}\n{OTHER} name=other\n");
            let tokens = Tokens::from_file(file(&text, 0o600).path()).unwrap();
            let grant = tokens.grant(GOOD.as_bytes()).unwrap();
            assert_eq!(grant.name.as_deref(), name, "{rest:?}");
            assert_eq!(grant.scope, scope, "{rest:?}");
            let other = tokens.grant(OTHER.as_bytes()).unwrap();
            assert_eq!(other.name.as_deref(), Some("other"));
            let first = read_token(file(&text, 0o600).path()).unwrap();
            assert_eq!(first, GOOD);
        }
    }

    #[test]
    fn a_line_that_says_anything_else_is_refused_without_being_repeated() {
        for (rest, why) in [
            (" a-second-word", "name=NAME and scope=SCOPE"),
            (" Name=ci", "name=NAME and scope=SCOPE"),
            (" name=ci name=ci", "once each"),
            (" scope=all scope=all", "once each"),
            (" # a remark", "nothing else"),
            (" name=", "a name has"),
            (" name=so/mebody", "a name has"),
            (" scope=", "a scope is"),
            (" scope=own,", "a scope is"),
            (" scope=all,own", "a scope is"),
            (" scope=Not_An_Id", "a scope is"),
            (" scope=own", "needs a name"),
            (" scope=a,own", "needs a name"),
        ] {
            let error = refusal(&format!("#\n{GOOD}{rest}"), 0o600);
            assert!(error.contains("line 2: "), "{rest:?}: {error}");
            assert!(error.contains(why), "{rest:?}: {error}");
        }
        let twice = refusal(&format!("{GOOD}\n{OTHER}\n{GOOD} name=b"), 0o600);
        assert!(twice.contains("line 3: it has the same token as line 1"));
        let nothing = refusal("# nothing\n\n", 0o600);
        assert!(nothing.contains("there is no token in it"), "{nothing}");
    }

    #[test]
    fn a_file_that_others_can_read_is_refused_with_its_mode_and_what_to_do() {
        for mode in [0o640, 0o604, 0o660, 0o602, 0o644] {
            let error = refusal(GOOD, mode);
            assert!(
                error.contains(&format!("its mode is {mode:04o}")),
                "{error}"
            );
            assert!(error.contains("'chmod 600 /"), "{error}");
        }
        Tokens::from_file(file(GOOD, 0o400).path()).unwrap();
    }

    #[test]
    fn what_is_no_file_of_a_token_is_refused_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let error = Tokens::from_file(dir.path()).unwrap_err();
        assert!(error.to_string().contains("not a regular file"), "{error}");
        let fifo = dir.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRUSR).unwrap();
        let error = Tokens::from_file(&fifo).unwrap_err();
        assert!(error.to_string().contains("not a regular file"), "{error}");
        let error = Tokens::from_file(&dir.path().join("none")).unwrap_err();
        assert!(matches!(error, TokenError::Read { .. }), "{error}");
        let large = "#".repeat(MAX_FILE as usize) + "\n" + GOOD;
        assert!(refusal(&large, 0o600).contains("larger than"));
    }

    #[test]
    fn a_weak_token_is_refused() {
        for (text, why) in [
            ("0123456789abcdef0123456789abcde", "128 bits"),
            ("Zm9vYmFyZm9vYmFyZm9vY", "128 bits"),
            ("aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "not random"),
            ("two words that are long enough", "128 bits"),
            ("0123456789abcdef\n0123456789abcdef", "128 bits"),
            ("0123456789:abcdef:0123456789abcdef", "letters, digits"),
        ] {
            let error = refusal(text, 0o600);
            assert!(error.contains(why), "{text:?}: {error}");
        }
        let long = refusal(&GOOD.repeat(200), 0o600);
        assert!(long.contains("4096"), "{long}");
    }

    #[test]
    fn a_file_is_read_again_and_what_is_gone_from_it_or_changed_in_it_is_revoked() {
        const THIRD: &str = "00112233445566778899aabbccddeeff";
        let file = file(&format!("{GOOD}\n{OTHER} name=a scope=own"), 0o600);
        let tokens = Tokens::from_file(file.path()).unwrap();
        let grant = |token: &str| tokens.grant(token.as_bytes());
        let (good, other) = (grant(GOOD).unwrap(), grant(OTHER).unwrap());

        // Somebody has only begun to write.
        std::fs::write(file.path(), "0123").unwrap();
        tokens.reread().unwrap_err();
        assert!(grant(GOOD).is_some() && grant(OTHER).is_some());

        let text = format!("{THIRD}\n{OTHER} name=a scope=own,w\n");
        std::fs::write(file.path(), text).unwrap();
        let done = Reread {
            tokens: 2,
            added: 2,
            revoked: 2,
        };
        assert_eq!(tokens.reread().unwrap(), done);
        assert!(grant(GOOD).is_none() && grant(THIRD).is_some());
        assert!(good.is_revoked() && other.is_revoked());
        let kept = grant(OTHER).unwrap();

        std::fs::write(file.path(), format!("{OTHER} name=a scope=w,own")).unwrap();
        let done = Reread {
            tokens: 1,
            added: 0,
            revoked: 1,
        };
        assert_eq!(tokens.reread().unwrap(), done);
        assert!(!kept.is_revoked());
    }
}
