//! Programs that are started here and gone when their value is, however this program ends.
//!
//! Each is in a process group of its own, so that Ctrl-C reaches this program alone and things end in order; and the kernel
//! kills it when this program dies without a word (`setpriv --pdeathsig`).

use std::fs::{self, File};
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use crate::stop::{InVain, Stop};

/// How much of a log an error shows: the end is where the reason is.
const TAIL_LINES: usize = 10;
/// What `/proc/PID/stat` counts in.
const TICKS_PER_SECOND: f64 = 100.0;

/// What went wrong with a program.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ChildError {
    #[error("{name} can't be started: {source}; benches/iperf/setup installs what is needed")]
    Start { name: String, source: io::Error },
    #[error("{path}: {source}", path = path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("{name} ended ({status}) too early{tail}")]
    Ended { name: String, status: ExitStatus, tail: String },
    #[error("{name} failed ({status}){tail}")]
    Failed { name: String, status: ExitStatus, tail: String },
    #[error("waited {} s in vain for {what}{tail}", limit.as_secs())]
    TooLate { what: String, limit: Duration, tail: String },
    #[error("stopped by a signal")]
    Stopped,
}

/// A running program. It is killed when this goes away.
#[derive(Debug)]
pub(crate) struct Child {
    name: String,
    process: std::process::Child,
    log: PathBuf,
    stop: Stop,
}

/// Where programs are started.
#[derive(Clone, Debug)]
pub(crate) struct Nursery {
    /// Their logs are here, and what else they need.
    pub(crate) dir: PathBuf,
    pub(crate) stop: Stop,
    /// They are in the network namespace of this process, if there is one.
    pub(crate) inside: Option<u32>,
}

impl Nursery {
    /// Starts a program. Both its output streams go to a log named after it.
    pub(crate) fn start(&self, name: &str, words: &[&str]) -> Result<Child, ChildError> {
        let log = self.dir.join(format!("{name}.log"));
        let in_log = |source| ChildError::File { path: log.clone(), source };
        let output = File::create(&log).map_err(in_log)?;
        let errors = output.try_clone().map_err(in_log)?;
        let target = self.inside.map(|pid| pid.to_string());
        let enter = target.as_ref().map(|pid| ["nsenter", "--target", pid, "--net", "--"]);
        let process = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--"])
            .args(enter.iter().flatten())
            .args(words)
            .env("LC_ALL", "C")
            // A program that reads commands must not find the end of its input.
            .stdin(Stdio::piped())
            .stdout(output)
            .stderr(errors)
            .process_group(0)
            .spawn()
            .map_err(|source| ChildError::Start { name: name.to_owned(), source })?;
        Ok(Child { name: name.to_owned(), process, log, stop: self.stop.clone() })
    }

    /// Runs a program to its end and gives what it printed.
    pub(crate) fn run(&self, name: &str, words: &[&str], limit: Duration) -> Result<String, ChildError> {
        self.start(name, words)?.finish(limit)
    }

    /// The same for programs in the network namespace of another.
    pub(crate) fn inside(&self, holder: &Child) -> Self {
        Self { inside: Some(holder.pid()), ..self.clone() }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }
}

