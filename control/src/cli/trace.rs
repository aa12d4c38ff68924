//! `weft trace`.

use std::fmt::Write;
use std::net::Ipv4Addr;

use clap::Args;
use data_encoding::HEXLOWER;
use weft_switch::MacAddr;

use super::{CliError, Output};
use crate::api::{self, Named};
use crate::client::Client;
use crate::refusal::Refusal;
use crate::render::Style;
use crate::trace::{TraceAnswer, TraceAsked};
use crate::values::{Name, ValueError};
use crate::vlans::{VlanName, VlanRef};

/// EtherType for local experiments (IEEE 802-2014, 9.2.4).
const EXPERIMENT: u16 = 0x88b5;

/// What a tag can name, and what it can't.
#[derive(Clone, Debug)]
enum TracedVlan {
    Number(u16),
    Named(VlanName),
}

#[derive(Debug, Args)]
pub(super) struct TraceArgs {
    /// The port whose guest would send the frame.
    port: Name,
    /// The whole frame in hexadecimal, as Wireshark's "Copy as Hex Stream" has it, instead of its parts.
    #[arg(long, value_name = "HEX", conflicts_with_all = ["src", "dst", "vlan", "ethertype", "src_ip", "dst_ip", "tcp", "udp"])]
    frame: Option<String>,
    /// Whom it is for.
    #[arg(long, value_name = "MAC", default_value = "ff:ff:ff:ff:ff:ff")]
    dst: MacAddr,
    /// Whom it is from [default: the guest].
    #[arg(long, value_name = "MAC")]
    src: Option<MacAddr>,
    /// With a tag that names this VLAN: 0 to 4095, or a name of the network's.
    #[arg(long, value_parser = traced_vlan)]
    vlan: Option<TracedVlan>,
    /// Its type, as 0x88b5 [default: IPv4, if there is anything of that].
    #[arg(long, value_name = "TYPE", value_parser = ether_type)]
    ethertype: Option<u16>,
    /// An IPv4 packet from this address [default: 0.0.0.0, if it is one].
    #[arg(long, value_name = "ADDRESS")]
    src_ip: Option<Ipv4Addr>,
    /// An IPv4 packet for this address [default: 0.0.0.0, if it is one].
    #[arg(long, value_name = "ADDRESS")]
    dst_ip: Option<Ipv4Addr>,
    /// For this TCP port.
    #[arg(long, value_name = "PORT", conflicts_with = "udp", value_parser = port_number)]
    tcp: Option<u16>,
    /// For this UDP port.
    #[arg(long, value_name = "PORT", value_parser = port_number)]
    udp: Option<u16>,
}

pub(super) fn trace(args: &TraceArgs, client: &mut Client, output: &Output) -> Result<(), CliError> {
    let port = args.port.clone();
    let frame = match &args.frame {
        Some(frame) => frame.clone(),
        None => {
            let info = client.call::<api::ShowPort>(&Named { name: port.clone() })?;
            let vlan = match &args.vlan {
                None => None,
                Some(TracedVlan::Number(number)) => Some(*number),
                Some(TracedVlan::Named(name)) => {
                    let names = client.call::<api::ShowNetwork>(&Named { name: info.network })?.vlan_names;
                    let vlan = names.resolve(&VlanRef::Named(name.clone())).map_err(|vlan| Refusal::NoSuchVlan { vlan })?;
                    Some(vlan.number())
                }
            };
            HEXLOWER.encode(&args.build(args.src.unwrap_or(info.mac), vlan))
        }
    };
    let answer = client.call::<api::TraceFrame>(&TraceAsked { port, frame })?;
    output.show(&answer, text)
}

impl TraceArgs {
    fn build(&self, src: MacAddr, vlan: Option<u16>) -> Vec<u8> {
        let mut frame = [self.dst.0, src.0].concat();
        if let Some(vlan) = vlan {
            frame.extend([0x81, 0]);
            frame.extend(vlan.to_be_bytes());
        }
        let transport = self.tcp.map(|port| (6, 20, port)).or(self.udp.map(|port| (17, 8, port)));
        let is_ip = self.src_ip.is_some() || self.dst_ip.is_some() || transport.is_some();
        frame.extend(self.ethertype.unwrap_or(if is_ip { 0x0800 } else { EXPERIMENT }).to_be_bytes());
        if is_ip {
            let (protocol, len, port) = transport.unwrap_or((253, 0, 0));
            let any = Ipv4Addr::UNSPECIFIED;
            // RFC 791, section 3.1, with the protocol for experiments (RFC 3692) if there is none.
            let mut header = [0x45, 0, 0, 20 + len, 0, 0, 0, 0, 64, protocol, 0, 0].to_vec();
            header.extend(self.src_ip.unwrap_or(any).octets());
            header.extend(self.dst_ip.unwrap_or(any).octets());
            let sum = header.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum::<u32>();
            let sum = (sum & 0xffff) + (sum >> 16);
            // No truncation: ten words have one carry at most.
            header[10..12].copy_from_slice(&(!(sum as u16)).to_be_bytes());
            frame.extend(header);
            if len > 0 {
                frame.extend(49_152_u16.to_be_bytes());
                frame.extend(port.to_be_bytes());
                frame.extend(if protocol == 17 {
                    vec![0, 8, 0, 0]
                } else {
                    vec![0, 0, 0, 0, 0, 0, 0, 0, 0x50, 2, 0xff, 0xff, 0, 0, 0, 0]
                });
            }
        }
        frame.resize(frame.len().max(60), 0);
        frame
    }
}

fn text(_: Style, answer: &TraceAnswer) -> String {
    let mut text = String::new();
    for line in &answer.steps {
        // Into a string, which takes everything.
        let _ = writeln!(text, "{:>8}: {}", line.stage, line.says);
    }
    let mut ends: Vec<String> = answer.gateway.then(|| "the gateway".to_owned()).into_iter().collect();
    ends.extend(answer.receivers.iter().map(|receiver| match &receiver.tag {
        Some(tag) => format!("port {} (tagged {tag})", receiver.port),
        None => format!("port {}", receiver.port),
    }));
    text + &if ends.is_empty() { "Nobody gets it.\n".to_owned() } else { format!("It goes to {}.\n", ends.join(", ")) }
}

fn port_number(text: &str) -> Result<u16, String> {
    text.parse().map_err(|_| "write the number of a port, from 0 to 65535: names are not looked up".to_owned())
}

fn traced_vlan(text: &str) -> Result<TracedVlan, String> {
    match text.parse::<u32>() {
        Ok(number @ ..=4095) => Ok(TracedVlan::Number(number as u16)),
        Ok(_) => Err("a tag names VLANs from 0 to 4095".to_owned()),
        Err(_) => text.parse().map(TracedVlan::Named).map_err(|error: ValueError| error.to_string()),
    }
}

fn ether_type(text: &str) -> Result<u16, String> {
    let parsed = text.strip_prefix("0x").map_or_else(|| text.parse().ok(), |digits| u16::from_str_radix(digits, 16).ok());
    parsed.ok_or_else(|| "a type is a number, as 0x88b5".to_owned())
}
