//! What would become of a frame, and why.
//!
//! The owner asks the same decisions in the same order as a worker does ([`crate::lane`]), about one frame that nobody has sent: guard, VLAN, forwarding database,
//! isolation, and the VLANs of the receivers. Nothing is learned, counted, used up or sent, and limits are asked about
//! the frame as one, not about segments that it might be cut into. What it says holds for this moment: the next frame may teach something else, and
//! whether a receiver has a buffer free is found out when there is a frame for it.

use weft_switch::gateway::{Interest, SCREENED_LEN};
use weft_switch::loops::is_probe;
use weft_switch::vlan::{OuterTag, Release, TAGGED_HEADER_LEN, Tag, TagKind, Vlan, pop};
use weft_switch::{DropReason, EthernetHeader, Fdb, Learned, MAX_FRAME_LEN, MacAddr, PortId, TAG_LEN, Verdict, foresee};

use crate::dataplane::Dataplane;
use crate::multicast::Foreseen;
use crate::snapshot::{NetworkLink, PortLink, Snapshot};
use crate::vlan::VlanLink;

/// What would become of a frame.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trace {
    /// Why, in the order in which it was found out.
    pub steps: Vec<TraceStep>,
    /// The ports that it would be handed to.
    pub receivers: Vec<TraceReceiver>,
    /// The gateway would see it, before anybody else does.
    pub gateway: bool,
    /// Where it would be counted as dropped, and why.
    pub drops: Vec<(PortId, DropReason)>,
}

/// One thing that was found out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceStep {
    /// Where: `port`, `guard`, `vlan`, `learn`, `decide`, `gateway`, `multicast`, `isolate`, `release`, `line`, `drop`.
    pub stage: &'static str,
    /// A sentence.
    pub says: String,
}

/// Somebody who would get the frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceReceiver {
    /// The port.
    pub port: PortId,
    /// With this tag in front.
    pub tag: Option<Tag>,
}

/// A trace that is being made.
struct Tracer<'a> {
    dataplane: &'a Dataplane,
    /// What workers would be shown now.
    snapshot: Snapshot,
    ingress: &'a PortLink,
    name: &'a dyn Fn(PortId) -> String,
    trace: Trace,
}

/// Where a frame is, on a network with VLANs.
#[derive(Clone, Copy)]
struct InVlan<'a> {
    vlans: &'a VlanLink,
    vlan: Vlan,
    /// It would arrive with a tag of its own, which the receiver would take for the switch's.
    hides_tag: bool,
    /// For those who get it tagged.
    tag: Tag,
}

/// The frame ends here, for this reason.
type Passes<T> = Result<T, DropReason>;

impl Dataplane {
    /// What would become of a frame if the guest on `port` sent it now. `name` says what ports are called. Nothing, if there is no such port.
    #[must_use]
    pub fn trace(&self, port: PortId, frame: &[u8], name: &dyn Fn(PortId) -> String) -> Option<Trace> {
        let ingress = self.fabric.links.get(port.index())?.as_ref()?;
        let snapshot = self.fabric.snapshot_now();
        let mut tracer = Tracer { dataplane: self, snapshot, ingress, name, trace: Trace::default() };
        if let Err(reason) = tracer.follow(frame) {
            tracer.drop_at(port, reason);
        }
        Some(tracer.trace)
    }
}

