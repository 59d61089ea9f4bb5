//! Why large files cannot be had. Each names the repository, and what would be right.

/// The large files of a repository cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum LfsError {
    /// There is no server of large files where one should be.
    #[error(
        "{url} has large files, and no server of them at {endpoint} (404); an .lfsconfig may name another, \
         which lfs_urls must allow"
    )]
    NoServer {
        /// The repository.
        url: String,
        /// Where it was looked for.
        endpoint: String,
    },
    /// The server of large files wants other credentials, or some.
    #[error(
        "the server of large files {endpoint} of {url} refused the credentials, or asks for some; those of the \
         repository are for its own host alone"
    )]
    Refused {
        /// The repository.
        url: String,
        /// What was asked.
        endpoint: String,
    },
    /// The server does not have the content of a file.
    #[error("{url} has no content for {path:?}: the large file {oid} is not to be had: {detail}")]
    Missing {
        /// The repository.
        url: String,
        /// The file, below the repository's root.
        path: String,
        /// The SHA-256 of its content.
        oid: String,
        /// What the server said.
        detail: String,
    },
    /// What came is not the content of the file.
    #[error("what {url} has for {path:?} is not the large file {oid}: {detail}")]
    Wrong {
        /// The repository.
        url: String,
        /// The file, below the repository's root.
        path: String,
        /// The SHA-256 that its content should have.
        oid: String,
        /// What is wrong with it.
        detail: String,
    },
    /// There is no room for it.
    #[error(
        "no room for the large files of {url}: {path:?} and others have {size} bytes, and {room} may be written; \
         free some, or lower --min-free"
    )]
    TooLarge {
        /// The repository.
        url: String,
        /// The first file.
        path: String,
        /// Bytes of all that is to come.
        size: u64,
        /// Bytes that may be written.
        room: u64,
    },
    /// Something would lead to a place that the config does not allow.
    #[error(
        "{what} of {url} leads to {target}, which is not allowed; lfs_urls names what is beside its own host"
    )]
    NotAllowed {
        /// The repository.
        url: String,
        /// What leads there.
        what: &'static str,
        /// The place.
        target: String,
    },
    /// The server said what cannot be understood.
    #[error("the server of large files {endpoint} of {url} answered what cannot be used: {detail}")]
    Odd {
        /// The repository.
        url: String,
        /// What was asked.
        endpoint: String,
        /// What is wrong.
        detail: String,
    },
}
