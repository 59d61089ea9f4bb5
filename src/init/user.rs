//! Whom a command runs as: looked up inside, by the forked process that becomes it.
//!
//! `/etc/passwd` and `/etc/group` are the workspace's own and may be anything: a pipe that nobody
//! writes to, a directory, a gigabyte, a number that wraps round to 0. So they are opened as any
//! file of the workspace, read to a bound, and taken by the letter. There is no name service:
//! nothing of the workspace's is loaded or run to find a user.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;

use rustix::io::Errno;
use rustix::thread::{Gid, Uid, set_thread_groups, set_thread_res_gid, set_thread_res_uid};

use super::files::open_for_reading;
use super::protocol::{Attempt, Refusal};

/// Bytes of `/etc/passwd` or `/etc/group`, at most.
const LARGEST_TABLE: u64 = 1 << 20;
/// Bytes of a line of theirs, at most; longer ones are passed over.
const LONGEST_LINE: usize = 16 * 1024;
/// Bytes of a name, at most.
const LONGEST_NAME: usize = 255;
/// Ids there are in a sandbox, at most.
const IDS: u32 = 65_536;

/// A user of the workspace, and what goes with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    uid: u32,
    gid: u32,
    /// All groups, `gid` among them.
    groups: BTreeSet<u32>,
    name: String,
    home: String,
}

/// Checks that `text` may be the name or the number of a user.
///
/// # Errors
/// What is wrong, and what would be right.
pub fn check(text: &str) -> Result<(), &'static str> {
    let odd = |c: char| c.is_control() || c.is_whitespace() || c == ':' || c == '/';
    if text.is_empty() || text.len() > LONGEST_NAME {
        Err("must be the name or the number of a user, of at most 255 bytes")
    } else if text.starts_with(['-', '+']) || text.contains(odd) {
        Err(
            "must be the name or the number of a user: no sign before it, no ':', '/' or space in it",
        )
    } else if is_number(text.as_bytes()) && id(text.as_bytes()).is_none() {
        Err("must be below 65536, if it is a number")
    } else {
        Ok(())
    }
}

impl User {
    /// Root, whom nothing has to be looked up for.
    #[must_use]
    pub fn root() -> Self {
        Self {
            uid: 0,
            gid: 0,
            groups: BTreeSet::from([0]),
            name: "root".to_owned(),
            home: "/root".to_owned(),
        }
    }

    /// The user of that name or number; root if none is asked for.
    ///
    /// A number need not be in `/etc/passwd`: its group is then the one of the same number.
    ///
    /// # Errors
    /// `ENOENT` if there is no user of that name, `ERANGE` if its ids are no numbers below 65536;
    /// `EISDIR`, `EINVAL` and `EFBIG` for files that are no tables, and those of openat2(2).
    pub fn find(asked: Option<&str>) -> Result<Self, Refusal> {
        match asked {
            None | Some("root" | "0") => Ok(Self::root()),
            Some(asked) => {
                let found = read_table("/etc/passwd").and_then(|passwd| {
                    let group = read_table("/etc/group")?;
                    Self::find_in(asked, &passwd, &group)
                });
                found.map_err(|errno| Refusal {
                    attempt: Attempt::User(None),
                    errno: errno.raw_os_error(),
                })
            }
        }
    }

    fn find_in(asked: &str, passwd: &[u8], group: &[u8]) -> Result<Self, Errno> {
        let number = id(asked.as_bytes());
        let entry = lines(passwd).find(|fields| match number {
            Some(number) => fields.get(2).copied().and_then(id) == Some(number),
            None => fields.first() == Some(&asked.as_bytes()),
        });
        let (uid, gid, name, home) = match (entry, number) {
            (Some(fields), _) => {
                let number = |place: usize| fields.get(place).copied().and_then(id);
                let uid = number(2).ok_or(Errno::RANGE)?;
                let gid = number(3).ok_or(Errno::RANGE)?;
                let text = |place: usize| std::str::from_utf8(fields.get(place)?).ok();
                // A NUL ends what execve(2) takes.
                let name = text(0).filter(|name| !name.contains('\0'));
                (uid, gid, name.unwrap_or(asked), text(5).unwrap_or_default())
            }
            (None, Some(number)) => (number, number, asked, ""),
            (None, None) => return Err(Errno::NOENT),
        };
        let is_home = home.starts_with('/') && !home.contains('\0');
        Ok(Self {
            uid,
            gid,
            groups: groups_of(name, gid, group),
            name: name.to_owned(),
            home: if is_home { home } else { "/" }.to_owned(),
        })
    }

    /// Its uid.
    #[must_use]
    pub fn uid(&self) -> u32 {
        self.uid
    }

    /// Makes the calling process, root of its sandbox, this user in all its ids. With uid 0 go all
    /// capabilities, capabilities(7): nothing asks to keep them.
    ///
    /// # Errors
    /// `EINVAL` if the sandbox has no such id.
    pub fn become_it(&self) -> Result<(), Refusal> {
        if self.uid == 0 {
            return Ok(());
        }
        let group = Gid::from_raw(self.gid);
        let user = Uid::from_raw(self.uid);
        let groups: Vec<Gid> = self.groups.iter().copied().map(Gid::from_raw).collect();
        set_thread_groups(&groups)
            .and_then(|()| set_thread_res_gid(group, group, group))
            .and_then(|()| set_thread_res_uid(user, user, user))
            .map_err(|errno| Refusal {
                attempt: Attempt::User(Some(self.uid)),
                errno: match errno {
                    // With a single id, setgroups(2) is denied as such.
                    Errno::PERM => libc::EINVAL,
                    other => other.raw_os_error(),
                },
            })
    }

