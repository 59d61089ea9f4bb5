//! Pausing a workspace: its processes stand still, and nothing is started in it.

use std::time::Duration;

use super::WorkspaceError;
use super::events::Event;
use super::one::Workspace;

/// How long a pause waits for processes that are in a system call.
const SETTLING: Duration = Duration::from_secs(1);

impl Workspace {
    /// Stops all its processes at a stroke, until it is resumed, reset or fenced; one that has none is
    /// started for it. Clocks go on, and with them the deadlines of its commands, which kill what they
    /// are to kill.
    ///
    /// # Errors
    /// `Fenced`, `Moved`; where its sandbox cannot be started.
    pub async fn pause(&self) -> Result<(), WorkspaceError> {
        let sandbox = match self.sandbox().await {
            Err(WorkspaceError::Paused) => return Ok(()),
            sandbox => sandbox?,
        };
        let lifecycle = self.lifecycle.lock().await;
        lifecycle.check_open()?;
        if sandbox.gone().is_some() {
            return Err(WorkspaceError::Moved);
        }
        if sandbox.is_paused() {
            return Ok(());
        }
        sandbox.pause().await?;
        self.events().tell(Event::Paused);
        // A write that has begun may take longer: no harm is done by answering before its end.
        sandbox.until_still(SETTLING).await?;
        Ok(())
    }

    /// Has its processes go on, if it is paused.
    ///
    /// # Errors
    /// `Moved`.
    pub async fn resume(&self) -> Result<(), WorkspaceError> {
        let lifecycle = self.lifecycle.lock().await;
        lifecycle.check_open()?;
        if let Some(sandbox) = self.current()
            && sandbox.resume().await
        {
            self.events().tell(Event::Resumed);
        }
        Ok(())
    }

    /// Whether it is paused.
    #[must_use]
    pub fn is_paused(&self) -> bool {
        self.current().is_some_and(|sandbox| sandbox.is_paused())
    }

    /// Refuses what is not to be done while it is paused, or fenced.
    ///
    /// # Errors
    /// `Paused`, `Fenced`.
    pub fn check_running(&self) -> Result<(), WorkspaceError> {
        self.check_fence()?;
        if self.is_paused() {
            Err(WorkspaceError::Paused)
        } else {
            Ok(())
        }
    }
}
