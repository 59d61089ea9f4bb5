//! Layers on their way out as an archive: the spawner's child writes it, whoever wants it reads it here.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt, stream};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::net::unix::pipe;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

use super::files::{CHUNK, CLIENT, Content, WAITING, pipe_pair};
use super::{Spawner, SpawnerError};
use crate::spawner::protocol::Export;

/// Why there is no archive.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// Something is in the layers that the format has no form for.
    #[error("{0}")]
    Impossible(String),
    /// The spawner failed.
    #[error(transparent)]
    Spawner(#[from] SpawnerError),
    /// The client took nothing for so long.
    #[error("nothing of the archive was taken for {0:?}")]
    Slow(Duration),
    /// This host failed.
    #[error("{0}")]
    Host(&'static str, #[source] io::Error),
}

impl Spawner {
    /// The archive of layers. It ends in an error if it is not whole. `kept` is dropped at its end.
    ///
    /// # Errors
    /// See [`ExportError`].
    pub async fn archive_of(
        &self,
        export: Export,
        kept: impl Send + 'static,
    ) -> Result<Content, ExportError> {
        let pair = || pipe_pair().map_err(|error| failed("making a pipe")(io::Error::other(error)));
        let (tar, to_tar) = pair()?;
        let (said, to_said) = pair()?;
        let spawner = self.clone();
        let writing = tokio::spawn(async move { spawner.export(export, [to_tar, to_said]).await });
        // A child that nobody reads from any more ends by itself.
        let mut writing = AbortOnDropHandle::new(writing);
        let mut line = String::new();
        let mut said = BufReader::new(reader(said)?);
        said.read_line(&mut line)
            .await
            .map_err(failed("reading a pipe"))?;
        match line.strip_suffix('\n') {
            Some("") => {}
            Some(why) => return Err(ExportError::Impossible(why.to_owned())),
            None => {
                ended(&mut writing).await?;
                let silent = io::Error::other("it said nothing");
                return Err(failed("writing an archive")(silent));
            }
        }
        let (sender, receiver) = mpsc::channel(WAITING);
        let tar = reader(tar)?;
        let carrying = tokio::spawn(async move {
            let _kept = kept;
            if let Err(error) = carry(tar, &sender, &mut writing).await {
                tracing::info!(%error, "an archive is broken off");
                // Which breaks the connection off: no client takes the archive for whole.
                let _ = sender.send(Err(io::Error::other(error))).await;
            }
        });
        let carrying = AbortOnDropHandle::new(carrying);
        let pieces = stream::unfold((receiver, carrying), |(mut receiver, carrying)| async {
            let piece = receiver.recv().await?;
            Some((piece, (receiver, carrying)))
        });
        Ok(pieces.boxed())
    }
}

async fn carry(
    mut tar: pipe::Receiver,
    sender: &mpsc::Sender<io::Result<Bytes>>,
    writing: &mut AbortOnDropHandle<Result<(), SpawnerError>>,
) -> Result<(), ExportError> {
    loop {
        let mut piece = BytesMut::with_capacity(CHUNK);
        let read = tar.read_buf(&mut piece).await;
        if read.map_err(failed("reading a pipe"))? == 0 {
            return ended(writing).await;
        }
        match timeout(CLIENT, sender.send(Ok(piece.freeze()))).await {
            Ok(Ok(())) => {}
            // The client is gone.
            Ok(Err(_)) => return Ok(()),
            Err(_passed) => return Err(ExportError::Slow(CLIENT)),
        }
    }
}

async fn ended(
    writing: &mut AbortOnDropHandle<Result<(), SpawnerError>>,
) -> Result<(), ExportError> {
    match writing.await {
        Ok(written) => Ok(written?),
        Err(error) => Err(failed("writing an archive")(error.into())),
    }
}

fn reader(pipe: OwnedFd) -> Result<pipe::Receiver, ExportError> {
    pipe::Receiver::from_owned_fd(pipe).map_err(failed("watching a pipe"))
}

fn failed(attempt: &'static str) -> impl Fn(io::Error) -> ExportError {
    move |error| ExportError::Host(attempt, error)
}
