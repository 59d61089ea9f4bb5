//! A bundle that a workspace handed out: read as far as its header, and nothing of it is believed.
//!
//! Whoever wrote it may have written anything. It is read in pieces of bounded length, and what it says of
//! itself is compared with what is there: gitformat-bundle(5), gitformat-pack(5).

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read as _, Seek as _, SeekFrom};

use super::reference::CommitId;

/// The most that a header may be, in bytes.
const LONGEST_HEADER: u64 = 16 << 20;

/// The most that a line of it may be: a reference's name can be as long as a path.
const LONGEST_LINE: u64 = 8192;

/// The least that an object takes in a pack: its type, and a stream of nothing.
const SMALLEST_OBJECT: u64 = 9;

/// What a bundle says it is.
#[derive(Debug, PartialEq, Eq)]
pub struct Handed {
    /// What whoever takes it must have.
    pub prerequisites: Vec<CommitId>,
    /// Where its references lead, by their names, which are bytes.
    pub references: Vec<(Vec<u8>, CommitId)>,
    /// Objects in its pack, as that says.
    pub objects: u64,
    /// Where its pack begins.
    pub pack: u64,
}

/// Why something is no bundle.
#[derive(Debug, thiserror::Error)]
pub enum NoBundle {
    /// Its content is not as a bundle's.
    #[error("what git in the workspace made is no bundle: {0}")]
    Odd(&'static str),
    /// It cannot be read.
    #[error("cannot read a bundle")]
    Io(#[from] io::Error),
}

impl Handed {
    /// Reads the header, from the start of the file.
    ///
    /// # Errors
    /// `Odd` where it is none.
    pub fn read(file: &File) -> Result<Self, NoBundle> {
        let length = file.metadata()?.len();
        let mut file = file;
        file.seek(SeekFrom::Start(0))?;
        let mut reader = BufReader::new(file.take(LONGEST_HEADER));
        let mut at = 0;
        let mut next = || -> Result<Vec<u8>, NoBundle> {
            let mut line = Vec::new();
            let read = (&mut reader)
                .take(LONGEST_LINE)
                .read_until(b'\n', &mut line)?;
            at += read as u64;
            match line.pop() {
                Some(b'\n') => Ok(line),
                _ => Err(NoBundle::Odd("its header has no end")),
            }
        };
        let mut digits = 40;
        let mut line = match next()?.as_slice() {
            b"# v2 git bundle" => next()?,
            b"# v3 git bundle" => {
                let mut line = next()?;
                while let Some(capability) = line.strip_prefix(b"@") {
                    match capability {
                        b"object-format=sha1" => {}
                        b"object-format=sha256" => digits = 64,
                        _ => return Err(NoBundle::Odd("it asks for what is not known")),
                    }
                    line = next()?;
                }
                line
            }
            _ => return Err(NoBundle::Odd("it does not begin as one")),
        };
        let mut prerequisites = Vec::new();
        let mut references = Vec::new();
        while !line.is_empty() {
            match line.strip_prefix(b"-") {
                Some(_) if !references.is_empty() => {
                    return Err(NoBundle::Odd("its header is out of order"));
                }
                // What follows the id is a comment.
                Some(needed) => prerequisites.push(id(needed, digits)?.0),
                None => {
                    let (id, name) = id(&line, digits)?;
                    if name.is_empty() || name.iter().any(u8::is_ascii_control) {
                        return Err(NoBundle::Odd("a reference in it has an odd name"));
                    }
                    references.push((name.to_owned(), id));
                }
            }
            line = next()?;
        }
        if references.is_empty() {
            return Err(NoBundle::Odd("it has no reference"));
        }
        let objects = read_pack_header(&mut reader)?;
        let trailer = digits as u64 / 2;
        let room = length.saturating_sub(at + PACK_HEADER as u64 + trailer);
        if objects > room / SMALLEST_OBJECT {
            return Err(NoBundle::Odd("it claims more objects than fit into it"));
        }
        Ok(Self {
            prerequisites,
            references,
            objects,
            pack: at,
        })
    }
}

const PACK_HEADER: usize = 12;

fn read_pack_header(reader: &mut impl io::Read) -> Result<u64, NoBundle> {
    let mut header = [0; PACK_HEADER];
    reader
        .read_exact(&mut header)
        .map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => NoBundle::Odd("it has no pack"),
            _ => error.into(),
        })?;
    let [b'P', b'A', b'C', b'K', 0, 0, 0, 2 | 3, count @ ..] = header else {
        return Err(NoBundle::Odd("it has no pack"));
    };
    Ok(u32::from_be_bytes(count).into())
}

