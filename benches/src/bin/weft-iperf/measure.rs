//! One run of iperf3, and what it says.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::Path;
use std::time::Duration;

use serde::Serialize;
use serde_json::Value;

use crate::plan::{Case, Direction, Protocol};

/// At the start, before a connection has found its speed, nothing is counted for this long.
const OMIT: Duration = Duration::from_secs(1);
/// How long iperf3 may need beyond its time: to connect, and to exchange results.
pub(crate) const GRACE: Duration = Duration::from_secs(20);

/// What a run came to.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Rate {
    /// What arrived; both ways together where there are two.
    pub(crate) gbit_per_second: Option<f64>,
    /// TCP connections that were opened, used and closed.
    pub(crate) connections_per_second: Option<f64>,
    /// Datagrams that did not.
    pub(crate) lost_percent: Option<f64>,
    /// Segments that TCP sent again.
    pub(crate) retransmits: Option<u64>,
}

/// Why a run has no figures.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MeasureError {
    #[error("iperf3 says: {0}")]
    Refused(String),
    #[error("iperf3 says nothing that is understood: {0}")]
    Unreadable(String),
}

/// The words that begin a run.
pub(crate) fn client_words(target: Ipv4Addr, port: u16, case: Case, duration: Duration, congestion: &str) -> Vec<String> {
    let seconds = |duration: Duration| duration.as_secs().to_string();
    let mut words: Vec<String> = ["iperf3", "--client", &target.to_string(), "--port", &port.to_string(), "--json"]
        .into_iter()
        .chain(["--time", &seconds(duration), "--omit", &seconds(OMIT), "--connect-timeout", "5000"])
        .chain(["--parallel", &case.load.streams.to_string()])
        .map(str::to_owned)
        .collect();
    match case.load.protocol {
        // As fast as it goes.
        Protocol::Udp => words.extend(["--udp", "--bitrate", "0"].map(str::to_owned)),
        Protocol::Tcp | Protocol::Crr => words.extend(["--congestion", congestion].map(str::to_owned)),
    }
    if let Some(bytes) = case.load.datagram {
        words.extend(["--length".to_owned(), bytes.to_string()]);
    }
    match case.direction {
        Direction::Forward => {}
        Direction::Back => words.push("--reverse".to_owned()),
        Direction::Both => words.push("--bidir".to_owned()),
    }
    words
}

/// The words that begin a run of `weft-crr`.
pub(crate) fn crr_words(program: &Path, target: SocketAddrV4, case: Case, duration: Duration) -> Vec<String> {
    let seconds = duration.as_secs().to_string();
    let options = ["--clients", &case.load.streams.to_string(), "--seconds", &seconds].map(str::to_owned);
    [program.display().to_string(), "run".to_owned(), target.to_string()].into_iter().chain(options).collect()
}

/// How long a run may take in all.
pub(crate) fn limit(duration: Duration) -> Duration {
    duration + OMIT + GRACE
}

impl Rate {
    /// Reads what iperf3 printed.
    pub(crate) fn parse(text: &str) -> Result<Self, MeasureError> {
        // A warning may stand before it.
        let json = text.find('{').map_or("", |start| &text[start..]);
        let unreadable = || MeasureError::Unreadable(text.chars().take(300).collect());
        let value: Value = serde_json::from_str(json).map_err(|_| unreadable())?;
        if let Some(error) = value["error"].as_str() {
            return Err(MeasureError::Refused(error.to_owned()));
        }
        let (sent, received) = (&value["end"]["sum_sent"], &value["end"]["sum_received"]);
        let received_back = value["end"]["sum_received_bidir_reverse"]["bits_per_second"].as_f64().unwrap_or(0.0);
        let is_udp = value["start"]["test_start"]["protocol"].as_str() == Some("UDP");
        // Its own count of lost datagrams is wrong when the start is not counted, as of 3.12.
        let lost_percent = || Some(100.0 * (1.0 - received["bytes"].as_f64()? / sent["bytes"].as_f64()?).clamp(0.0, 1.0));
        Ok(Self {
            gbit_per_second: Some((received["bits_per_second"].as_f64().ok_or_else(unreadable)? + received_back) / 1e9),
            connections_per_second: None,
            lost_percent: if is_udp { lost_percent() } else { None },
            retransmits: sent["retransmits"].as_u64(),
        })
    }