impl Tracer<'_> {
    fn say(&mut self, stage: &'static str, says: impl Into<String>) {
        self.trace.steps.push(TraceStep { stage, says: says.into() });
    }

    fn drop_at(&mut self, port: PortId, reason: DropReason) {
        self.say("drop", format!("{}, counted on port {}", reason.name(), (self.name)(port)));
        self.trace.drops.push((port, reason));
    }

    /// As [`crate::lane::Lane::poll_ring`] and what comes after it.
    fn follow(&mut self, frame: &[u8]) -> Passes<()> {
        let now = self.dataplane.clock.now();
        let ingress = self.ingress;
        if ingress.rings.from_guest.is_empty() {
            self.say("port", "no guest runs here; this is what would become of the frame if there were one");
        }
        if ingress.shut() == Some(DropReason::MonitorPort) {
            self.say("port", "it is the end of a mirror");
            return Err(DropReason::MonitorPort);
        }
        if frame.len() > MAX_FRAME_LEN {
            return Err(DropReason::TooLong);
        }
        let bytes: &[u8; EthernetHeader::LEN] = frame.first_chunk().ok_or(DropReason::TooShort)?;
        if ingress.lines.from_guest.is_some() {
            self.say(
                "line",
                "it enters the line of its port, which may delay, change or lose it; this is what becomes of what gets through",
            );
        }
        if ingress.guard.as_ref().is_some_and(|guard| guard.bars) {
            self.say("port", "it is paused: its guest connects it with another one");
            return Err(DropReason::LoopPaused);
        }
        if let Some(guard) = &ingress.guard {
            let mut said = Vec::new();
            let passes = guard.foresee(frame, now, |what, found| {
                said.push(match found {
                    Ok(()) => format!("{what}: nothing is wrong"),
                    Err(reason) => format!("{what}: {}", reason.name()),
                });
            });
            said.into_iter().for_each(|line| self.say("guard", line));
            passes?;
        }
        let snapshot = std::mem::take(&mut self.snapshot);
        let Some(network) = snapshot.network(ingress.network) else { return Err(DropReason::NoOtherPort) };
        match &network.vlans {
            None => self.decide(&snapshot, bytes, (frame, frame.len()), &network.fdb, None, true),
            Some(vlans) => self.follow_by_vlan(&snapshot, vlans, bytes, frame),
        }
    }

    fn follow_by_vlan(
        &mut self,
        snapshot: &Snapshot,
        vlans: &VlanLink,
        bytes: &[u8; EthernetHeader::LEN],
        frame: &[u8],
    ) -> Passes<()> {
        let ether_type = u16::from_be_bytes([bytes[12], bytes[13]]);
        let tag = match (TagKind::of(ether_type), frame.get(EthernetHeader::LEN..TAGGED_HEADER_LEN)) {
            (None, _) => None,
            (Some(_), rest) => rest
                .and_then(|rest| OuterTag::of(ether_type, rest.try_into().ok()?))
                .map_or(Err(DropReason::TooShort), |tag| Ok(Some(tag)))?,
        };
        let admitted = vlans.role(self.ingress).admit(tag)?;
        let how = match (tag, admitted.taken_off) {
            (None, _) => "it has no tag",
            (Some(tag), true) if tag.number() == 0 => "its tag names none and is taken off",
            (Some(_), true) => "its tag says so and is taken off",
            (Some(_), false) => "its own tags are carried as they are",
        };
        self.say("vlan", format!("it belongs to VLAN {}: {how}", admitted.vlan));
        let Some(fdb) = vlans.fdb(admitted.vlan) else { return Err(DropReason::VlanNotAllowed) };
        let (header, len) = match tag.filter(|_| admitted.taken_off) {
            Some(tag) => (pop(bytes, tag), frame.len() - TAG_LEN),
            None => (*bytes, frame.len()),
        };
        let rest = &frame[EthernetHeader::LEN + (frame.len() - len)..];
        let inner = [&header[..], rest].concat();
        let in_vlan = InVlan { vlans, vlan: admitted.vlan, hides_tag: admitted.hides_tag, tag: admitted.tag() };
        let is_gateways = admitted.vlan == vlans.tables.default_vlan();
        self.decide(snapshot, &header, (&inner, len), fdb, Some(in_vlan), is_gateways)
    }

    /// As [`crate::lane::Lane::carry_out`].
    fn decide(
        &mut self,
        snapshot: &Snapshot,
        bytes: &[u8; EthernetHeader::LEN],
        (frame, len): (&[u8], usize),
        fdb: &Fdb,
        vlan: Option<InVlan<'_>>,
        is_gateways: bool,
    ) -> Passes<()> {
        let (ingress, now) = (self.ingress, self.dataplane.clock.now());
        let Some(network) = snapshot.network(ingress.network) else { return Err(DropReason::NoOtherPort) };
        let header = EthernetHeader::parse(bytes);
        let [a, b, c, d, e, f, g, h, i, j, k, l, ..] = *bytes;
        let (destination, source) = (MacAddr([a, b, c, d, e, f]), MacAddr([g, h, i, j, k, l]));
        let (verdict, learned) = foresee(now, ingress.id, &header, fdb);
        if let Some(learned) = learned {
            let says = self.learning(learned);
            self.say("learn", format!("{source} {says}"));
        }
        let gateway = network.gateway.as_ref().filter(|_| is_gateways);
        let interest = gateway.map(|gateway| gateway.screen.interest(&frame[..frame.len().min(SCREENED_LEN)]));
        let is_tagged = TagKind::of(u16::from_be_bytes([bytes[12], bytes[13]])).is_some();
        let mut receivers: Vec<PortId> = match verdict {
            Verdict::Drop(reason) => return Err(reason),
            Verdict::To(_) if gateway.is_some() && bytes[12..] == [0x08, 0x06] => {
                self.say("decide", "ARP is for the gateway to look at");
                self.trace.gateway = true;
                return Ok(());
            }
            Verdict::To(_) if is_tagged && interest.is_some_and(|interest| interest != Interest::Foreign) => {
                self.say("decide", "what is behind a tag that names no VLAN is for the gateway to look at");
                self.trace.gateway = true;
                return Ok(());
            }
            Verdict::To(PortId::GATEWAY) => {
                self.say("decide", format!("{destination} is the gateway's"));
                self.trace.gateway = true;
                return Ok(());
            }
            Verdict::To(port) => {
                self.say("decide", format!("{destination} is behind port {}", (self.name)(port)));
                if snapshot.port(port).is_none_or(|link| link.network != ingress.network) {
                    return Err(DropReason::ReceiverDown);
                }
                vec![port]
            }
            Verdict::Flood if is_probe(bytes) => {
                self.say("decide", "it is a probe for loops, which goes nowhere");
                return Err(DropReason::LoopProbe);
            }
            Verdict::Flood => match self.flood(network, destination, (frame, len), vlan, interest)? {
                Some(receivers) => receivers,
                None => return Ok(()),
            },
        };
        receivers.sort_unstable();
        self.release(snapshot, receivers, vlan)
    }

    /// Who gets a frame that is for many, or for nobody known. Nobody yet, if somebody looks at it first.
    fn flood(
        &mut self,
        network: &NetworkLink,
        destination: MacAddr,
        (frame, len): (&[u8], usize),
        vlan: Option<InVlan<'_>>,
        interest: Option<Interest>,
    ) -> Passes<Option<Vec<PortId>>> {
        let (ingress, now) = (self.ingress, self.dataplane.clock.now());
        if !destination.is_multicast() {
            self.say("decide", format!("nobody knows where {destination} is: it is for everybody"));
            if let Some(guard) = &ingress.guard {
                guard.foresee_unknown(len, now)?;
            }
        } else {
            let whom = if destination.0 == [0xff; 6] { "for everybody" } else { "for a group" };
            self.say("decide", format!("{destination} is {whom}"));
        }
        match interest {
            None | Some(Interest::Foreign) => {}
            Some(Interest::Own) => {
                self.say("gateway", "it is for the gateway");
                self.trace.gateway = true;
                return Ok(None);
            }
            Some(Interest::Shared) => {
                self.say("gateway", "the gateway sees it first; if it has nothing to say, the frame goes on");
                self.trace.gateway = true;
            }
        }
        let others = |port: &PortId| *port != ingress.id;
        let snooper = network.snooper.as_ref().filter(|_| destination.is_multicast() && !self.trace.gateway);
        match snooper.map(|snooper| snooper.foresee(frame, vlan.map(|of| of.vlan))) {
            Some(Foreseen::Message) => {
                self.say("multicast", "it says something about groups, which weft looks at before it goes to whom that concerns");
                Ok(None)
            }
            Some(Foreseen::Named(mut ports)) => {
                ports.retain(others);
                self.say("multicast", "it goes to those who asked for the group, and to routers");
                if ports.is_empty() {
                    return Err(DropReason::NoMember);
                }
                Ok(Some(ports))
            }
            None | Some(Foreseen::Everybody) => {
                let found: Vec<_> = match vlan {
                    None => network.members.iter().copied().filter(others).collect(),
                    Some(of) => of.vlans.members(of.vlan).filter(others).collect(),
                };
                if found.is_empty() && !self.trace.gateway {
                    return Err(DropReason::NoOtherPort);
                }
                Ok(Some(found))
            }
        }
    }

    /// As [`crate::lane::Lane::isolate`], `transmit_batch` and `transmit_by_vlan`.
    fn release(&mut self, snapshot: &Snapshot, mut receivers: Vec<PortId>, vlan: Option<InVlan<'_>>) -> Passes<()> {
        let had_some = !receivers.is_empty();
        receivers.retain(|id| {
            let reaches = snapshot.port(*id).is_none_or(|to| self.ingress.isolation.reaches(to.isolation));
            if !reaches {
                self.say("isolate", format!("not to port {}: the two are isolated from each other", (self.name)(*id)));
            }
            reaches
        });
        if had_some && receivers.is_empty() && !self.trace.gateway {
            return Err(DropReason::Isolated);
        }
        for id in receivers {
            let Some(port) = snapshot.port(id) else { continue };
            let name = (self.name)(id);
            let tag = match vlan {
                None => None,
                Some(of) => match of.vlans.role(port).release(of.vlan, of.hides_tag) {
                    Ok(Release::Untagged) => None,
                    Ok(Release::Tagged) => Some(of.tag),
                    Err(reason) => {
                        self.drop_at(id, reason);
                        continue;
                    }
                },
            };
            let with = tag.map_or("without a tag of the switch".to_owned(), |tag| format!("with the tag of VLAN {}", tag.vlan));
            let is_ready = port.rings.to_guest.iter().any(|ring| ring.is_enabled() && !ring.is_broken());
            if let Some(reason) = port.shut().or((!is_ready).then_some(DropReason::ReceiverDown)) {
                self.drop_at(id, reason);
                continue;
            }
            self.say("release", if vlan.is_some() { format!("to port {name}, {with}") } else { format!("to port {name}") });
            if port.lines.to_guest.is_some() {
                self.say("line", format!("it enters the line to port {name}, which may delay, change or lose it"));
            }
            self.trace.receivers.push(TraceReceiver { port: id, tag });
        }
        Ok(())
    }

    fn learning(&self, learned: Learned) -> String {
        match learned {
            Learned::Known => "is known to be here".to_owned(),
            Learned::New => "is new, and would be learned".to_owned(),
            Learned::Moved(from) => format!("was behind port {}, and would move", (self.name)(from)),
            Learned::Later => "would be learned later".to_owned(),
            Learned::Reserved => "is the gateway's".to_owned(),
            Learned::Static => "has a static entry for another port, where it stays".to_owned(),
            Learned::Held => "has moved too often, and stays where it is for a while".to_owned(),
            Learned::PortFull(_) => "would not be learned: the port has as many stations as it may".to_owned(),
            Learned::TableFull(_) => "would not be learned: the forwarding database is full".to_owned(),
        }
    }
}
