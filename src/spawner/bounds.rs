//! What a child of the spawner's may take: what it reads was written by a workspace, and may have no end.

use std::io;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Memory that one may take which tells what is there.
pub(super) const MOST_MEMORY: u64 = 1 << 30;

/// Sets a limit, as far as what is there already lets it.
pub(super) fn limit(resource: Resource, soft: u64, hard: u64) -> io::Result<()> {
    let before = getrlimit(resource).maximum;
    let least = |most: u64| Some(before.map_or(most, |before| before.min(most)));
    let limit = Rlimit {
        current: least(soft),
        maximum: least(hard),
    };
    Ok(setrlimit(resource, limit)?)
}

/// Each directory that is open on the way down holds some.
pub(super) fn allow_open_files() -> io::Result<()> {
    let most = getrlimit(Resource::Nofile).maximum;
    let limit = Rlimit {
        current: most,
        maximum: most,
    };
    Ok(setrlimit(Resource::Nofile, limit)?)
}

/// For one that tells what is there, and writes no more to a file than that.
pub(super) fn of_a_reader(largest_file: u64) -> io::Result<()> {
    allow_open_files()?;
    limit(Resource::As, MOST_MEMORY, MOST_MEMORY)?;
    limit(Resource::Fsize, largest_file, largest_file)?;
    limit(Resource::Core, 0, 0)
}
