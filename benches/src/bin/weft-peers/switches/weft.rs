//! weft, from any path and with any arguments.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use super::{Bench, Kind, Started, Switch, SwitchError, first_line};
use crate::process::Program;
use crate::scenario::Scenario;

/// A start answers in milliseconds; a machine that does something else at the same time needs more.
const START_LIMIT: Duration = Duration::from_secs(10);

/// `[NAME=]PATH [ARGUMENT…]`, quoted as for a shell: a binary, and what it is told after `weft run`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct WeftArgument {
    pub(crate) name: String,
    pub(crate) binary: PathBuf,
    pub(crate) args: Vec<String>,
}

/// A build of weft.
pub(crate) struct Weft {
    binary: PathBuf,
    args: Vec<String>,
}

impl FromStr for WeftArgument {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // A path may have an equals sign as well, behind a slash.
        let (name, command) = text.split_once('=').filter(|(name, _)| !name.contains('/')).unwrap_or(("weft", text));
        let mut words = shlex::split(command).ok_or("a quotation mark is missing")?.into_iter();
        let binary = words.next().filter(|path| !path.is_empty()).ok_or("the path of a weft is missing")?;
        if name.is_empty() {
            return Err("the name before the equals sign is missing");
        }
        Ok(Self { name: name.to_owned(), binary: binary.into(), args: words.collect() })
    }
}

impl Weft {
    /// # Errors
    /// A sentence, when there is no such program.
    pub(crate) fn find(argument: WeftArgument) -> Result<Switch, String> {
        let WeftArgument { name, binary, args } = argument;
        if !binary.is_file() {
            return Err(format!(
                "{} is not there: build it with `cargo build --release -p weft`, or name another",
                binary.display()
            ));
        }
        let about = [&[first_line(&binary, &["--version"])], args.as_slice()].concat().join(" ");
        Ok(Switch { name, about, kind: Box::new(Self { binary, args }) })
    }
}

impl Kind for Weft {
    fn start(&self, scenario: &Scenario, dir: &Path, bench: &Bench) -> Result<Started, SwitchError> {
        let config = dir.join("weft.toml");
        let ports: Vec<_> = (0..scenario.ports).map(|port| format!("p{port}")).collect();
        let settings = scenario.weft_ports.iter().copied().chain(std::iter::repeat(""));
        let text: String = ports.iter().zip(settings).map(|(port, said)| format!("[ports.{port}]\n{said}\n")).collect();
        std::fs::write(&config, text).map_err(|source| SwitchError::File { path: config.clone(), source })?;

        let run_dir = dir.join("run");
        let log = dir.join("weft.log");
        // The status that --json prints says that it runs; it logs nothing that begins like this.
        let mut args: Vec<OsString> = vec!["--json".into(), "--run-dir".into(), run_dir.clone().into(), "run".into()];
        args.extend(["--config".into(), config.into()]);
        args.extend(scenario.weft.iter().map(Into::into));
        args.extend(self.args.iter().map(Into::into));
        let program = Program {
            name: "weft",
            path: &self.binary,
            args,
            env: Vec::new(),
            cores: vec![bench.switch_core],
            isolated: false,
            log: log.clone(),
        };
        let mut process = program.start()?;
        let runs = || std::fs::read_to_string(&log).is_ok_and(|text| text.lines().any(|line| line.starts_with('{')));
        process.wait_until("weft to run", START_LIMIT, &bench.interrupt, runs)?;
        let sockets = ports.iter().map(|port| run_dir.join(format!("{port}.sock"))).collect();
        Ok(Started { processes: vec![process], sockets, switch_connects: false })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> WeftArgument {
        text.parse().unwrap()
    }

    #[test]
    fn a_path_alone_is_called_weft() {
        let expected = WeftArgument { name: "weft".to_owned(), binary: "target/release/weft".into(), args: Vec::new() };
        assert_eq!(parsed("target/release/weft"), expected);
        assert_eq!(parsed("/a=b/weft").binary, Path::new("/a=b/weft"));
    }

    #[test]
    fn a_name_and_arguments_may_be_given() {
        let weft = parsed("new='/my builds/weft' --polling always");
        assert_eq!((weft.name.as_str(), weft.binary.as_path()), ("new", Path::new("/my builds/weft")));
        assert_eq!(weft.args, ["--polling", "always"]);
    }

    #[test]
    fn what_is_missing_is_named() {
        for (text, said) in [("new=", "the path"), ("=weft", "the name"), ("new='weft", "a quotation mark")] {
            assert!(text.parse::<WeftArgument>().unwrap_err().starts_with(said), "{text}");
        }
    }
}
