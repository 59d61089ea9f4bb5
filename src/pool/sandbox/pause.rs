//! A sandbox that stands still: who wants it to, and what holds its processes.
//!
//! Init stops them with a signal, all at a stroke. A signal is between processes, though: they notice it, and one
//! that sends SIGCONT at just that moment, or has a timer send it, may have some go on. For a pause, which may last,
//! and where files are read that must not change, the kernel's freezer (cgroup v2) holds them where the sandbox has
//! a control group: nobody inside notices it, or ends it. Init is taken out of the group for so long, since it has
//! to kill what is to be killed all the same.

use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::task::spawn_blocking;

use super::{Gone, HOLD_PATIENCE, Sandbox, SandboxError};
use crate::init::protocol::{Reply, Request, RequestId};
use crate::sandbox::cgroups::Group;
use crate::sys::channel::Received;
use crate::sys::process::id_behind;

/// How long it is waited before the next look whether all processes stand still: at first, and at most.
const FIRST_LOOK: Duration = Duration::from_micros(200);
const LAST_LOOK: Duration = Duration::from_millis(20);

/// What keeps the processes of a paused sandbox from running.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Brake {
    /// The kernel, in their control group.
    Freezer,
    /// SIGSTOP, which was sent to all of them.
    Signals,
}

impl Sandbox {
    /// Stops all its processes at a stroke and starts none, until [`release`](Self::release) was called
    /// as often as this.
    ///
    /// # Errors
    /// `Gone`; `Unreachable` where init does not do it.
    pub async fn hold(&self) -> Result<(), SandboxError> {
        let mut holds = self.shared.holds.lock().await;
        if *holds == 0 {
            self.ask_to_stop(Request::Hold).await?;
        }
        *holds += 1;
        Ok(())
    }

    /// Has its processes go on, unless others want them to stand still.
    pub async fn release(&self) {
        let mut holds = self.shared.holds.lock().await;
        *holds = holds.saturating_sub(1);
        if *holds == 0 {
            if self.is_frozen()
                && let Some(group) = self.freezer()
            {
                self.thaw(group).await;
            }
            // If it cannot be asked, its sandbox is gone.
            let _ = self.send(&Request::Release, &[]).await;
        }
    }

    /// Waits until what is held stands still: a process stops when the system call ends that it is in.
    /// `false` if some do not within `patience`.
    ///
    /// # Errors
    /// `Gone`.
    pub async fn until_still(&self, patience: Duration) -> Result<bool, SandboxError> {
        let until = tokio::time::Instant::now() + patience;
        let mut pause = FIRST_LOOK;
        loop {
            if self.is_still().await? {
                return Ok(true);
            }
            if tokio::time::Instant::now() > until {
                return Ok(false);
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LAST_LOOK);
        }
    }

    async fn is_still(&self) -> Result<bool, SandboxError> {
        if self.is_frozen()
            && let Some(group) = self.freezer()
        {
            return Ok(group.is_frozen());
        }
        match self.ask(Request::Unsettled).await?.message {
            Reply::Counted(_, count) => Ok(count == 0),
            other => Err(self.not_done(other)),
        }
    }

    /// Holds its processes until [`resume`](Self::resume). For one caller at a time.
    ///
    /// # Errors
    /// Those of [`hold`](Self::hold).
    pub async fn pause(&self) -> Result<(), SandboxError> {
        // First: who sees it starts nothing, and what is on its way waits in init.
        if self.shared.paused.swap(true, Ordering::SeqCst) {
            return Ok(());
        }
        let held = self.hold_for_long().await;
        if held.is_err() {
            self.shared.paused.store(false, Ordering::SeqCst);
        }
        held
    }

    /// Has them go on; `false` if it was not paused. For one caller at a time.
    pub async fn resume(&self) -> bool {
        if !self.is_paused() {
            return false;
        }
        self.release().await;
        self.shared.paused.store(false, Ordering::SeqCst);
        true
    }

    /// Whether it is paused.
    #[must_use]
    pub fn is_paused(&self) -> bool {
        self.shared.paused.load(Ordering::SeqCst)
    }

    /// What holds its processes, if it is paused.
    #[must_use]
    pub fn brake(&self) -> Option<Brake> {
        let brake = if self.is_frozen() {
            Brake::Freezer
        } else {
            Brake::Signals
        };
        self.is_paused().then_some(brake)
    }

    /// [`hold`](Self::hold), by the kernel's freezer where there is one.
    ///
    /// # Errors
    /// Those of [`hold`](Self::hold).
    pub async fn hold_for_long(&self) -> Result<(), SandboxError> {
        let mut holds = self.shared.holds.lock().await;
        if *holds == 0 && !self.freeze().await? {
            self.ask_to_stop(Request::Hold).await?;
        }
        *holds += 1;
        Ok(())
    }

    /// Has the kernel freeze all but init; `false` where it cannot.
    async fn freeze(&self) -> Result<bool, SandboxError> {
        let (Some(group), Ok(init)) = (self.freezer(), id_behind(self.shared.init.as_fd())) else {
            return Ok(false);
        };
        // Init must start nothing while it is elsewhere: that would run on, without limits.
        self.ask_to_stop(Request::Suspend).await?;
        let freezing = group.clone();
        let frozen = spawn_blocking(move || freezing.freeze(init)).await;
        if let Err(error) = frozen.map_err(io::Error::other).flatten() {
            tracing::warn!(%error, "cannot freeze a sandbox; its processes are stopped by a signal");
            self.thaw(group).await;
            return Ok(false);
        }
        self.shared.frozen.store(true, Ordering::SeqCst);
        Ok(true)
    }

    /// Has the kernel thaw it, and init be in its group again.
    async fn thaw(&self, group: Group) {
        if let Ok(init) = id_behind(self.shared.init.as_fd()) {
            let thawed = spawn_blocking(move || group.thaw(init)).await;
            if let Err(error) = thawed.map_err(io::Error::other).flatten()
                && self.gone().is_none()
            {
                tracing::error!(%error, "cannot thaw a sandbox; it ends");
                // What init starts would have no limits.
                self.shared.connection.die(Gone::Lost);
            }
        }
        self.shared.frozen.store(false, Ordering::SeqCst);
    }

    /// Whether it is the kernel's freezer that holds its processes.
    #[must_use]
    pub fn is_frozen(&self) -> bool {
        self.shared.frozen.load(Ordering::SeqCst)
    }

    /// Its control groups, if they can be frozen.
    fn freezer(&self) -> Option<Group> {
        let group = self.shared.connection.group();
        let group = group.as_ref().filter(|group| group.has_freezer());
        group.map(|group| Group::clone(group))
    }

    /// Has init stop, or start nothing.
    async fn ask_to_stop(
        &self,
        request: impl FnOnce(RequestId) -> Request,
    ) -> Result<(), SandboxError> {
        let held = tokio::time::timeout(HOLD_PATIENCE, self.ask(request)).await;
        let error = match held {
            Ok(Ok(Received {
                message: Reply::Held(_),
                ..
            })) => return Ok(()),
            Ok(Err(error)) => error,
            _ => {
                let silent = io::Error::other("init does not hold the sandbox's processes");
                SandboxError::Unreachable(silent)
            }
        };
        let _ = self.send(&Request::Release, &[]).await;
        Err(error)
    }
}
