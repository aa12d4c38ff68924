//! What a client sent, read once into a [`Request`] that can't contradict itself.
//!
//! `dhcproto` reads the fixed part. Options are walked over here: which of them are there has to be known before they are believed,
//! and that crate's decoder gives up silently at the first one it can't read, doesn't look into the fields that option 52 opens,
//! and has assertions about lengths that a client may choose.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use dhcproto::v4::{HType, MAGIC, Message, MessageType, Opcode, OptionCode};
use dhcproto::{Decodable, Decoder};

use super::lease::{ClientId, ClientIdentifier};
use crate::{DropReason, HostName, MacAddr};

/// Bytes before the options: the fixed fields and the magic cookie (RFC 2131, section 3).
const HEADER_LEN: usize = 240;
const SNAME: std::ops::Range<usize> = 44..108;
const FILE: std::ops::Range<usize> = 108..236;
/// The smallest that option 57 may say (RFC 2132, section 9.10), and what holds without it, in bytes with IP and UDP headers.
const MESSAGE_LEN_MIN: u16 = 576;

/// A message from a client.
#[derive(Clone, Debug)]
pub(super) struct Request {
    pub(super) kind: RequestKind,
    pub(super) client: ClientId,
    pub(super) mac: MacAddr,
    /// The address that the client says it uses.
    pub(super) ciaddr: Option<Ipv4Addr>,
    /// The relay agent that passed the message on.
    pub(super) giaddr: Option<Ipv4Addr>,
    /// The client can't take unicast before it has an address.
    pub(super) broadcast: bool,
    /// Option 50.
    pub(super) requested: Option<Ipv4Addr>,
    /// Option 54: the server that the client speaks to.
    pub(super) server: Option<Ipv4Addr>,
    /// Option 51, in seconds.
    pub(super) lease_time: Option<u32>,
    /// Option 55, in the client's order.
    pub(super) parameters: Option<Vec<u8>>,
    /// Option 12, if it is a name.
    pub(super) hostname: Option<HostName>,
    /// Option 118 (RFC 3011).
    pub(super) subnet: Option<Ipv4Addr>,
    /// The largest IP packet that the client takes, in bytes.
    pub(super) message_len_max: u16,
    /// Options that go back as they came: 61 (RFC 6842), 82 (RFC 3046).
    pub(super) client_id: Option<Vec<u8>>,
    pub(super) relay_information: Option<Vec<u8>>,
    /// The fixed fields, for the reply to start from.
    pub(super) header: Message,
}

/// What a client wants. Everything else is for servers or for others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RequestKind {
    Discover,
    Request,
    Decline,
    Release,
    Inform,
}

