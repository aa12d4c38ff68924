//! Child processes that can't outlive the comparison, and waiting for what they do.
//!
//! Every child runs in a process group of its own, so that Ctrl-C reaches this program alone and things end in order, and is
//! killed by the kernel when this program is gone (`setpriv --pdeathsig`), however that came.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

/// How often a condition is looked at.
pub(crate) const LOOK_EVERY: Duration = Duration::from_millis(5);
/// How much of a log an error shows: the end is where the reason is.
const LOG_TAIL_LINES: usize = 12;

/// What went wrong with a child.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProcessError {
    #[error("{program} can't be started: {source}")]
    Start { program: String, source: io::Error },
    #[error("{path}: {source}")]
    File { path: PathBuf, source: io::Error },
    #[error("{name} ended ({status}) when it should be running{log}")]
    Ended { name: String, status: ExitStatus, log: Tail },
    #[error("{name} failed ({status}){log}")]
    Failed { name: String, status: ExitStatus, log: Tail },
    #[error("waited {} s in vain for {what}{log}", limit.as_secs())]
    TooLate { what: String, limit: Duration, log: Tail },
    #[error("interrupted")]
    Interrupted,
}

/// The end of a log, for an error.
#[derive(Debug)]
pub(crate) struct Tail(String);

/// True once somebody wants this program to stop.
#[derive(Clone, Debug, Default)]
pub(crate) struct Interrupt(Arc<AtomicBool>);

/// How a program is run.
#[derive(Debug)]
pub(crate) struct Program<'a> {
    /// What it is called in errors.
    pub(crate) name: &'a str,
    pub(crate) path: &'a Path,
    pub(crate) args: Vec<OsString>,
    pub(crate) env: Vec<(&'a str, PathBuf)>,
    /// The cores that it may run on.
    pub(crate) cores: Vec<usize>,
    /// In a network namespace of its own, so that devices that it makes are nobody else's.
    pub(crate) isolated: bool,
    /// Takes what it prints, errors as well.
    pub(crate) log: PathBuf,
}

/// A running child, killed when this goes away.
#[derive(Debug)]
pub(crate) struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Interrupt {
    /// Ctrl-C, SIGTERM and SIGHUP are noted from now on.
    pub(crate) fn catch() -> io::Result<Self> {
        let noted = Self::default();
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            signal_hook::flag::register(signal, Arc::clone(&noted.0))?;
        }
        Ok(noted)
    }

    pub(crate) fn is_requested(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

impl Program<'_> {
    pub(crate) fn start(&self) -> Result<Process, ProcessError> {
        let in_log = |source| ProcessError::File { path: self.log.clone(), source };
        let output = File::options().create(true).append(true).open(&self.log).map_err(in_log)?;
        let errors = output.try_clone().map_err(in_log)?;
        let mut command = self.command();
        // A program that reads commands must not find the end of its input.
        command.stdin(Stdio::piped()).stdout(output).stderr(errors).process_group(0);
        let child = command.spawn().map_err(|source| ProcessError::Start { program: self.name.to_owned(), source })?;
        Ok(Process { name: self.name.to_owned(), child, log: self.log.clone() })
    }

    /// Pinned, isolated if wanted, and last, because what comes before would clear it, tied to this program's life.
    fn command(&self) -> Command {
        let cores: Vec<_> = self.cores.iter().map(ToString::to_string).collect();
        let mut words: Vec<&OsStr> = Vec::new();
        if self.isolated {
            words.extend(["unshare", "--net"].map(OsStr::new));
            if !rustix::process::geteuid().is_root() {
                words.push("--map-root-user".as_ref());
            }
        }
        words.extend(["setpriv", "--pdeathsig", "KILL", "--"].map(OsStr::new));
        let mut command = Command::new("taskset");
        command.args(["--cpu-list", &cores.join(",")]).args(words).arg(self.path).args(&self.args);
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        command
    }
}

impl Process {
    /// Waits until `condition` is true.
    ///
    /// # Errors
    /// When the process ends first, the time is up, or this program is to stop.
    pub(crate) fn wait_until(
        &mut self,
        what: &str,
        limit: Duration,
        interrupt: &Interrupt,
        mut condition: impl FnMut() -> bool,
    ) -> Result<(), ProcessError> {
        let start = Instant::now();
        while !condition() {
            self.check_alive()?;
            self.pause(what, start, limit, interrupt)?;
        }
        Ok(())
    }