/// An id of so many digits, and what follows it and a space.
fn id(line: &[u8], digits: usize) -> Result<(CommitId, &[u8]), NoBundle> {
    let odd = || NoBundle::Odd("its header has a line without an id");
    let (id, rest) = line.split_at_checked(digits).ok_or_else(odd)?;
    let id = str::from_utf8(id).ok().and_then(|id| id.parse().ok());
    let rest = match rest {
        [] => rest,
        [b' ', rest @ ..] => rest,
        _ => return Err(odd()),
    };
    Ok((id.ok_or_else(odd)?, rest))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    const ID: &str = "0123456789abcdef0123456789abcdef01234567";

    fn read(content: &[u8]) -> Result<Handed, String> {
        let mut file = tempfile::tempfile().expect("a file");
        file.write_all(content).expect("it is written");
        Handed::read(&file).map_err(|error| error.to_string())
    }

    fn bundle(header: &str, count: u32) -> Vec<u8> {
        let mut content = header.as_bytes().to_vec();
        content.extend(b"PACK\0\0\0\x02");
        content.extend(count.to_be_bytes());
        content.extend([0; 20 + 18]);
        content
    }

    #[test]
    fn a_header_is_read_and_its_pack_found() {
        let header = format!("# v2 git bundle\n-{ID} a comment\n{ID} refs/heads/main\n\n");
        let handed = read(&bundle(&header, 2)).expect("a bundle");
        let id: CommitId = ID.parse().expect("an id");
        assert_eq!(
            handed,
            Handed {
                prerequisites: vec![id.clone()],
                references: vec![(b"refs/heads/main".to_vec(), id)],
                objects: 2,
                pack: header.len() as u64,
            }
        );
        let long = "ab".repeat(32);
        let header = format!("# v3 git bundle\n@object-format=sha256\n{long} HEAD\n\n");
        assert!(read(&bundle(&header, 0)).is_ok());
    }

    #[test]
    fn what_is_no_bundle_or_claims_too_much_is_refused() {
        let good = format!("# v2 git bundle\n{ID} refs/heads/main\n\n");
        assert!(read(&bundle(&good, 2)).is_ok());
        for (header, count) in [
            (String::new(), 0),
            ("# v9 git bundle\n\n".to_owned(), 0),
            ("# v2 git bundle\n\n".to_owned(), 0),
            (good.replace(ID, "main"), 1),
            (good.replace(ID, &ID[1..]), 1),
            (good.replace("refs/heads/main", "refs/heads/\x1b[2J"), 1),
            (good.replace(" refs/heads/main", ""), 1),
            (good.replace("\n\n", &format!("\n-{ID}\n\n")), 1),
            (
                good.replace("v2", "v3")
                    .replace("bundle\n", "bundle\n@filter=blob:none\n"),
                1,
            ),
            (good.replace("main", &"m".repeat(10_000)), 1),
            (good.clone(), 3),
            (good.clone(), u32::MAX),
        ] {
            assert!(read(&bundle(&header, count)).is_err(), "{header:?} {count}");
        }
        for content in [
            good.clone().into_bytes(),
            vec![b'#'; 100_000],
            vec![b'\n'; 10],
        ] {
            assert!(read(&content).is_err());
        }
        let endless = format!("# v2 git bundle\n{}", format!("{ID} x\n").repeat(500_000));
        assert!(read(endless.as_bytes()).is_err());
    }
}