impl Request {
    /// Reads the payload of a UDP datagram to port 67.
    ///
    /// # Errors
    /// [`DropReason::BadDhcp`] for what is cut short, isn't from a client on Ethernet, lies about a length, or has no type of
    /// message (BOOTP).
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, DropReason> {
        const BAD: DropReason = DropReason::BadDhcp;
        let (fixed, options) = bytes.split_at_checked(HEADER_LEN).ok_or(BAD)?;
        let header = Message::decode(&mut Decoder::new(fixed)).map_err(|_| BAD)?;
        let from_client = header.opcode() == Opcode::BootRequest && header.htype() == HType::Eth && header.hlen() == 6;
        if !from_client || fixed[HEADER_LEN - MAGIC.len()..] != MAGIC {
            return Err(BAD);
        }
        let mac = MacAddr(header.chaddr().try_into().map_err(|_| BAD)?);
        if mac.is_multicast() || mac.is_zero() {
            return Err(BAD);
        }
        let options = Options::parse(fixed, options)?;
        let kind = match options.fixed(OptionCode::MessageType)?.map(|[kind]| MessageType::from(kind)) {
            Some(MessageType::Discover) => RequestKind::Discover,
            Some(MessageType::Request) => RequestKind::Request,
            Some(MessageType::Decline) => RequestKind::Decline,
            Some(MessageType::Release) => RequestKind::Release,
            Some(MessageType::Inform) => RequestKind::Inform,
            _ => return Err(BAD),
        };
        let address = |code| Ok(options.fixed::<4>(code)?.map(Ipv4Addr::from));
        // Too short to be one (RFC 2132, section 9.14): the client is known by its MAC address, and gets it back all the same.
        let client_id = options.echoed(OptionCode::ClientIdentifier)?;
        let identifier = client_id.as_deref().and_then(ClientIdentifier::new);
        Ok(Self {
            kind,
            client: identifier.map_or(ClientId::Mac(mac), ClientId::Identifier),
            mac,
            ciaddr: specified(header.ciaddr()),
            giaddr: specified(header.giaddr()),
            broadcast: header.flags().broadcast(),
            requested: address(OptionCode::RequestedIpAddress)?.and_then(specified),
            server: address(OptionCode::ServerIdentifier)?,
            lease_time: options.fixed(OptionCode::AddressLeaseTime)?.map(u32::from_be_bytes),
            parameters: options.variable(OptionCode::ParameterRequestList),
            hostname: options.variable(OptionCode::Hostname).and_then(|bytes| HostName::from_client(&bytes)),
            subnet: address(OptionCode::SubnetSelection)?,
            message_len_max: options
                .fixed(OptionCode::MaxMessageSize)?
                .map_or(MESSAGE_LEN_MIN, |len| u16::from_be_bytes(len).max(MESSAGE_LEN_MIN)),
            client_id,
            relay_information: options.echoed(OptionCode::RelayAgentInformation)?,
            header,
        })
    }
}

fn specified(address: Ipv4Addr) -> Option<Ipv4Addr> {
    (!address.is_unspecified()).then_some(address)
}

/// The options of a message by their codes; those that came in several parts are put together (RFC 3396).
struct Options(BTreeMap<u8, Vec<u8>>);

impl Options {
    fn parse(fixed: &[u8], field: &[u8]) -> Result<Self, DropReason> {
        let mut options = Self(BTreeMap::new());
        options.walk(field)?;
        // RFC 2131, section 4.1: the field `file` first, then `sname`. What they contain can't open further ones.
        let overload = options.fixed::<1>(OptionCode::OptionOverload)?.map_or(0, |[overload]| overload);
        if overload & 1 != 0 {
            options.walk(&fixed[FILE])?;
        }
        if overload & 2 != 0 {
            options.walk(&fixed[SNAME])?;
        }
        Ok(options)
    }

    fn walk(&mut self, mut field: &[u8]) -> Result<(), DropReason> {
        const PAD: u8 = 0;
        const END: u8 = 255;
        while let [code, rest @ ..] = field {
            field = match (*code, rest) {
                (PAD, rest) => rest,
                (END, _) => return Ok(()),
                (code, [len, rest @ ..]) => {
                    let (value, rest) = rest.split_at_checked(usize::from(*len)).ok_or(DropReason::BadDhcp)?;
                    self.0.entry(code).or_default().extend_from_slice(value);
                    rest
                }
                (_, []) => return Err(DropReason::BadDhcp),
            };
        }
        // Without the end option, but nothing of it is missing.
        Ok(())
    }

    /// An option that has exactly `N` bytes if it is there.
    fn fixed<const N: usize>(&self, code: OptionCode) -> Result<Option<[u8; N]>, DropReason> {
        let value = self.0.get(&code.into());
        value.map(|value| value.as_slice().try_into().map_err(|_| DropReason::BadDhcp)).transpose()
    }

    /// An option that goes back as it came, so it must not be longer than one can be.
    fn echoed(&self, code: OptionCode) -> Result<Option<Vec<u8>>, DropReason> {
        let value = self.variable(code);
        if value.as_ref().is_some_and(|value| value.len() > 255) { Err(DropReason::BadDhcp) } else { Ok(value) }
    }

    fn variable(&self, code: OptionCode) -> Option<Vec<u8>> {
        self.0.get(&code.into()).cloned()
    }
}
