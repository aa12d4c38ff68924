//! Where log lines go: to the journal when systemd has connected stderr to it, else to stderr as text.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::render::wants_colours;

/// Starts logging. `filter` is a level or a list of `module=level`.
pub(crate) fn start(filter: Option<&str>) -> Result<(), LogError> {
    let text = filter.unwrap_or("info");
    let filter = EnvFilter::builder().parse(text).map_err(|source| LogError { text: text.to_owned(), source })?;
    let registry = tracing_subscriber::registry().with(filter);
    let journal = if stderr_is_the_journal() { tracing_journald::layer().ok() } else { None };
    // A second start, as in a test, keeps the first one's settings.
    let _ = match journal {
        Some(layer) => registry.with(layer).try_init(),
        None => {
            let colours = wants_colours(std::io::stderr().is_terminal());
            registry
                .with(tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(colours).with_target(false))
                .try_init()
        }
    };
    Ok(())
}

/// The filter is none.
#[derive(Debug, thiserror::Error)]
#[error("{text:?} is no log level ({source}): use error, warn, info, debug or trace")]
pub(crate) struct LogError {
    text: String,
    source: tracing_subscriber::filter::ParseError,
}

/// systemd names the journal's device and inode (systemd.exec(5), `$JOURNAL_STREAM`); a redirected stderr has others.
fn stderr_is_the_journal() -> bool {
    let Ok(variable) = std::env::var("JOURNAL_STREAM") else {
        return false;
    };
    rustix::fs::fstat(std::io::stderr()).is_ok_and(|stat| variable == format!("{}:{}", stat.st_dev, stat.st_ino))
}
