//! Out of a workspace.
//!
//! What comes is as hostile as the code that made it. So it never decides where something is
//! written: the name of the copy is what the user typed, a directory is unpacked beside its place,
//! in a new directory that nobody else can enter, and only when all of it is there it gets its name.
//! Something that was there before is met by that name alone: no link in it is followed.

use std::fs::{self, File, Permissions};
use std::io::{self, IsTerminal, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use anyhow::bail;
use tokio_util::io::{StreamReader, SyncIoBridge};

use super::super::remote::printed;
use super::{About, Carrier, Copied, Named, blocking, name_in};
use crate::cli::client::{Here, PathInside};
use crate::client::{Entry, InsidePath, Kind, Packing};
use crate::init::unpack::{UnpackLimits, unpack_on_host};

/// What an archive of a directory may cost. Deeper trees than this can be built, but neither listed
/// nor removed by most programs.
const DEEPEST: usize = 200;

pub(super) async fn copy(
    carrier: &Carrier,
    from: &PathInside,
    to: &Here,
) -> anyhow::Result<Copied> {
    let at = carrier.resolve(from).await?;
    let entry = carrier.client.stat(&at).await?;
    let packing = match entry.kind {
        Kind::File => Packing::Bytes,
        Kind::Directory => Packing::Archive,
        _ => bail!("{from} is neither a file nor a directory"),
    };
    let umask = carrier.umask;
    match to {
        Here::Standard => {
            if io::stdout().is_terminal() {
                bail!(
                    "stdout is a terminal, which would obey what is in {from}; send it elsewhere"
                );
            }
            let bytes = fetch(carrier, &at, packing).await?;
            blocking(|| print(bytes)).await
        }
        Here::Path(path) => {
            let target = place(path, Named::of(&at.path), from, entry.kind)?;
            let bytes = fetch(carrier, &at, packing).await?;
            blocking(move || match packing {
                Packing::Bytes => land_file(bytes, &target, &entry, umask),
                Packing::Archive => land_directory(bytes, &target, &entry, umask),
            })
            .await
        }
    }
}

/// Where the copy goes: into a directory that is there, or to that very name.
fn place(path: &Path, named: Named<'_>, from: &PathInside, kind: Kind) -> anyhow::Result<PathBuf> {
    match (fs::metadata(path), kind) {
        (Ok(there), Kind::Directory) if there.is_dir() => match named {
            Named::As(name) => Ok(path.join(name)),
            // A link to a directory that the user typed is that directory.
            Named::Contents => fs::canonicalize(path).about("finding", path),
        },
        (Ok(there), _) if there.is_dir() => Ok(path.join(name_in(named, from)?)),
        (Err(error), Kind::File) if path.as_os_str().as_bytes().ends_with(b"/") => {
            Err(error).about("copying into", path)
        }
        // Whatever else is there is met when the copy is.
        _ => Ok(path.components().collect()),
    }
}

async fn fetch(
    carrier: &Carrier,
    at: &InsidePath,
    packing: Packing,
) -> anyhow::Result<impl Read + Send + 'static> {
    let download = carrier.client.download(at, packing).await?;
    if let Some(size) = download.size {
        carrier.expect(size)?;
    }
    let bytes = carrier.counted(Box::pin(futures_util::TryStreamExt::map_err(
        download.bytes,
        io::Error::other,
    )));
    Ok(SyncIoBridge::new(StreamReader::new(bytes)))
}

fn print(mut bytes: impl Read) -> anyhow::Result<Copied> {
    let mut stdout = io::stdout().lock();
    let length = printed(io::copy(&mut bytes, &mut stdout))?;
    printed(stdout.flush())?;
    Ok(Copied {
        entries: 1,
        bytes: length,
        ..Copied::default()
    })
}

