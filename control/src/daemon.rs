//! `weft run`: one thread that owns the dataplane and the control socket, and waits for events of both.

use std::io::{self, Read};
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use mio::net::UnixStream;
use mio::{Events, Interest, Poll, Token};
use sd_notify::NotifyState;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use tracing::{error, info, warn};
use weft_dataplane::{Dataplane, DataplaneError};

use crate::api::{Handler, Nothing, PortInfo, Status, VERSION};
use crate::config::{Config, WorkerOverrides};
use crate::config_file::{self, FileError};
use crate::host::Host;
use crate::processors::{self, ProcessorError};
use crate::reach;
use crate::refusal::Refusal;
use crate::render::counted;
use crate::run_dir::{RunDir, RunDirError};
use crate::saved::SavedConfig;
use crate::server::{Server, ServerError};
use crate::services::Services;
use crate::state_dir::{self, StateDirError};
use crate::switch::{FailedReload, Switch};

/// SIGTERM and SIGINT.
const STOP: Token = Token(0);
/// SIGHUP.
const RELOAD: Token = Token(1);
/// The control socket; its clients have the tokens after it.
const CONTROL: Token = Token(2);

/// How long until a control connection that found no descriptor is tried again.
const ACCEPT_AGAIN: Duration = Duration::from_millis(500);

