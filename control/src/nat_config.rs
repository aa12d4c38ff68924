//! What a configuration says about a network's way out.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use weft_dataplane::NatSettings;

use crate::values::Bounded;

/// Limits and times of a network's way out. Times are in seconds; those that are shorter than the RFCs ask for break programs that rely on them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct NatConfig {
    /// The most TCP connections, of all guests. Each takes a file descriptor.
    pub connections: Bounded<16, 1_000_000>,
    /// The most mappings of UDP and ICMP echo. Each takes a file descriptor.
    pub mappings: Bounded<16, 65_536>,
    /// After how long an idle connection's guest is asked whether it is still there: 7,440 or more (RFC 5382, REQ-5).
    pub tcp_established_seconds: Bounded<60, 2_592_000>,
    /// After how long a connection that is being opened or closed is given up: 240 or more (RFC 5382, REQ-5).
    pub tcp_transitory_seconds: Bounded<10, 3_600>,
    /// How long a UDP mapping outlives the guest's last datagram: 120 or more (RFC 4787, REQ-5).
    pub udp_seconds: Bounded<10, 86_400>,
    /// The same for ICMP echo: 60 or more (RFC 5508, REQ-2).
    pub icmp_seconds: Bounded<5, 3_600>,
}

impl NatConfig {
    /// The settings that are declared.
    #[must_use]
    pub fn settings(&self) -> NatSettings {
        let seconds = |value: u32| Duration::from_secs(value.into());
        let mut settings = NatSettings {
            connections: self.connections.value(),
            mappings: self.mappings.value(),
            tcp_established: seconds(self.tcp_established_seconds.value()),
            tcp_transitory: seconds(self.tcp_transitory_seconds.value()),
            echo_timeout: seconds(self.icmp_seconds.value()),
            ..NatSettings::default()
        };
        settings.udp.timeout = seconds(self.udp_seconds.value());
        settings
    }

    pub(crate) fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl Default for NatConfig {
    fn default() -> Self {
        Self {
            connections: Bounded::of::<32_768>(),
            mappings: Bounded::of::<8_192>(),
            tcp_established_seconds: Bounded::of::<7_440>(),
            tcp_transitory_seconds: Bounded::of::<240>(),
            udp_seconds: Bounded::of::<300>(),
            icmp_seconds: Bounded::of::<60>(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_said_is_what_the_dataplane_has_by_itself() {
        assert_eq!(NatConfig::default().settings(), NatSettings::default());
    }

    #[test]
    fn every_key_arrives() {
        let text = "connections = 16\nmappings = 17\ntcp_established_seconds = 61\ntcp_transitory_seconds = 11\nudp_seconds = 12\nicmp_seconds = 6\n";
        let NatSettings { connections, mappings, tcp_established, tcp_transitory, udp, echo_timeout } =
            toml::from_str::<NatConfig>(text).unwrap().settings();
        assert_eq!((connections, mappings), (16, 17));
        let seconds = [tcp_established, tcp_transitory, udp.timeout, echo_timeout].map(|time| time.as_secs());
        assert_eq!(seconds, [61, 11, 12, 6]);
    }
}
