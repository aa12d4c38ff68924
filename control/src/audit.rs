//! The audit: who was connected with what outside, as events of their own (`logging::AUDIT`).

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tracing::{info, warn};
use weft_switch::nat::audit::Closed;
use weft_switch::nat::{Audit, Protocol};
use weft_switch::{PortId, Timestamp};

use crate::logging::AUDIT;
use crate::switch::Switch;
use crate::values::Name;

/// How often events are fetched while there are networks with a way out.
const INTERVAL: Duration = Duration::from_millis(500);

/// What is known for the audit beside its events.
#[derive(Debug, Default)]
pub(crate) struct AuditTrail {
    next: Timestamp,
    /// Who had a port since when, oldest first: it may be somebody else's when its connections are reported as closed.
    ports: BTreeMap<PortId, Vec<(Timestamp, Name)>>,
}

/// How long it is known who had a port before.
const KNOWN_FOR: Duration = Duration::from_secs(60);

impl AuditTrail {
    /// A port is there.
    pub(crate) fn attach(&mut self, now: Timestamp, port: PortId, name: &Name) {
        let names = self.ports.entry(port).or_default();
        while names.get(1).is_some_and(|(since, _)| now.since(*since) > KNOWN_FOR) {
            names.remove(0);
        }
        names.push((now, name.clone()));
    }

    /// Who had the port of this event when the mapping was opened.
    fn name(&self, event: &Audit) -> Option<&Name> {
        let lasted = event.closed.map_or(Duration::ZERO, |closed| closed.lasted);
        let had_it_then = |(since, _): &&(Timestamp, Name)| since.after(lasted) <= event.at;
        self.ports.get(&event.port)?.iter().rfind(had_it_then).map(|(_, name)| name)
    }
}

impl Switch {
    /// Reports what has happened since it was last called, if it is time, and says when it will be again.
    pub(crate) fn write_audit(&mut self) -> Duration {
        if !self.config.networks.values().any(|network| network.nat().is_some()) {
            return Duration::MAX;
        }
        let now = self.dataplane.now();
        if now >= self.audit.next {
            self.audit.next = now.after(INTERVAL);
            let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            for (name, &id) in &self.networks {
                let (events, lost) = self.dataplane.take_audit(id);
                for event in events {
                    let at = wall.saturating_sub(now.since(event.at));
                    report(name, self.audit.name(&event), &event, at);
                }
                if lost > 0 {
                    warn!(target: AUDIT, network = %name, lost, "events were lost: too many at a time");
                }
            }
        }
        self.audit.next.since(now)
    }
}

/// `at` is the time since 1970.
fn report(network: &Name, port: Option<&Name>, event: &Audit, at: Duration) {
    let at_unix_ms = u64::try_from(at.as_millis()).unwrap_or(u64::MAX);
    let (protocol, port) = (<&'static str>::from(event.protocol), port.map_or("", Name::as_str));
    let (inside, remote) = match event.protocol {
        // An identifier is no port of the far end.
        Protocol::Icmp => (event.inside.to_string(), event.remote.ip().to_string()),
        Protocol::Tcp | Protocol::Udp => (event.inside.to_string(), event.remote.to_string()),
    };
    let outside = event.outside.map(|outside| outside.to_string()).unwrap_or_default();
    let forwarded = event.forwarded;
    match event.closed {
        None => info!(target: AUDIT, at_unix_ms, %network, port, protocol, inside, outside, remote, forwarded, "opened"),
        Some(Closed { reason, from_guest, to_guest, lasted }) => {
            let reason = <&'static str>::from(reason);
            let lasted_ms = u64::try_from(lasted.as_millis()).unwrap_or(u64::MAX);
            info!(
                target: AUDIT, at_unix_ms, %network, port, protocol, inside, outside, remote, forwarded, reason, from_guest_bytes = from_guest,
                to_guest_bytes = to_guest, lasted_ms, "closed"
            );
        }
    }
}