/// weft can't start, or can't go on.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The run directory.
    #[error(transparent)]
    RunDir(#[from] RunDirError),
    /// The state directory.
    #[error(transparent)]
    StateDir(#[from] StateDirError),
    /// The configuration file.
    #[error(transparent)]
    File(#[from] FileError),
    /// The processors for the workers.
    #[error(transparent)]
    Processors(#[from] ProcessorError),
    /// The dataplane does not start.
    #[error(transparent)]
    Dataplane(#[from] DataplaneError),
    /// The configuration can't be brought about.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The control socket.
    #[error(transparent)]
    Server(#[from] ServerError),
    /// The operating system refused.
    #[error("cannot {what}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// What the operating system said.
        source: io::Error,
    },
}

/// A running weft.
#[derive(Debug)]
pub struct Daemon {
    poll: Poll,
    // Dropped in this order: no request may arrive when the ports go, and the run directory is given back last.
    server: Server,
    switch: Switch,
    /// Nothing is read from it: its event says everything.
    _stop: UnixStream,
    reload: UnixStream,
    /// They hold at every reload.
    overrides: WorkerOverrides,
    /// Set when a signal to stop has come: the next one ends the process at once.
    stopping: Arc<AtomicBool>,
    /// Which signal that was.
    stopped_by: Arc<AtomicUsize>,
    watchdog: Option<Watchdog>,
    was_healthy: bool,
    _run_dir: RunDir,
}

/// The service manager wants to hear from us.
#[derive(Debug)]
struct Watchdog {
    interval: Duration,
    due: Instant,
}

impl Daemon {
    /// Takes the run directory and starts everything; when this returns, guests and clients can connect. What outlives weft is in
    /// `state_dir`. About the workers, `overrides` come before the file. With `host_access`, guests of the default network reach this host's
    /// loopback.
    ///
    /// # Errors
    /// When anything of that fails. Nothing is left behind then.
    pub fn start(
        run_dir: &Path,
        state_dir: &Path,
        config_file: Option<PathBuf>,
        overrides: WorkerOverrides,
        host_access: bool,
    ) -> Result<Self, DaemonError> {
        let host = Host::this(run_dir).with_access(host_access);
        let config_file = config_file.map(absolute).transpose()?;
        state_dir::check(state_dir)?;
        let (saved, declared) = match &config_file {
            Some(file) => (None, config_file::read(file, &host)?),
            None => SavedConfig::load(state_dir, &host).map(|(saved, config)| (Some(saved), config))?,
        };
        let config = declared.with_overrides(&overrides);
        let workers = &config.workers;
        processors::check(&workers.cpus)?;
        // Before all that has sockets in it, and so given back after it.
        let mut run_dir = RunDir::take(run_dir)?;
        run_dir.remove_stale_sockets(&guests_sockets(&config, &host))?;
        let poll = Poll::new().map_err(|source| DaemonError::Io { what: "make an epoll instance", source })?;
        let (stopping, stopped_by) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        for signal in [SIGTERM, SIGINT] {
            let registered = signal_hook::flag::register_conditional_default(signal, Arc::clone(&stopping))
                .and_then(|_| signal_hook::flag::register_usize(signal, Arc::clone(&stopped_by), signal.unsigned_abs() as usize));
            registered.map_err(|source| DaemonError::Io { what: "watch for signals", source })?;
        }
        let stop = signal_pipe(&poll, STOP, &[SIGTERM, SIGINT])?;
        let reload = signal_pipe(&poll, RELOAD, &[SIGHUP])?;
        let control_socket = host.control_socket();
        let dataplane = Dataplane::start(poll.registry(), &workers.settings())?;
        let services = Services::new(poll.registry(), state_dir)
            .map_err(|source| DaemonError::Io { what: "make what DHCP and DNS need", source })?;
        let mut switch = Switch::new(dataplane, services, workers.clone(), host, config_file);
        switch.apply_unattended(&config)?;
        // From now on: what is there by itself need not be kept.
        switch.saved = saved;
        let server = Server::listen(&control_socket, poll.registry(), CONTROL)?;
        run_dir.settle();
        let watchdog = sd_notify::watchdog_enabled().map(|limit| Watchdog { interval: limit / 2, due: Instant::now() });
        info!("weft {VERSION} runs on {}, with {workers}", run_dir.path().display());
        if let Some(doubt) = workers.doubt(std::thread::available_parallelism().map_or(1, NonZero::get)) {
            warn!("{doubt}");
        }
        if let Some(doubt) = reach::doubt().filter(|_| config.networks.values().any(|network| network.nat().is_some())) {
            warn!("{doubt}");
        }
        Ok(Self {
            poll,
            server,
            switch,
            _stop: stop,
            reload,
            overrides,
            stopping,
            stopped_by,
            watchdog,
            was_healthy: true,
            _run_dir: run_dir,
        })
    }

    /// The ports, to tell the operator how to plug guests in.
    #[must_use]
    pub fn ports(&mut self) -> Vec<PortInfo> {
        self.switch.port_list(Nothing {}).unwrap_or_default()
    }

    /// The switch as a whole.
    #[must_use]
    pub fn status(&mut self) -> Option<Status> {
        self.switch.status(Nothing {}).ok()
    }

    /// Serves until SIGTERM or SIGINT.
    ///
    /// # Errors
    /// When the operating system can't give us events any more.
    pub fn run(mut self) -> Result<(), DaemonError> {
        let mut events = Events::with_capacity(256);
        notify(&[NotifyState::Ready, NotifyState::Status(&self.summary())]);
        loop {
            let due = self.switch.tick();
            let timeout = due.min(self.own_timeout());
            match self.poll.poll(&mut events, Some(timeout)) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => {
                    return Err(DaemonError::Io { what: "wait for events", source: error });
                }
                _ => {}
            }
            for event in &events {
                match event.token() {
                    STOP => {
                        let signal = self.stopped_by.load(Ordering::Relaxed) as i32;
                        info!("stopping: {}", signal_hook::low_level::signal_name(signal).unwrap_or("a signal"));
                        self.stopping.store(true, Ordering::Relaxed);
                        notify(&[NotifyState::Stopping]);
                        return Ok(());
                    }
                    RELOAD => self.reload(),
                    token if self.server.owns(token) => self.server.handle(event, self.poll.registry(), &mut self.switch),
                    token if token.0 >= Dataplane::FIRST_TOKEN => self.switch.dataplane.handle(event),
                    token if Services::owns(token) => self.switch.handle(event),
                    token => warn!("an event with the unknown token {}", token.0),
                }
            }
            self.switch.serve();
            self.server.finish(self.poll.registry(), &mut self.switch);
            self.watch();
        }
    }

    /// How long until something of ours is due.
    fn own_timeout(&self) -> Duration {
        let watchdog =
            self.watchdog.as_ref().map_or(Duration::MAX, |watchdog| watchdog.due.saturating_duration_since(Instant::now()));
        let server = match (self.server.is_unfinished(), self.server.accepts_again()) {
            (true, _) => Duration::ZERO,
            (false, true) => ACCEPT_AGAIN,
            (false, false) => Duration::MAX,
        };
        watchdog.min(server)
    }

    /// Feeds the service manager's watchdog while the dataplane is healthy.
    fn watch(&mut self) {
        let healthy = self.switch.dataplane.is_healthy();
        if healthy != self.was_healthy {
            self.was_healthy = healthy;
            if healthy {
                info!("the dataplane is healthy again");
            } else {
                error!("a worker has died: the watchdog is not fed any more");
            }
        }
        let now = Instant::now();
        if let Some(watchdog) = self.watchdog.as_mut().filter(|watchdog| healthy && watchdog.due <= now) {
            watchdog.due = now + watchdog.interval;
            notify(&[NotifyState::Watchdog, NotifyState::Status(&self.summary())]);
        } else if let Some(watchdog) = self.watchdog.as_mut().filter(|watchdog| watchdog.due <= now) {
            // Unhealthy: no sign of life, but the loop must not spin on a time that has passed.
            watchdog.due = now + watchdog.interval;
        }
    }

    /// Reads the configuration file again and applies the difference; a bad file changes nothing.
    fn reload(&mut self) {
        drain(&mut self.reload);
        let Some(file) = self.switch.config_file.clone() else {
            warn!("SIGHUP, but there is no configuration file to read again: weft was started without --config");
            return;
        };
        if let Ok(now) = NotifyState::monotonic_usec_now() {
            notify(&[NotifyState::Reloading, now]);
        }
        let outcome = config_file::read(&file, &self.switch.host).map_err(DaemonError::from).and_then(|declared| {
            let wanted = declared.with_overrides(&self.overrides);
            self.switch.apply_unattended(&wanted).map_err(DaemonError::from)
        });
        match &outcome {
            Err(DaemonError::File(error)) => error!("the configuration stays as it is: {error}"),
            Err(refusal) => error!("the configuration of {} is not applied: {refusal}", file.display()),
            Ok(0) => info!("{} says what runs already", file.display()),
            Ok(count) => info!("the configuration of {} is applied, in {}", file.display(), counted(*count, "step")),
        }
        self.switch.failed_reload = outcome.err().map(|error| FailedReload { at: Instant::now(), why: error.to_string() });
        notify(&[NotifyState::Ready, NotifyState::Status(&self.summary())]);
    }

    fn summary(&self) -> String {
        let config = &self.switch.config;
        format!("{} on {}", counted(config.ports.len(), "port"), counted(config.networks.len(), "network"))
    }
}

/// Sockets on which guests listen, not weft.
fn guests_sockets(config: &Config, host: &Host) -> Vec<PathBuf> {
    config.ports.iter().filter(|(_, port)| port.client).map(|(name, port)| host.socket(name, port)).collect()
}

/// The file is read again later, and its name is shown to people who are somewhere else.
fn absolute(file: PathBuf) -> Result<PathBuf, DaemonError> {
    std::path::absolute(file).map_err(|source| DaemonError::Io { what: "resolve the path of the configuration file", source })
}

fn signal_pipe(poll: &Poll, token: Token, signals: &[i32]) -> Result<UnixStream, DaemonError> {
    let pipe = || {
        let (mut read, write) = UnixStream::pair()?;
        let write = std::os::unix::net::UnixStream::from(std::os::fd::OwnedFd::from(write));
        for &signal in signals {
            signal_hook::low_level::pipe::register(signal, write.try_clone()?)?;
        }
        poll.registry().register(&mut read, token, Interest::READABLE)?;
        Ok(read)
    };
    pipe().map_err(|source| DaemonError::Io { what: "watch for signals", source })
}

fn drain(pipe: &mut UnixStream) {
    let mut chunk = [0; 64];
    while pipe.read(&mut chunk).is_ok_and(|count| count > 0) {}
}

/// Tells the service manager, if there is one; a lost message is no reason to stop.
fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        warn!("cannot tell the service manager: {error}");
    }
}
