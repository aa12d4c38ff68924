//! What goes back to a client: which options, in which order, where to.

use std::net::{Ipv4Addr, SocketAddrV4};

use dhcproto::v4::{
    CLIENT_PORT, DhcpOption, MIN_PACKET_SIZE, MessageType, Opcode, OptionCode, SERVER_PORT, encode_long_opt_bytes,
};
use dhcproto::{Encodable, Encoder};
use hickory_proto::rr::Name;
use ipnet::Ipv4Net;

use super::request::Request;
use super::settings::DhcpSettings;
use crate::wire::Ipv4Draft;
use crate::{DomainName, Egress, HostName, MacAddr, Outgoing, PortId};

/// IP and UDP headers, which count in the length that option 57 limits (RFC 2131, section 2).
const IP_AND_UDP_LEN: u16 = 28;
/// The options of a client that doesn't say which it wants.
const USUAL_PARAMETERS: [OptionCode; 8] = [
    OptionCode::SubnetMask,
    OptionCode::Router,
    OptionCode::DomainNameServer,
    OptionCode::Hostname,
    OptionCode::DomainName,
    OptionCode::InterfaceMtu,
    OptionCode::BroadcastAddr,
    OptionCode::NtpServers,
];

/// An answer, apart from what the request and the settings say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// DHCPOFFER.
    Offer(Grant),
    /// DHCPACK to a request.
    Ack(Grant),
    /// DHCPACK to DHCPINFORM.
    Inform,
    /// DHCPNAK, and why.
    Nak(&'static str),
}

/// An address for a while.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Grant {
    pub(super) address: Ipv4Addr,
    /// In seconds.
    pub(super) lease_time: u32,
    pub(super) hostname: Option<HostName>,
}

impl Answer {
    fn kind(&self) -> MessageType {
        match self {
            Self::Offer(_) => MessageType::Offer,
            Self::Ack(_) | Self::Inform => MessageType::Ack,
            Self::Nak(_) => MessageType::Nak,
        }
    }

    fn grant(&self) -> Option<&Grant> {
        match self {
            Self::Offer(grant) | Self::Ack(grant) => Some(grant),
            Self::Inform | Self::Nak(_) => None,
        }
    }

    /// The frames that carry this answer to a client behind `port`: one, unless the MTU is smaller than any DHCP message.
    pub(super) fn frames(
        &self,
        settings: &DhcpSettings,
        request: &Request,
        port: PortId,
        frame_source: MacAddr,
        identification: u16,
    ) -> impl Iterator<Item = Outgoing> + use<> {
        let (mac, destination) = self.destination(request, frame_source);
        let source = SocketAddrV4::new(settings.server, SERVER_PORT);
        let draft = Ipv4Draft::udp(source, destination, &self.message(settings, request));
        let frames = draft.frames(settings.server_mac, mac, settings.mtu, identification);
        frames.into_iter().map(move |frame| Outgoing { to: Egress::Port(port), frame })
    }

    /// Where the answer goes (RFC 2131, section 4.1). A client that has no address yet can't answer ARP, so the MAC address comes
    /// from its message, and from the frame only for a relay agent.
    fn destination(&self, request: &Request, frame_source: MacAddr) -> (MacAddr, SocketAddrV4) {
        let everybody = (MacAddr::BROADCAST, SocketAddrV4::new(Ipv4Addr::BROADCAST, CLIENT_PORT));
        match (request.giaddr, request.ciaddr, self) {
            (Some(relay), _, _) => (frame_source, SocketAddrV4::new(relay, SERVER_PORT)),
            (None, _, Self::Nak(_)) => everybody,
            (None, Some(client), _) => (request.mac, SocketAddrV4::new(client, CLIENT_PORT)),
            (None, None, _) if request.broadcast => everybody,
            (None, None, answer) => match answer.grant() {
                Some(grant) => (request.mac, SocketAddrV4::new(grant.address, CLIENT_PORT)),
                None => everybody,
            },
        }
    }

    /// The message (RFC 2131, section 4.3, table 3).
    fn message(&self, settings: &DhcpSettings, request: &Request) -> Vec<u8> {
        let mut header = request.header.clone();
        header.set_opcode(Opcode::BootReply).set_hops(0).set_secs(0);
        header.set_siaddr(Ipv4Addr::UNSPECIFIED);
        header.set_yiaddr(self.grant().map_or(Ipv4Addr::UNSPECIFIED, |grant| grant.address));
        if !matches!(self, Self::Ack(_) | Self::Inform) {
            header.set_ciaddr(Ipv4Addr::UNSPECIFIED);
        }
        if matches!(self, Self::Nak(_)) && request.giaddr.is_some() {
            // Section 4.3.2: the relay agent is to broadcast it.
            header.set_flags(header.flags().set_broadcast());
        }
        header.clear_sname();
        header.clear_fname();
        // Encoding fails for names of files and servers that are too long only, and there are none.
        let fixed = header.to_vec().unwrap_or_default();
        let len_max = request.message_len_max.min(settings.mtu.max(576)) - IP_AND_UDP_LEN;
        let mut fields = OptionField::new(fixed, usize::from(len_max), request.relay_information.as_deref());
        fields.push(&DhcpOption::MessageType(self.kind()));
        fields.push(&DhcpOption::ServerIdentifier(settings.server));
        if let Some(grant) = self.grant() {
            fields.push(&DhcpOption::AddressLeaseTime(grant.lease_time));
        }
        if let Some(client_id) = &request.client_id {
            fields.push_raw(OptionCode::ClientIdentifier, client_id);
        }
        match self {
            Self::Nak(why) => fields.push(&DhcpOption::Message((*why).to_owned())),
            _ => self.push_parameters(settings, request, &mut fields),
        }
        fields.finish()
    }

