//! A child process that can't outlive its test, with its output in a file.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::wait::wait_for;

/// How much of a log a failing test prints: the end is where the reason is.
const LOG_TAIL_BYTES: usize = 16 * 1024;

/// A running child, killed on drop.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `program` with `args`, both output streams appended to `log`.
    ///
    /// The child is tied to the calling thread by the kernel: when a test is killed, nothing of it stays behind.
    pub fn spawn(name: &str, program: &Path, args: &[String], log: &Path) -> Process {
        let output = File::options()
            .create(true)
            .append(true)
            .open(log)
            .unwrap_or_else(|error| panic!("the log {} can't be opened: {error}", log.display()));
        let errors = output.try_clone().expect("a file can be cloned");
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--"])
            .arg(program)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(output)
            .stderr(errors)
            .spawn()
            .unwrap_or_else(|error| panic!("{name} can't be started (through setpriv): {error}"));
        Process { name: name.to_owned(), child, log: log.to_owned() }
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whatever it has printed so far.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// The pipe to its standard input.
    pub fn stdin(&mut self) -> &mut ChildStdin {
        self.child.stdin.as_mut().expect("stdin is always a pipe")
    }

    /// Panics when the process has ended: whatever is waited for can't happen any more.
    pub fn assert_alive(&mut self) {
        if let Ok(Some(status)) = self.child.try_wait() {
            panic!("{} has ended ({status}) when it should be running", self.name);
        }
    }

    /// `kill -9`: it gets no chance to clean up.
    pub fn kill9(&mut self) {
        self.end();
    }

    /// Asks it to stop, and waits for its end.
    pub fn terminate(mut self, limit: Duration) -> ExitStatus {
        let pid = i32::try_from(self.pid()).ok().and_then(Pid::from_raw).expect("a child has a pid");
        kill_process(pid, Signal::TERM).expect("a child that was not waited for takes signals");
        let what = format!("{} to end after SIGTERM", self.name);
        wait_for(&what, limit, || self.child.try_wait().expect("a child can be waited for"))
    }

    /// The CPU time that its threads have used, to the nanosecond: `/proc/PID/stat` counts in steps of 10 ms, which is too
    /// coarse for a process that hardly does anything.
    pub fn cpu_time(&self) -> Duration {
        let tasks = format!("/proc/{}/task", self.pid());
        let threads = fs::read_dir(&tasks).unwrap_or_else(|error| panic!("{tasks}: {error}"));
        threads
            .map(|thread| {
                let path = thread.expect("a folder that can be read").path().join("schedstat");
                let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
                let nanos = text.split(' ').next().and_then(|first| first.parse().ok());
                Duration::from_nanos(nanos.unwrap_or_else(|| panic!("{}: {text:?}", path.display())))
            })
            .sum()
    }

    fn end(&mut self) {
        // It may have ended by itself; there is nothing left to do then.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end();
        if std::thread::panicking() {
            print_log(&self.name, &self.log);
        }
    }
}

/// Prints the end of a log, for the reader of a failed test.
pub fn print_log(name: &str, log: &Path) {
    let bytes = fs::read(log).unwrap_or_default();
    let tail = &bytes[bytes.len().saturating_sub(LOG_TAIL_BYTES)..];
    let mut err = std::io::stderr().lock();
    let _ = writeln!(err, "--- {name}, {} ---\n{}\n---", log.display(), String::from_utf8_lossy(tail));
}

/// The path of `program`, looked for where an ordinary user's PATH does not lead as well.
pub fn find_program(program: &str) -> PathBuf {
    let path = std::env::var("PATH").unwrap_or_default();
    path.split(':')
        .chain(["/usr/local/sbin", "/usr/sbin", "/sbin"])
        .map(|folder| Path::new(folder).join(program))
        .find(|candidate| candidate.is_file())
        .unwrap_or_else(|| panic!("{program} is not there: run tests/e2e/setup first"))
}
