//! What a request to fetch means for the repositories of the config, and what it is told.

use super::super::{Error, FetchWish, Fetched, FetchedSubmodule};
use super::repositories::meant;
use crate::base;
use crate::config::Repository;
use crate::workspace::fetch::{FetchedRepository, Wanted};

/// The repositories that a fetch is to look at.
pub(super) fn wanted(repositories: &[Repository], wish: &FetchWish) -> Result<Vec<Wanted>, Error> {
    let path = wish.path.as_deref();
    let Some(reference) = &wish.reference else {
        let chosen = match path {
            Some(path) => std::slice::from_ref(meant(repositories, Some(path))?),
            None => repositories,
        };
        let configured = chosen.iter().map(|repository| Wanted {
            repository: repository.clone(),
            configured: true,
        });
        return Ok(configured.collect());
    };
    // A reference is of one.
    let repository = meant(repositories, path)?;
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
            submodules: one.submodules.into_iter().map(Into::into).collect(),
        }
    }
}

impl From<base::FetchedSubmodule> for FetchedSubmodule {
    fn from(one: base::FetchedSubmodule) -> Self {
        Self {
            url: one.url,
            path: one.path,
            old_commit: one.old_commit.map(String::from),
            new_commit: one.new_commit.into(),
            head: one.head.map(String::from),
            not_fetched: one.not_fetched,
            not_updated: one.not_updated,
        }
    }
}
