//! Into a workspace.

use std::ffi::OsString;
use std::fs::{self, File, Metadata};
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::bail;
use bytes::Bytes;
use futures_util::Stream;
use tokio::io::AsyncRead;
use tokio::sync::mpsc;
use tokio_util::io::ReaderStream;

use super::{About, Carrier, Copied, Named, blocking, name_in};
use crate::cli::client::{Here, PathInside};
use crate::client::{InsidePath, Kind};

/// The mode of what comes through a pipe.
const USUAL_MODE: u32 = 0o644;
/// Size of the pieces in which a file is read, in bytes.
const PIECE: usize = 64 * 1024;
/// Pieces of an archive that wait to be sent.
const WAITING: usize = 4;
/// Names of what is left out that are remembered.
const NAMES_LEFT_OUT: usize = 8;

pub(super) async fn copy(
    carrier: &Carrier,
    from: &Here,
    to: &PathInside,
) -> anyhow::Result<Copied> {
    let at = carrier.resolve(to).await?;
    let there = match carrier.client.stat(&at).await {
        Ok(entry) => Some(entry.kind),
        Err(error) if error.is("no-such-file") => None,
        Err(error) => return Err(error.into()),
    };
    let Here::Path(path) = from else {
        if there == Some(Kind::Directory) {
            bail!("{to} is a directory; give the file a name");
        }
        return put_file(carrier, &at, USUAL_MODE, tokio::io::stdin()).await;
    };
    let found = fs::metadata(path).about("looking at", path)?;
    let named = Named::of(path.as_os_str().as_bytes());
    if found.is_dir() {
        let target = match (there, named) {
            (Some(Kind::Directory), Named::As(name)) => join(at, name.as_bytes()),
            (Some(Kind::Directory) | None, _) => at,
            (Some(_), _) => bail!("{to} is in the way: it is no directory"),
        };
        return put_directory(carrier, &target, path, &found).await;
    }
    let target = match there {
        Some(Kind::Directory) => join(at, name_in(named, &path.display())?.as_bytes()),
        None if at.path.ends_with(b"/") => bail!("there is no directory {to}"),
        _ => at,
    };
    let mode = if found.is_file() {
        carrier.expect(found.len())?;
        found.mode() & 0o7777
    } else {
        USUAL_MODE
    };
    let file = tokio::fs::File::open(path).await.about("opening", path)?;
    put_file(carrier, &target, mode, file).await
}

fn join(mut at: InsidePath, name: &[u8]) -> InsidePath {
    if !at.path.ends_with(b"/") {
        at.path.push(b'/');
    }
    at.path.extend_from_slice(name);
    at
}

async fn put_file(
    carrier: &Carrier,
    at: &InsidePath,
    mode: u32,
    file: impl AsyncRead + Send + Unpin + 'static,
) -> anyhow::Result<Copied> {
    let bytes = carrier.counted(ReaderStream::with_capacity(file, PIECE));
    carrier.client.put_file(at, mode, bytes).await?;
    Ok(Copied {
        entries: 1,
        bytes: carrier.bar.position(),
        ..Copied::default()
    })
}

async fn put_directory(
    carrier: &Carrier,
    at: &InsidePath,
    path: &Path,
    found: &Metadata,
) -> anyhow::Result<Copied> {
    // The user who unpacks it there must be able to.
    let mode = found.mode() & 0o7777 | 0o700;
    match carrier.client.make_directory(at, mode).await {
        Err(error) if error.is("exists") => {}
        made => made?,
    }
    let (sender, receiver) = mpsc::channel(WAITING);
    let path = path.to_owned();
    let packing = blocking(move || pack(&path, &sender));
    let bytes = carrier.counted(Box::pin(pieces(receiver)));
    let sending = carrier.client.put_archive(at, bytes);
    let (packed, sent) = tokio::join!(packing, sending);
    // A file that cannot be read breaks the request off: then that is the cause.
    let packed = packed?;
    let entries = sent?;
    Ok(Copied { entries, ..packed })
}

fn pieces(
    receiver: mpsc::Receiver<io::Result<Bytes>>,
) -> impl Stream<Item = io::Result<Bytes>> + Send {
    futures_util::stream::unfold(receiver, |mut receiver| async {
        let piece = receiver.recv().await?;
        Some((piece, receiver))
    })
}

