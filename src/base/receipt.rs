//! What a setup built on: the layer of an earlier one whose commits alone were others, or nothing.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::store::Layer;
use super::{Digest, LayerStore};

/// What is noted of a setup with its layer.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Noted {
    /// Why it began with the base.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub anew: Option<Anew>,
    /// Repositories that were checked out anew on top of an earlier setup.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub replaced: Vec<PathBuf>,
}

/// Why a setup began with the base.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Anew {
    /// There was no earlier one with the same base, repositories, script, environment and user.
    First,
    /// It has no repositories, so nothing in it moves on.
    NoRepositories,
    /// As many layers are on each other as there may be.
    TooDeep,
    /// What the last one was made of is no history of what it is to be now, and so must not be there.
    NotItsHistory,
    /// What the last one had of a submodule is no history of what it is to be now, or the submodule has not its
    /// place, its name or its URL any more.
    Submodules,
    /// A layer below the last one is missing.
    LayersMissing,
}

/// What a setup built on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = Setup)]
pub struct SetupReceipt {
    /// The layer of the setup.
    #[schema(value_type = String)]
    pub layer: Digest,
    /// When it was made, in seconds since 1970.
    pub created: u64,
    /// The earlier setup that it goes on from; null where it began with the base.
    pub reused: Option<Reused>,
    /// Why it began with the base, where that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub anew: Option<Anew>,
}

/// An earlier setup that another one goes on from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Reused {
    /// Its layer.
    #[schema(value_type = String)]
    pub layer: Digest,
    /// What became of each repository, by its path.
    #[schema(value_type = BTreeMap<String, Moved>)]
    pub commits: BTreeMap<PathBuf, Moved>,
}

/// What became of a repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Moved {
    /// The commit that was there; null where it was not there.
    pub old: Option<String>,
    /// The commit that is checked out now.
    pub new: String,
    /// How it came there.
    pub by: By,
}

/// How a repository came to its commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum By {
    /// It was there.
    Nothing,
    /// What was new was fetched into what was there.
    Fetch,
    /// It was checked out anew: git inside could not fetch, or there is none.
    Checkout,
}

/// What the setup built on that made this layer; none where none did.
pub(super) fn receipt(store: &LayerStore, layer: &Layer) -> Option<SetupReceipt> {
    let meta = layer.meta();
    meta.lineage.as_ref()?;
    let noted = meta.setup.clone().unwrap_or_default();
    let reused = meta.parent.as_ref().map(|parent| {
        let before: BTreeMap<PathBuf, String> = store
            .get(parent)
            .map(|parent| parent.meta().commits.iter().cloned().collect())
            .unwrap_or_default();
        let moved = |(path, new): &(PathBuf, String)| {
            let old = before.get(path).cloned();
            let by = match &old {
                Some(old) if old == new => By::Nothing,
                Some(_) if !noted.replaced.contains(path) => By::Fetch,
                _ => By::Checkout,
            };
            let new = new.clone();
            (path.clone(), Moved { old, new, by })
        };
        Reused {
            layer: parent.clone(),
            commits: meta.commits.iter().map(moved).collect(),
        }
    });
    Some(SetupReceipt {
        layer: layer.digest().clone(),
        created: meta.created,
        anew: if reused.is_some() { None } else { noted.anew },
        reused,
    })
}