impl Child {
    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Whatever it has printed so far.
    pub(crate) fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Waits until a condition holds, as long as the program runs.
    pub(crate) fn wait_for<T>(
        &mut self,
        what: &str,
        limit: Duration,
        mut condition: impl FnMut() -> Option<T>,
    ) -> Result<T, ChildError> {
        let stop = self.stop.clone();
        let found = stop.wait_for(limit, || match condition() {
            Some(value) => Some(Ok(value)),
            None => self.status().transpose().map(|status| Err(status.and_then(|status| Err(self.ended(status))))),
        });
        match found {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(ended)) => ended,
            Err(in_vain) => Err(self.in_vain(in_vain, what, limit)),
        }
    }

    /// Waits until a text is in its log.
    pub(crate) fn wait_for_log(&mut self, text: &str, limit: Duration) -> Result<(), ChildError> {
        let (log, what) = (self.log.clone(), format!("{} to say \"{text}\"", self.name));
        let said = || fs::read(&log).is_ok_and(|bytes| String::from_utf8_lossy(&bytes).contains(text)).then_some(());
        self.wait_for(&what, limit, said)
    }

    /// Waits until it has ended, and gives how and what it printed.
    pub(crate) fn output(mut self, limit: Duration) -> Result<(ExitStatus, String), ChildError> {
        let stop = self.stop.clone();
        let what = format!("{} to finish", self.name);
        match stop.wait_for(limit, || self.status().transpose()) {
            Ok(status) => Ok((status?, self.log())),
            Err(in_vain) => Err(self.in_vain(in_vain, &what, limit)),
        }
    }

    /// The same of a program that must end well.
    pub(crate) fn finish(self, limit: Duration) -> Result<String, ChildError> {
        let (name, log) = (self.name.clone(), self.log.clone());
        match self.output(limit)? {
            (status, text) if status.success() => Ok(text),
            (status, _) => Err(ChildError::Failed { name, status, tail: tail(&log) }),
        }
    }

    /// The CPU time that it has used, in seconds.
    pub(crate) fn cpu_seconds(&self) -> f64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap_or_default();
        cpu_ticks(&stat) as f64 / TICKS_PER_SECOND
    }

    fn status(&mut self) -> Result<Option<ExitStatus>, ChildError> {
        self.process.try_wait().map_err(|source| ChildError::Start { name: self.name.clone(), source })
    }

    fn ended(&self, status: ExitStatus) -> ChildError {
        ChildError::Ended { name: self.name.clone(), status, tail: tail(&self.log) }
    }

    fn in_vain(&self, in_vain: InVain, what: &str, limit: Duration) -> ChildError {
        match in_vain {
            InVain::Stopped => ChildError::Stopped,
            InVain::TooLate => ChildError::TooLate { what: what.to_owned(), limit, tail: tail(&self.log) },
        }
    }
}

/// The end of a log, to stand behind an error.
fn tail(log: &Path) -> String {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..].iter().flat_map(|line| ["\n    ", line]).collect()
}

impl Drop for Child {
    fn drop(&mut self) {
        // It may have ended by itself; there is nothing left to do then.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// User and system time in a `/proc/PID/stat`. The name before them may hold blanks and brackets.
fn cpu_ticks(stat: &str) -> u64 {
    let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    after_name.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum()
}

/// The path of a program, looked for where an ordinary user's PATH does not lead as well.
pub(crate) fn find_program(program: &str) -> Option<PathBuf> {
    let path = std::env::var("PATH").unwrap_or_default();
    let folders = path.split(':').chain(["/usr/local/sbin", "/usr/sbin", "/sbin"]);
    folders.map(|folder| Path::new(folder).join(program)).find(|candidate| candidate.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(20);

    fn shell(dir: &tempfile::TempDir, script: &str) -> Child {
        Nursery { dir: dir.path().to_owned(), stop: Stop::default(), inside: None }.start("shell", &["sh", "-c", script]).unwrap()
    }

    #[test]
    fn what_a_program_says_is_kept_and_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let mut talker = shell(&dir, "echo hello; read line");
        talker.wait_for_log("hello", LIMIT).unwrap();
        assert_eq!(talker.log(), "hello\n");
    }

    #[test]
    fn a_failure_names_the_program_and_shows_its_last_words() {
        let dir = tempfile::tempdir().unwrap();
        let error = shell(&dir, "echo the reason; exit 3").finish(LIMIT).unwrap_err().to_string();
        assert_eq!(error, "shell failed (exit status: 3)\n    the reason");
        let error = shell(&dir, "exit 0").wait_for_log("never said", LIMIT).unwrap_err();
        assert!(matches!(error, ChildError::Ended { .. }), "{error}");
    }

    #[test]
    fn nothing_outlives_its_value() {
        let dir = tempfile::tempdir().unwrap();
        let child = shell(&dir, "read line");
        let process = PathBuf::from(format!("/proc/{}", child.pid()));
        assert!(process.exists());
        drop(child);
        assert!(!process.exists());
    }

    #[test]
    fn cpu_time_is_found_behind_any_name() {
        assert_eq!(cpu_ticks("7 (a (b) c) S 1 7 7 0 -1 4194304 1 0 0 0 150 25 0 0 20 0 1 0"), 175);
        assert_eq!(cpu_ticks(""), 0);
    }
}
