//! The mapping of one ICMP echo identifier inside (RFC 5508, section 3.1), and the messages that pass it.

use std::time::Duration;

use crate::wire::internet_checksum;
use crate::{DropReason, Timestamp};

/// Bytes of an echo message's header.
pub const HEADER_LEN: usize = 8;
const ECHO_REPLY: u8 = 0;
const ECHO_REQUEST: u8 = 8;

/// How long a mapping lives after the guest's last request: at least 60 s (RFC 5508, REQ-2).
pub const TIMEOUT: Duration = Duration::from_secs(60);

/// An echo request of a guest's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// What the guest tells its queries apart by.
    pub identifier: u16,
}

impl Request {
    /// Reads a whole ICMP message.
    ///
    /// # Errors
    /// [`DropReason::BadTransport`] for one that is cut short or has a wrong checksum (RFC 5508, REQ-3),
    /// [`DropReason::UnsupportedProtocol`] for anything but an echo request.
    pub fn parse(message: &[u8]) -> Result<Self, DropReason> {
        let header: &[u8; HEADER_LEN] = message.first_chunk().ok_or(DropReason::BadTransport)?;
        if internet_checksum(&[message]) != 0 {
            return Err(DropReason::BadTransport);
        }
        if header[..2] != [ECHO_REQUEST, 0] {
            return Err(DropReason::UnsupportedProtocol);
        }
        Ok(Self { identifier: u16::from_be_bytes([header[4], header[5]]) })
    }
}

/// Turns an answer from the outside into one that the guest knows: a message with its identifier, the checksum complete. `None` for what is no
/// echo reply.
#[must_use]
pub fn reply(message: &[u8], identifier: u16) -> Option<Vec<u8>> {
    let (header, data) = message.split_first_chunk::<HEADER_LEN>()?;
    if header[..2] != [ECHO_REPLY, 0] {
        return None;
    }
    let [high, low] = identifier.to_be_bytes();
    let mut header = [ECHO_REPLY, 0, 0, 0, high, low, header[6], header[7]];
    let checksum = internet_checksum(&[&header, data]);
    header[2..4].copy_from_slice(&checksum.to_be_bytes());
    Some([&header, data].concat())
}

/// A mapping.
#[derive(Clone, Copy, Debug)]
pub struct Mapping {
    used: Timestamp,
    timeout: Duration,
    bytes: (u64, u64),
}

impl Mapping {
    /// The mapping of a guest that is about to ask.
    #[must_use]
    pub fn new(now: Timestamp, timeout: Duration) -> Self {
        Self { used: now, timeout, bytes: (0, 0) }
    }

    /// The guest asks. That keeps the mapping alive; answers and errors don't (RFC 5508, REQ-6).
    pub fn outbound(&mut self, now: Timestamp, len: usize) {
        self.used = now;
        self.bytes.0 += len as u64;
    }

    /// An answer goes to the guest.
    pub fn inbound(&mut self, len: usize) {
        self.bytes.1 += len as u64;
    }

    /// When it ends, if the guest stays silent.
    #[must_use]
    pub fn deadline(&self) -> Timestamp {
        self.used.after(self.timeout)
    }

    /// Bytes from and to the guest.
    #[must_use]
    pub fn bytes(&self) -> (u64, u64) {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u8, rest: &[u8]) -> Vec<u8> {
        let mut message = [&[kind, 0, 0, 0], rest].concat();
        let sum = internet_checksum(&[&message]);
        message[2..4].copy_from_slice(&sum.to_be_bytes());
        message
    }

    #[test]
    fn requests_are_told_by_their_identifier_rfc_5508_req_1() {
        let request = message(ECHO_REQUEST, &[0xab, 0xcd, 0, 7, 1, 2, 3]);
        assert_eq!(Request::parse(&request), Ok(Request { identifier: 0xabcd }));
    }

    #[test]
    fn what_is_damaged_or_no_request_goes_nowhere_rfc_5508_req_3() {
        let request = message(ECHO_REQUEST, &[0xab, 0xcd, 0, 7, 1, 2, 3]);
        for at in 0..request.len() {
            let mut damaged = request.clone();
            damaged[at] ^= 0x10;
            assert_eq!(Request::parse(&damaged), Err(DropReason::BadTransport), "byte {at}");
            assert!(Request::parse(&request[..at]).is_err());
        }
        // RFC 5508, REQ-11: other queries are left to whoever needs them.
        assert_eq!(Request::parse(&message(13, &[0; 16])), Err(DropReason::UnsupportedProtocol));
    }

    #[test]
    fn an_answer_comes_back_under_the_guests_identifier() {
        let answer = message(ECHO_REPLY, &[0x11, 0x11, 0, 7, 1, 2, 3]);
        assert_eq!(reply(&answer, 0xabcd).unwrap(), message(ECHO_REPLY, &[0xab, 0xcd, 0, 7, 1, 2, 3]));
        assert_eq!(reply(&message(ECHO_REQUEST, &[0; 4]), 1), None);
        assert_eq!(reply(&answer[..7], 1), None);
    }

    #[test]
    fn a_mapping_lives_a_minute_after_the_last_question_rfc_5508_req_2_and_6() {
        let start = Timestamp::from_millis(5);
        let mut mapping = Mapping::new(start, TIMEOUT);
        mapping.outbound(start, 10);
        mapping.inbound(10);
        assert_eq!(mapping.deadline().since(start), Duration::from_secs(60));
        assert_eq!(mapping.bytes(), (10, 10));
    }
}