/// Packs what is in the directory `root`. An error goes into `pieces` as well, so that what was sent
/// is not taken for the whole. That nobody takes the pieces any more is no error here: whoever took
/// them knows why.
fn pack(root: &Path, pieces: &mpsc::Sender<io::Result<Bytes>>) -> anyhow::Result<Copied> {
    let sink = BufWriter::with_capacity(PIECE, Pieces(pieces.clone()));
    let mut packer = Packer {
        archive: tar::Builder::new(sink),
        copied: Copied::default(),
    };
    let packed = packer.add_all(root).and_then(|()| {
        packer.archive.finish()?;
        Ok(packer.archive.get_mut().flush()?)
    });
    let incomplete = || Err(io::Error::other("the archive is not complete"));
    match packed {
        Err(error) if pieces.blocking_send(incomplete()).is_ok() => Err(error),
        _ => Ok(packer.copied),
    }
}

struct Packer {
    archive: tar::Builder<BufWriter<Pieces>>,
    copied: Copied,
}

impl Packer {
    /// Directories come before what is in them. Links are packed as links, wherever they lead.
    fn add_all(&mut self, root: &Path) -> anyhow::Result<()> {
        let mut unlisted = vec![PathBuf::new()];
        while let Some(directory) = unlisted.pop() {
            let listed = root.join(&directory);
            for entry in fs::read_dir(&listed).about("listing", &listed)? {
                let name = entry.about("listing", &listed)?.file_name();
                let relative = directory.join(&name);
                let path = root.join(&relative);
                let found = fs::symlink_metadata(&path).about("looking at", &path)?;
                if found.is_dir() {
                    unlisted.push(relative.clone());
                }
                self.add(&path, &relative, &found)?;
            }
        }
        Ok(())
    }

    fn add(&mut self, path: &Path, name: &Path, found: &Metadata) -> anyhow::Result<()> {
        let mut header = header(found);
        let added = if found.is_dir() {
            header.set_entry_type(tar::EntryType::Directory);
            self.archive.append_data(&mut header, name, io::empty())
        } else if found.is_symlink() {
            header.set_entry_type(tar::EntryType::Symlink);
            let target = fs::read_link(path).about("reading the link", path)?;
            self.archive.append_link(&mut header, name, target)
        } else if found.is_file() {
            return self.add_file(path, name);
        } else {
            self.leave_out(name);
            return Ok(());
        };
        added.about("packing", path)
    }

    fn add_file(&mut self, path: &Path, name: &Path) -> anyhow::Result<()> {
        // What is there now may be something else than a moment ago.
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
        let file = File::options().read(true).custom_flags(flags).open(path);
        let file = file.about("opening", path)?;
        let found = file.metadata().about("looking at", path)?;
        if !found.is_file() {
            bail!("{} changed while it was copied", path.display());
        }
        let mut header = header(&found);
        header.set_entry_type(tar::EntryType::Regular);
        header.set_size(found.len());
        let content = Exactly {
            left: found.len(),
            file,
        };
        self.archive
            .append_data(&mut header, name, content)
            .about("packing", path)?;
        self.copied.bytes += found.len();
        Ok(())
    }

    fn leave_out(&mut self, name: &Path) {
        self.copied.left_out += 1;
        let names = &mut self.copied.names_left_out;
        if names.len() < NAMES_LEFT_OUT {
            names.push(OsString::from(name).as_bytes().escape_ascii().to_string());
        }
    }
}

/// Mode and time. Users here are not users there, so everything belongs to root.
fn header(found: &Metadata) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_mode(found.mode() & 0o7777);
    header.set_mtime(u64::try_from(found.mtime()).unwrap_or(0));
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(0);
    header
}

/// A file as long as it was when its length was written down, whatever happens to it meanwhile.
struct Exactly {
    file: File,
    left: u64,
}

impl Read for Exactly {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX);
        let room = buffer.len().min(most);
        let read = self.file.read(&mut buffer[..room])?;
        if read == 0 && room > 0 {
            return Err(io::Error::other("it became shorter while it was copied"));
        }
        self.left -= read as u64;
        Ok(read)
    }
}

/// The way from the thread that packs to the request that sends.
struct Pieces(mpsc::Sender<io::Result<Bytes>>);

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let piece = Bytes::copy_from_slice(&bytes[..bytes.len().min(PIECE)]);
        let length = piece.len();
        self.0
            .blocking_send(Ok(piece))
            .map(|()| length)
            .map_err(|_| io::ErrorKind::BrokenPipe.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
