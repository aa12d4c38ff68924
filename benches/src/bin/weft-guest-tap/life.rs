//! How long this process lives: until a signal, or until the command that it runs has ended.

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGTERM};
use signal_hook::{flag, low_level::pipe};

use crate::joint::End;

/// Why it can't be watched.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LifeError {
    #[error("signals can't be taken: {0}")]
    Signals(#[source] io::Error),
    #[error("the command {command} can't be run: {source}")]
    Command { command: String, source: io::Error },
}

/// The command, if there is one, and the signals. The command is killed when this value goes away.
pub(crate) struct Life {
    asked_to_end: Arc<AtomicBool>,
    child_ended: Arc<AtomicBool>,
    wake_up: UnixStream,
    child: Option<(Child, String)>,
}

impl Life {
    /// Takes over the signals and starts the command.
    pub(crate) fn start(command: &[String]) -> Result<Self, LifeError> {
        let (wake_up, signalled) = UnixStream::pair().map_err(LifeError::Signals)?;
        let (asked_to_end, child_ended) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        for (signal, told) in
            [(SIGINT, &asked_to_end), (SIGTERM, &asked_to_end), (SIGHUP, &asked_to_end), (SIGCHLD, &child_ended)]
        {
            // The flag first: whoever is woken up looks at it.
            flag::register(signal, Arc::clone(told)).map_err(LifeError::Signals)?;
            signalled.try_clone().and_then(|pipe| pipe::register(signal, pipe)).map_err(LifeError::Signals)?;
        }
        wake_up.set_nonblocking(true).map_err(LifeError::Signals)?;
        let child = match command {
            [] => None,
            [program, args @ ..] => {
                let child = Command::new(program).args(args).spawn();
                let child = child.map_err(|source| LifeError::Command { command: program.clone(), source })?;
                Some((child, program.clone()))
            }
        };
        Ok(Self { asked_to_end, child_ended, wake_up, child })
    }

    /// Why to end, if it is time.
    pub(crate) fn end(&mut self) -> Result<Option<End>, LifeError> {
        if self.asked_to_end.load(Ordering::Relaxed) {
            return Ok(Some(End::Signal));
        }
        if !self.child_ended.swap(false, Ordering::Relaxed) {
            return Ok(None);
        }
        // Nothing else is to be read from it than that there was a signal.
        while matches!((&self.wake_up).read(&mut [0; 64]), Ok(1..)) {}
        let Some((child, command)) = &mut self.child else { return Ok(None) };
        let status = child.try_wait().map_err(|source| LifeError::Command { command: command.clone(), source })?;
        Ok(status.map(End::Command))
    }

    /// Can be read when there was a signal.
    pub(crate) fn wake_up(&self) -> BorrowedFd<'_> {
        self.wake_up.as_fd()
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        if let Some((child, _)) = &mut self.child {
            // It may have ended by itself; there is nothing left to do then.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
