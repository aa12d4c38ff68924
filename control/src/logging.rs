//! Where log lines go: to the journal when systemd has connected stderr to it, else to stderr as text.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::{LevelFilter, ParseError};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::render::wants_colours;

/// Starts logging. `filter` is a level or a list of `module=level`.
pub(crate) fn start(filter: Option<&str>) -> Result<(), LogError> {
    let registry = tracing_subscriber::registry().with(parse(filter.unwrap_or("info"))?);
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
pub(crate) enum LogError {
    #[error("{text:?} is no log level ({source}): use error, warn, info, debug, trace or off")]
    Filter { text: String, source: ParseError },
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
