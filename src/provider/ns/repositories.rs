//! The repository of the config that a request means.

use std::path::Path;

use crate::config::Repository;
use crate::provider::Error;

/// The one at `path`, or the config's only one where no path is given.
pub(super) fn meant<'a>(
    repositories: &'a [Repository],
    path: Option<&Path>,
) -> Result<&'a Repository, Error> {
    let found = match (path, repositories) {
        (Some(path), all) => all.iter().find(|one| one.path == path),
        (None, [only]) => Some(only),
        (None, _) => None,
    };
    found.ok_or_else(|| {
        let paths = repositories
            .iter()
            .map(|one| one.path.display().to_string());
        let paths = match repositories {
            [] => "none".to_owned(),
            _ => paths.collect::<Vec<_>>().join(", "),
        };
        Error::Invalid(format!(
            "the field path: it has to be that of a repository of the config, which has {paths}"
        ))
    })
}