    /// What its environment has unless it is set otherwise.
    #[must_use]
    pub fn environment(&self) -> [(&str, &str); 3] {
        [
            ("HOME", &self.home),
            ("LOGNAME", &self.name),
            ("USER", &self.name),
        ]
    }
}

/// The file's content; nothing if it is not there.
fn read_table(path: &str) -> Result<Vec<u8>, Errno> {
    let file = match open_for_reading(path) {
        Ok(file) => File::from(file),
        Err(Errno::NOENT) => return Ok(Vec::new()),
        Err(errno) => return Err(errno),
    };
    let mut table = Vec::new();
    file.take(LARGEST_TABLE + 1)
        .read_to_end(&mut table)
        .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    if table.len() as u64 > LARGEST_TABLE {
        return Err(Errno::FBIG);
    }
    Ok(table)
}

/// The fields of each line, passwd(5) and group(5).
fn lines(table: &[u8]) -> impl Iterator<Item = Vec<&[u8]>> {
    table
        .split(|byte| *byte == b'\n')
        .filter(|line| line.len() <= LONGEST_LINE && !line.starts_with(b"#"))
        .map(|line| line.split(|byte| *byte == b':').collect())
}

fn groups_of(name: &str, gid: u32, group: &[u8]) -> BTreeSet<u32> {
    let listed = lines(group).filter(|fields| {
        let mut members = fields.get(3).copied().unwrap_or_default().split(is_comma);
        members.any(|member| member == name.as_bytes())
    });
    listed
        .filter_map(|fields| fields.get(2).copied().and_then(id))
        .chain([gid])
        .collect()
}

fn is_comma(byte: &u8) -> bool {
    *byte == b','
}

fn is_number(text: &[u8]) -> bool {
    !text.is_empty() && text.iter().all(u8::is_ascii_digit)
}

/// A number below 65536 in nothing but digits.
fn id(text: &[u8]) -> Option<u32> {
    let text = std::str::from_utf8(text).ok().filter(|_| is_number(text))?;
    text.parse().ok().filter(|id| *id < IDS)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &[u8] = b"root:x:0:0:root:/root:/bin/bash\n\
        # comment:x:7:7::/:\n\
        ada:x:1000:1001:Ada,,,:/home/ada:/bin/bash\n\
        overflow:x:4294967296:0::/:\n\
        minus:x:-1:0::/:\n\
        signed:x:+0:0::/:\n\
        spaced:x: 0:0::/:\n\
        largest:x:65535:65535::relative:\n\
        above:x:65536:5::/:\n\
        nogroup:x:5:none::/:\n\
        \xff:x:6:6::/h\xff:\n\
        n\0l:x:8:8::/\0:\n\
        short:x\n\
        ada:x:0:0::/root:/bin/bash\n";
    const GROUP: &[u8] =
        b"root:x:0:\nsudo:x:27:bob,ada\nadam:x:28:adam\nstaff:x:50:ada\nbad:x:65536:ada\n";

    #[test]
    fn a_user_is_found_by_name_or_number_with_its_groups_and_home() {
        for (asked, uid, groups, name, home) in [
            ("ada", 1000, vec![27, 50, 1001], "ada", "/home/ada"),
            ("1000", 1000, vec![27, 50, 1001], "ada", "/home/ada"),
            ("largest", 65535, vec![65535], "largest", "/"),
            ("4711", 4711, vec![4711], "4711", "/"),
            ("0004711", 4711, vec![4711], "0004711", "/"),
            ("6", 6, vec![6], "6", "/"),
            ("8", 8, vec![8], "8", "/"),
        ] {
            let user = User::find_in(asked, PASSWD, GROUP).expect(asked);
            let found: Vec<u32> = user.groups.iter().copied().collect();
            assert_eq!((user.uid, found), (uid, groups), "{asked}");
            assert_eq!((&*user.name, &*user.home), (name, home), "{asked}");
        }
    }

    #[test]
    fn no_number_becomes_another_one() {
        for (asked, errno) in [
            ("overflow", Errno::RANGE),
            ("minus", Errno::RANGE),
            ("signed", Errno::RANGE),
            ("spaced", Errno::RANGE),
            ("above", Errno::RANGE),
            ("nogroup", Errno::RANGE),
            ("short", Errno::RANGE),
            ("nobody", Errno::NOENT),
            ("65536", Errno::NOENT),
            ("4294967296", Errno::NOENT),
            ("# comment", Errno::NOENT),
        ] {
            let found = User::find_in(asked, PASSWD, GROUP);
            assert_eq!(found, Err(errno), "{asked}");
        }
    }

    #[test]
    fn what_cannot_be_a_user_is_refused_before_it_is_looked_up() {
        for text in ["root", "0", "65535", "a-b.c_d$", "ünï"] {
            assert_eq!(check(text), Ok(()), "{text}");
        }
        let long = "x".repeat(256);
        for text in [
            "",
            "65536",
            "99999999999999999999",
            "-1",
            "+0",
            "a:b",
            "a b",
            "a/b",
            "a\n",
            "\0",
            &long,
        ] {
            assert!(check(text).is_err(), "{text:?}");
        }
    }
}