    /// Waits until it has ended well. `meanwhile` sees whether what it needs is still there.
    pub(crate) fn finish(
        mut self,
        limit: Duration,
        interrupt: &Interrupt,
        mut meanwhile: impl FnMut() -> Result<(), ProcessError>,
    ) -> Result<(), ProcessError> {
        let start = Instant::now();
        loop {
            if let Some(status) = self.status()? {
                let failed = || ProcessError::Failed { name: self.name.clone(), status, log: self.tail() };
                return if status.success() { Ok(()) } else { Err(failed()) };
            }
            meanwhile()?;
            let what = format!("{} to finish", self.name);
            self.pause(&what, start, limit, interrupt)?;
        }
    }

    /// # Errors
    /// When it has ended.
    pub(crate) fn check_alive(&mut self) -> Result<(), ProcessError> {
        match self.status()? {
            None => Ok(()),
            Some(status) => Err(ProcessError::Ended { name: self.name.clone(), status, log: self.tail() }),
        }
    }

    fn pause(&self, what: &str, start: Instant, limit: Duration, interrupt: &Interrupt) -> Result<(), ProcessError> {
        if interrupt.is_requested() {
            return Err(ProcessError::Interrupted);
        }
        if start.elapsed() > limit {
            return Err(ProcessError::TooLate { what: what.to_owned(), limit, log: self.tail() });
        }
        sleep(LOOK_EVERY);
        Ok(())
    }

    fn status(&mut self) -> Result<Option<ExitStatus>, ProcessError> {
        self.child.try_wait().map_err(|source| ProcessError::Start { program: self.name.clone(), source })
    }

    fn tail(&self) -> Tail {
        Tail::of(&self.log)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself; there is nothing left to do then.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Tail {
    /// Of a log that may be missing.
    pub(crate) fn of(log: &Path) -> Self {
        let text = std::fs::read(log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<_> = text.lines().filter(|line| !line.trim().is_empty()).collect();
        Self(lines[lines.len().saturating_sub(LOG_TAIL_LINES)..].join("\n    "))
    }
}

impl std::fmt::Display for Tail {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0.is_empty() { Ok(()) } else { write!(f, ":\n    {}", self.0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(20);

    fn shell(script: &str, dir: &Path) -> Process {
        let program = Program {
            name: "the shell",
            path: Path::new("sh"),
            args: ["-c", script].map(OsString::from).to_vec(),
            env: Vec::new(),
            cores: vec![first_core()],
            isolated: false,
            log: dir.join("log"),
        };
        program.start().unwrap()
    }

    fn first_core() -> usize {
        let allowed = rustix::thread::sched_getaffinity(None).unwrap();
        (0..1024).find(|&core| allowed.is_set(core)).unwrap()
    }

    #[test]
    fn a_failure_tells_the_status_and_the_end_of_the_log() {
        let dir = tempfile::tempdir().unwrap();
        let error = shell("echo first; echo the reason >&2; exit 3", dir.path());
        let error = error.finish(LIMIT, &Interrupt::default(), || Ok(())).unwrap_err().to_string();
        assert!(error.contains("the shell failed (exit status: 3)") && error.ends_with("the reason"), "{error}");
    }

    #[test]
    fn waiting_ends_when_the_process_does() {
        let dir = tempfile::tempdir().unwrap();
        let error = shell("exit 0", dir.path()).wait_until("nothing", LIMIT, &Interrupt::default(), || false).unwrap_err();
        assert!(matches!(error, ProcessError::Ended { .. }), "{error}");
    }

    #[test]
    fn waiting_ends_when_the_program_is_to_stop() {
        let dir = tempfile::tempdir().unwrap();
        let interrupt = Interrupt::default();
        interrupt.0.store(true, Ordering::Relaxed);
        let error = shell("read forever", dir.path()).finish(LIMIT, &interrupt, || Ok(())).unwrap_err();
        assert!(matches!(error, ProcessError::Interrupted), "{error}");
    }

    #[test]
    fn a_process_does_not_outlive_its_value() {
        let dir = tempfile::tempdir().unwrap();
        let process = shell("read forever", dir.path());
        let pid = process.child.id();
        assert!(Path::new(&format!("/proc/{pid}")).exists());
        drop(process);
        assert!(!Path::new(&format!("/proc/{pid}")).exists());
    }
}
