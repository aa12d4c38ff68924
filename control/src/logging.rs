//! Where log lines go: to the journal when systemd has connected stderr to it, else to stderr as text. The audit, of which mapping was whose, goes
//! where the operator says.

use std::convert::Infallible;
use std::fs::OpenOptions;
use std::io::IsTerminal;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::str::FromStr;

use tracing_appender::non_blocking::WorkerGuard;
use tracing_subscriber::filter::{FilterExt, LevelFilter, ParseError, filter_fn};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

use crate::render::wants_colours;

/// The target of the audit's events, by which they are told from all others.
pub(crate) const AUDIT: &str = "audit";

/// Where the audit goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum AuditTarget {
    /// To wherever log lines go.
    Log,
    /// To the system's journal.
    Journal,
    /// To the end of this file, a line of JSON for each event.
    File(PathBuf),
}

/// Has the rest of the audit written when it is dropped.
#[derive(Debug)]
pub(crate) struct AuditWriter(#[expect(dead_code, reason = "what counts is when it is dropped")] Option<WorkerGuard>);

impl FromStr for AuditTarget {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text {
            "log" => Self::Log,
            "journal" => Self::Journal,
            file => Self::File(file.into()),
        })
    }
}

/// Starts logging. `filter` is a level or a list of `module=level`; it does not hold for the audit.
pub(crate) fn start(filter: Option<&str>, audit: Option<&AuditTarget>) -> Result<AuditWriter, LogError> {
    let is_audit = || filter_fn(|metadata| metadata.target() == AUDIT);
    let with_audit = audit == Some(&AuditTarget::Log);
    let audit_too = filter_fn(move |metadata| with_audit && metadata.target() == AUDIT);
    let levels = parse(filter.unwrap_or("info"))?.and(is_audit().not()).or(audit_too);
    let mut layers = vec![match stderr_is_the_journal().then(tracing_journald::layer) {
        Some(Ok(journal)) => journal.with_filter(levels).boxed(),
        _ => {
            let colours = wants_colours(std::io::stderr().is_terminal());
            let stderr = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(colours).with_target(false);
            stderr.with_filter(levels).boxed()
        }
    }];
    let mut guard = None;
    match audit {
        Some(AuditTarget::Journal) => {
            layers.push(tracing_journald::layer().map_err(LogError::Journal)?.with_filter(is_audit()).boxed());
        }
        Some(AuditTarget::File(path)) => {
            let opened = OpenOptions::new().append(true).create(true).mode(0o600).open(path);
            let file = opened.map_err(|source| LogError::AuditFile { path: path.clone(), source })?;
            // A disk may take its time, and nobody waits for it; if it takes too long, events are lost.
            let (writer, worker) = tracing_appender::non_blocking(file);
            guard = Some(worker);
            let json = tracing_subscriber::fmt::layer().json().flatten_event(true).with_level(false).with_target(false);
            layers.push(json.with_writer(writer).with_filter(is_audit()).boxed());
        }
        Some(AuditTarget::Log) | None => {}
    }
    // A second start, as in a test, keeps the first one's settings.
    let _ = tracing_subscriber::registry().with(layers).try_init();
    Ok(AuditWriter(guard))
}

/// The filter is none.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LogError {
    #[error("{text:?} is no log level ({source}): use error, warn, info, debug, trace or off")]
    Filter { text: String, source: ParseError },
    #[error("cannot write the audit to {path:?}: {source}")]
    AuditFile { path: PathBuf, source: std::io::Error },
    #[error("cannot write the audit to the journal: {0}")]
    Journal(std::io::Error),
    #[error("{0:?} is no log level: use error, warn, info, debug, trace or off, or MODULE=LEVEL")]
    Word(String),
}

/// A bare word that is no level would be taken as a module, and silence all others.
fn parse(text: &str) -> Result<EnvFilter, LogError> {
    let is_bare = |part: &&str| !part.is_empty() && !part.contains(['=', '[', '{', '}', ']']);
    if let Some(word) = text.split(',').filter(is_bare).find(|word| word.parse::<LevelFilter>().is_err()) {
        return Err(LogError::Word(word.to_owned()));
    }
    EnvFilter::builder().parse(text).map_err(|source| LogError::Filter { text: text.to_owned(), source })
}

/// systemd names the journal's device and inode (systemd.exec(5), `$JOURNAL_STREAM`); a redirected stderr has others.
fn stderr_is_the_journal() -> bool {
    let Ok(variable) = std::env::var("JOURNAL_STREAM") else {
        return false;
    };
    rustix::fs::fstat(std::io::stderr()).is_ok_and(|stat| variable == format!("{}:{}", stat.st_dev, stat.st_ino))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_word_is_a_level_or_refused() {
        for text in ["trace", "debug", "info", "warn", "error", "off", "INFO", "info,weft_dataplane=debug", "[span]=info"] {
            assert!(parse(text).is_ok(), "{text:?} was refused");
        }
        for text in ["bogus", "weft_dataplane", "info,bogus", "weft=debug,bogus"] {
            let message = parse(text).unwrap_err().to_string();
            assert!(message.contains("error, warn, info, debug, trace or off"), "{message}");
        }
        assert!(parse("a=b=c").is_err());
    }
}
