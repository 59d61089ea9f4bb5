//! Files of a workspace: whose sandbox, and as whom. The rest is `pool::files`.

use super::{Workspace, WorkspaceError};
use crate::init::files::protocol::{Before, Creation, FileEntry, FileRequest, Page, RawPath};
use crate::init::unpack::{Compression, Summary};
use crate::pool::files::{Content, Got};

/// What a request is about, and as whom.
#[derive(Debug, Clone)]
pub struct FileTarget {
    /// Absolute.
    pub path: RawPath,
    /// The name or number of a user of the workspace; the config's if absent.
    pub user: Option<String>,
}

impl Workspace {
    /// The absolute path of a file that was named relative to a directory, which is itself relative to
    /// the config's `workdir`.
    #[must_use]
    pub fn path_inside(&self, working_dir: Option<&str>, path: &str) -> RawPath {
        let directory = self.directory_inside(working_dir);
        let path = std::path::Path::new(&directory).join(path);
        path.into_os_string().into_encoded_bytes().into()
    }

    /// Opens a regular file, or lists a directory if a page of one is asked for.
    ///
    /// # Errors
    /// Where there is no sandbox for it; `File` where it cannot be done.
    pub async fn get_file(
        &self,
        target: FileTarget,
        page: Option<Page>,
    ) -> Result<Got, WorkspaceError> {
        let sandbox = self.sandbox().await?;
        let user = Some(self.user_inside(target.user));
        let request = FileRequest::Get(target.path, page);
        Ok(sandbox.get_file(user, request).await?)
    }

    /// Does a request that needs no more than one word back; what is there then, if something is.
    ///
    /// # Errors
    /// Where there is no sandbox for it; `File` where it cannot be done.
    pub async fn change_files(
        &self,
        user: Option<String>,
        request: FileRequest,
    ) -> Result<Option<FileEntry>, WorkspaceError> {
        let sandbox = self.sandbox().await?;
        let user = Some(self.user_inside(user));
        Ok(sandbox.change_files(user, request).await?)
    }

    /// Puts a file with this content in the place of what is there, whole or not at all; what is there
    /// then, and whether something was before.
    ///
    /// # Errors
    /// Where there is no sandbox for it; `File` where it cannot be done. Nothing is replaced then.
    pub async fn replace_file(
        &self,
        target: FileTarget,
        creation: Creation,
        content: Content,
    ) -> Result<(FileEntry, Before), WorkspaceError> {
        let sandbox = self.sandbox().await?;
        let user = Some(self.user_inside(target.user));
        let request = FileRequest::Replace(target.path, creation);
        let replacement = sandbox.replace_file(user, request).await?;
        replacement.write(content).await?;
        Ok(replacement.commit().await?)
    }

    /// A directory or a file as a tar. It ends in an error if it is not whole.
    ///
    /// # Errors
    /// Where there is no sandbox for it; `File` where it cannot be done.
    pub async fn archive_files(
        &self,
        target: FileTarget,
        compression: Compression,
    ) -> Result<Content, WorkspaceError> {
        let sandbox = self.sandbox().await?;
        let user = Some(self.user_inside(target.user));
        let request = FileRequest::Archive(target.path, compression);
        Ok(sandbox.archive_files(user, request).await?)
    }

    /// Unpacks a tar into a directory, which is made if it is not there.
    ///
    /// # Errors
    /// Where there is no sandbox for it; `File` where it cannot be done. What came before stays.
    pub async fn unpack_files(
        &self,
        target: FileTarget,
        compression: Compression,
        content: Content,
    ) -> Result<Summary, WorkspaceError> {
        let sandbox = self.sandbox().await?;
        let user = Some(self.user_inside(target.user));
        let unpacking = sandbox.unpack_files(user, target.path, compression, content);
        Ok(unpacking.await?)
    }
}