/// Writes a file beside its place and puts it there whole.
fn land_file(
    mut bytes: impl Read,
    target: &Path,
    entry: &Entry,
    umask: u32,
) -> anyhow::Result<Copied> {
    let length = match fs::metadata(target) {
        Ok(there) if there.is_dir() => bail!("{target:?} is a directory"),
        // Such as /dev/null or the pipe of another command.
        Ok(there) if !there.is_file() => {
            let file = File::options().write(true).open(target);
            let mut file = file.about("opening", target)?;
            io::copy(&mut bytes, &mut file).about("writing", target)?
        }
        there => {
            // A link that the user typed stands for the file that it leads to.
            let target = match there {
                Ok(_) => &fs::canonicalize(target).about("finding", target)?,
                Err(_) => target,
            };
            let parent = parent(target);
            let mut file = tempfile::Builder::new()
                .prefix(".derrick-cp-")
                .tempfile_in(parent)
                .about("making a file in", parent)?;
            let length = io::copy(&mut bytes, &mut file).about("writing", target)?;
            let mode = Permissions::from_mode(entry.permissions() & 0o777 & !umask);
            let changed = Duration::try_from_secs_f64(entry.mtime).unwrap_or_default();
            let changed = UNIX_EPOCH.checked_add(changed).unwrap_or(UNIX_EPOCH);
            file.as_file()
                .set_permissions(mode)
                .and_then(|()| file.as_file().set_modified(changed))
                .about("setting the mode and time of", target)?;
            file.persist(target)
                .map_err(|error| error.error)
                .about("making", target)?;
            length
        }
    };
    Ok(Copied {
        entries: 1,
        bytes: length,
        ..Copied::default()
    })
}

/// Unpacks a directory beside its place and puts it there, or what is in it into the directory that
/// is there already.
fn land_directory(
    archive: impl Read,
    target: &Path,
    entry: &Entry,
    umask: u32,
) -> anyhow::Result<Copied> {
    match fs::symlink_metadata(target) {
        Ok(there) if !there.is_dir() => {
            bail!("{target:?} is in the way: it is no directory")
        }
        _ => {}
    }
    let parent = parent(target);
    let beside = tempfile::Builder::new()
        .prefix(".derrick-cp-")
        .tempdir_in(parent)
        .about("making a directory in", parent)?;
    let copy = beside.path().join("copy");
    fs::create_dir(&copy).about("making", &copy)?;
    let mode = entry.permissions() & 0o777 & !umask | 0o700;
    fs::set_permissions(&copy, Permissions::from_mode(mode)).about("setting the mode of", &copy)?;
    let limits = UnpackLimits {
        depth: DEEPEST,
        ..UnpackLimits::default()
    };
    let summary = unpack_on_host(archive, &copy, umask, &limits)?;
    match fs::symlink_metadata(target) {
        Ok(_) => merge(&copy, target)?,
        Err(_) => fs::rename(&copy, target).about("making", target)?,
    }
    Ok(Copied {
        entries: summary.entries,
        bytes: summary.bytes,
        left_out: summary.left_out,
        names_left_out: summary.names_left_out,
    })
}

/// Moves what is in one directory into another: directories into those of their name, anything else
/// in the place of what is there. No deeper than the archive was allowed to be.
fn merge(from: &Path, to: &Path) -> anyhow::Result<()> {
    for entry in fs::read_dir(from).about("listing", from)? {
        let entry = entry.about("listing", from)?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        let brings_directory = entry.file_type().about("looking at", &source)?.is_dir();
        // Of the link itself, if it is one: nothing is written through it.
        let has_directory = fs::symlink_metadata(&target).map(|there| there.is_dir());
        match (brings_directory, has_directory) {
            (true, Ok(true)) => merge(&source, &target)?,
            (false, Ok(true)) => bail!("{target:?} is in the way: it is a directory"),
            (true, Ok(false)) => bail!("{target:?} is in the way: it is no directory"),
            _ => fs::rename(&source, &target).about("making", &target)?,
        }
    }
    Ok(())
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}