    /// What the client asked for, in its order (RFC 2132, section 9.8), as far as there is room.
    fn push_parameters(&self, settings: &DhcpSettings, request: &Request, fields: &mut OptionField<'_>) {
        if let Some(subnet) = request.subnet {
            fields.push(&DhcpOption::SubnetSelection(subnet));
        }
        let mut codes: Vec<OptionCode> = match &request.parameters {
            Some(codes) => codes.iter().map(|code| OptionCode::from(*code)).collect(),
            None => USUAL_PARAMETERS.to_vec(),
        };
        // RFC 3442: who understands classless routes doesn't get the router as well.
        let routes = codes.contains(&OptionCode::ClasslessStaticRoute) && !settings.routes.is_empty();
        codes.retain(|code| !routes || *code != OptionCode::Router);
        // RFC 2132, section 3.3: the mask stands before the router, if both are there.
        let place = |wanted| codes.iter().position(|code| *code == wanted);
        if let (Some(router), Some(mask)) = (place(OptionCode::Router), place(OptionCode::SubnetMask))
            && router < mask
        {
            codes.remove(mask);
            codes.insert(router, OptionCode::SubnetMask);
        }
        if self.grant().is_some() {
            codes.extend([OptionCode::Renewal, OptionCode::Rebinding]);
        }
        let mut there: Vec<OptionCode> = Vec::new();
        for code in codes {
            if there.contains(&code) {
                continue;
            }
            if let Some(option) = self.parameter(settings, code) {
                fields.push(&option);
            }
            there.push(code);
        }
    }

    fn parameter(&self, settings: &DhcpSettings, code: OptionCode) -> Option<DhcpOption> {
        let list = |addresses: &[Ipv4Addr]| (!addresses.is_empty()).then(|| addresses.to_vec());
        let lease_time = self.grant().map(|grant| grant.lease_time);
        Some(match code {
            OptionCode::SubnetMask => DhcpOption::SubnetMask(settings.subnet.netmask()),
            OptionCode::Router => DhcpOption::Router(vec![settings.router?]),
            OptionCode::DomainNameServer => DhcpOption::DomainNameServer(list(&settings.dns)?),
            OptionCode::Hostname => DhcpOption::Hostname(self.grant()?.hostname.clone()?.into()),
            OptionCode::DomainName => DhcpOption::DomainName(settings.domain.clone()?.into()),
            OptionCode::InterfaceMtu => DhcpOption::InterfaceMtu(settings.mtu),
            OptionCode::BroadcastAddr => DhcpOption::BroadcastAddr(settings.subnet.broadcast()),
            OptionCode::NtpServers => DhcpOption::NtpServers(list(&settings.ntp)?),
            // Section 4.4.5.
            OptionCode::Renewal => DhcpOption::Renewal(lease_time? / 2),
            OptionCode::Rebinding => DhcpOption::Rebinding((u64::from(lease_time?) * 7 / 8) as u32),
            OptionCode::DomainSearch => DhcpOption::DomainSearch(search_list(&settings.search)?),
            OptionCode::ClasslessStaticRoute => DhcpOption::ClasslessStaticRoute(routes(settings)?),
            _ => return None,
        })
    }
}

fn search_list(domains: &[DomainName]) -> Option<Vec<Name>> {
    let names: Vec<Name> = domains.iter().filter_map(|domain| Name::from_ascii(domain.as_str()).ok()).collect();
    (!names.is_empty()).then_some(names)
}

/// RFC 3442: the default route is one of them, because the client will not look at the router option.
fn routes(settings: &DhcpSettings) -> Option<Vec<(Ipv4Net, Ipv4Addr)>> {
    if settings.routes.is_empty() {
        return None;
    }
    let default = settings.router.map(|router| (Ipv4Net::default(), router));
    Some(settings.routes.iter().copied().chain(default).collect())
}

/// Options behind the fixed fields, in a message of limited length.
struct OptionField<'a> {
    bytes: Vec<u8>,
    len_max: usize,
    /// It stands last (RFC 3046, section 2.2), so room is kept for it.
    relay_information: Option<&'a [u8]>,
}

impl<'a> OptionField<'a> {
    fn new(fixed: Vec<u8>, len_max: usize, relay_information: Option<&'a [u8]>) -> Self {
        Self { bytes: fixed, len_max, relay_information }
    }

    /// Adds an option, unless there is no room for it.
    fn push(&mut self, option: &DhcpOption) {
        // None of those that are sent here can fail to be encoded.
        if let Ok(bytes) = option.to_vec() {
            self.push_encoded(&bytes);
        }
    }

    fn push_raw(&mut self, code: OptionCode, value: &[u8]) {
        self.push_encoded(&encode_raw(code, value));
    }

    fn push_encoded(&mut self, bytes: &[u8]) {
        let reserved = self.relay_information.map_or(0, |value| value.len() + 2 * value.len().div_ceil(255));
        // The last byte is for the end option.
        if self.bytes.len() + bytes.len() + reserved < self.len_max {
            self.bytes.extend_from_slice(bytes);
        }
    }

    /// The whole message, long enough for clients that expect BOOTP's length.
    fn finish(mut self) -> Vec<u8> {
        if let Some(value) = self.relay_information.take() {
            self.push_raw(OptionCode::RelayAgentInformation, value);
        }
        self.bytes.push(OptionCode::End.into());
        self.bytes.resize(self.bytes.len().max(MIN_PACKET_SIZE), OptionCode::Pad.into());
        self.bytes
    }
}

/// An option with a value as it came, in as many parts as it needs (RFC 3396).
fn encode_raw(code: OptionCode, value: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    // Writing to memory doesn't fail.
    let _ = encode_long_opt_bytes(code, value, &mut Encoder::new(&mut bytes));
    bytes
}