    /// Reads what `weft-crr` printed.
    pub(crate) fn parse_crr(text: &str) -> Result<Self, MeasureError> {
        let value: Value = serde_json::from_str(text).map_err(|_| MeasureError::Unreadable(text.chars().take(300).collect()))?;
        let failed = value["failed"].as_u64().unwrap_or(0);
        if failed > 0 {
            return Err(MeasureError::Refused(format!("{failed} connections failed: {}", value["error"])));
        }
        Ok(Self {
            gbit_per_second: None,
            connections_per_second: value["per_second"].as_f64(),
            lost_percent: None,
            retransmits: None,
        })
    }

    /// The figure by which it is compared.
    pub(crate) fn speed(&self) -> f64 {
        self.gbit_per_second.or(self.connections_per_second).unwrap_or(0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Load;

    const CASE: Case =
        Case { load: Load { protocol: Protocol::Udp, streams: 8, datagram: Some(64) }, direction: Direction::Back };

    #[test]
    fn a_run_is_asked_for_in_iperfs_words() {
        let words = client_words(Ipv4Addr::new(10, 0, 0, 2), 5201, CASE, Duration::from_secs(3), "cubic").join(" ");
        let expected = "iperf3 --client 10.0.0.2 --port 5201 --json --time 3 --omit 1 --connect-timeout 5000 --parallel 8 --udp \
                        --bitrate 0 --length 64 --reverse";
        assert_eq!(words, expected);
        let case = Case { load: Load { protocol: Protocol::Tcp, streams: 8, datagram: None }, ..CASE };
        let tcp = client_words(Ipv4Addr::LOCALHOST, 1, case, Duration::ZERO, "cubic");
        assert!(tcp.join(" ").ends_with("--congestion cubic --reverse"), "{tcp:?}");
    }

    #[test]
    fn what_arrived_counts() {
        let text = r#"{"start": {"test_start": {"protocol": "UDP"}}, "end": {
            "sum_sent": {"bytes": 4000, "bits_per_second": 4e9}, "sum_received": {"bytes": 1000, "bits_per_second": 1e9}}}"#;
        let rate = Rate { gbit_per_second: Some(1.0), connections_per_second: None, lost_percent: Some(75.0), retransmits: None };
        assert_eq!(Rate::parse(text).unwrap(), rate);
        let tcp = text.replace("UDP", "TCP").replace("4e9", "4e9, \"retransmits\": 7");
        let rate = Rate { lost_percent: None, retransmits: Some(7), ..rate };
        assert_eq!(Rate::parse(&format!("warning: this is slow\n{tcp}")).unwrap(), rate);
    }

    #[test]
    fn both_ways_at_once_are_one_sum() {
        let text = r#"{"start": {"test_start": {"protocol": "TCP"}}, "end": {"sum_sent": {}, "sum_received": {"bits_per_second": 1e9},
            "sum_received_bidir_reverse": {"bits_per_second": 2e9}}}"#;
        assert_eq!(Rate::parse(text).unwrap().gbit_per_second, Some(3.0));
    }

    #[test]
    fn connections_are_counted_by_the_second() {
        let rate = Rate::parse_crr(r#"{"per_second": 1234.5, "failed": 0}"#).unwrap();
        assert_eq!((rate.speed(), rate.gbit_per_second), (1234.5, None));
        let error = Rate::parse_crr(r#"{"per_second": 1.0, "failed": 2, "error": "refused"}"#).unwrap_err().to_string();
        assert!(error.contains("2 connections failed"), "{error}");
    }

    #[test]
    fn iperfs_own_reason_is_told() {
        let error = Rate::parse(r#"{"start": {}, "end": {}, "error": "unable to connect"}"#).unwrap_err();
        assert_eq!(error.to_string(), "iperf3 says: unable to connect");
        assert!(matches!(Rate::parse("Killed"), Err(MeasureError::Unreadable(_))));
    }
}
