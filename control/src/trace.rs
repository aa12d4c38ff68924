//! `trace`: what would become of a frame, as the control socket has it.

use data_encoding::HEXLOWER_PERMISSIVE;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use weft_switch::MAX_FRAME_LEN;

use crate::rpc::RpcError;
use crate::switch::Switch;
use crate::values::Name;

/// A frame that nobody sends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TraceAsked {
    /// The port whose guest would send it.
    pub port: Name,
    /// The frame without FCS, in hexadecimal; colons and blanks do not matter.
    pub frame: String,
}

/// What would become of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TraceAnswer {
    /// Why, in the order in which it was found out.
    pub steps: Vec<TraceLine>,
    /// Who would get it.
    pub receivers: Vec<TraceReceiver>,
    /// The gateway would see it, before anybody else does.
    pub gateway: bool,
    /// Where it would be counted as dropped.
    pub drops: Vec<TraceDrop>,
}

/// One thing that was found out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TraceLine {
    /// Where: `port`, `guard`, `vlan`, `learn`, `decide`, `gateway`, `multicast`, `isolate`, `release`, `line` or `drop`.
    pub stage: String,
    /// A sentence.
    pub says: String,
}

/// Somebody who would get the frame.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TraceReceiver {
    /// The port.
    pub port: Name,
    /// The VLAN that a tag in front names, if there is one.
    pub tag: Option<String>,
}

/// A place where the frame would be dropped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TraceDrop {
    /// The port that would count it.
    pub port: Name,
    /// One of the drop reasons.
    pub reason: String,
}

impl Switch {
    pub(crate) fn trace_frame(&self, asked: &TraceAsked) -> Result<TraceAnswer, RpcError> {
        let Some(port) = self.ports.get(&asked.port) else { return Err(self.no_port(&asked.port).into()) };
        let frame = bytes(&asked.frame).map_err(RpcError::bad_params)?;
        let names = self.port_names();
        let name = |id| names.get(&id).map_or_else(|| "?".to_owned(), ToString::to_string);
        let traced = self.dataplane.trace(port.id, &frame, &name);
        let traced = traced.ok_or_else(|| RpcError::internal(format!("the dataplane does not know port {:?}", asked.port)))?;
        let receivers = traced.receivers.iter().filter_map(|receiver| {
            let tag = receiver.tag.map(|tag| tag.vlan.to_string());
            Some(TraceReceiver { port: (*names.get(&receiver.port)?).clone(), tag })
        });
        let drops = traced
            .drops
            .iter()
            .filter_map(|(port, reason)| Some(TraceDrop { port: (*names.get(port)?).clone(), reason: reason.name().to_owned() }));
        let (receivers, drops) = (receivers.collect(), drops.collect());
        let steps = traced.steps.into_iter().map(|step| TraceLine { stage: step.stage.to_owned(), says: step.says });
        Ok(TraceAnswer { steps: steps.collect(), receivers, gateway: traced.gateway, drops })
    }
}

/// The bytes of a text in hexadecimal.
fn bytes(text: &str) -> Result<Vec<u8>, String> {
    let mut words = text.split_whitespace();
    let (first, second) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let is_zero = first.len() >= 4 && first.trim_end_matches(':').chars().all(|digit| digit == '0');
    if is_zero && (first.ends_with(':') || second.len() == 2) {
        return Err("this is a dump with offsets, which would be taken for bytes: copy the frame as a hex stream".to_owned());
    }
    let text = text.trim_start().trim_start_matches("0x");
    let digits: String = text.chars().filter(|character| !character.is_whitespace() && *character != ':').collect();
    if let Some(other) = digits.chars().find(|character| !character.is_ascii_hexdigit()) {
        return Err(format!("{other:?} is no hexadecimal digit"));
    }
    let bytes = HEXLOWER_PERMISSIVE.decode(digits.as_bytes()).ok().filter(|bytes| bytes.len() <= MAX_FRAME_LEN);
    bytes.ok_or_else(|| format!("a frame is two hexadecimal digits for each byte, and at most {MAX_FRAME_LEN} of these"))
}
