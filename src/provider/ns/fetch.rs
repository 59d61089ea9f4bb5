//! What a request to fetch means for the repositories of the config, and what it is told.

use super::super::{Error, FetchWish, Fetched};
use crate::config::Repository;
use crate::workspace::fetch::{FetchedRepository, Wanted};

/// The repositories that a fetch is to look at.
pub(super) fn wanted(repositories: &[Repository], wish: &FetchWish) -> Result<Vec<Wanted>, Error> {
    let paths = || {
        let paths = repositories
            .iter()
            .map(|one| one.path.display().to_string());
        paths.collect::<Vec<_>>().join(", ")
    };
    let chosen: Vec<&Repository> = match &wish.path {
        Some(path) => repositories
            .iter()
            .filter(|one| one.path == *path)
            .collect(),
        None => repositories.iter().collect(),
    };
    if let (Some(path), []) = (&wish.path, chosen.as_slice()) {
        return Err(Error::Invalid(format!(
            "the field path: the config has no repository at {}; it has {}",
            path.display(),
            if repositories.is_empty() {
                "none".to_owned()
            } else {
                paths()
            },
        )));
    }
    let Some(reference) = &wish.reference else {
        let configured = chosen.into_iter().map(|repository| Wanted {
            repository: repository.clone(),
            configured: true,
        });
        return Ok(configured.collect());
    };
    let [repository] = chosen[..] else {
        return Err(Error::Invalid(format!(
            "the field reference: it is of one repository, and the config has {}; name it with the field path: {}",
            repositories.len(),
            paths(),
        )));
    };
    let configured = repository.reference.as_ref() == Some(reference);
    let repository = repository.at(reference.clone());
    let repository =
        repository.map_err(|reason| Error::Invalid(format!("the field reference {reason}")))?;
    Ok(vec![Wanted {
        repository,
        configured,
    }])
}

impl From<FetchedRepository> for Fetched {
    fn from(one: FetchedRepository) -> Self {
        Self {
            url: one.url,
            path: one.path,
            reference: one.reference,
            old_commit: one.old_commit.map(String::from),
            new_commit: one.new_commit.into(),
            head: one.head.map(String::from),
            not_updated: one.not_updated,
        }
    }
}
