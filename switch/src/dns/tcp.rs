//! DNS over TCP: a length of two bytes before every message (RFC 1035, section 4.2.2; RFC 7766).

use crate::DropReason;

/// No message is shorter than a header.
const MESSAGE_LEN_MIN: usize = 12;

/// Takes messages out of a stream of bytes. What is kept is less than one message.
#[derive(Clone, Debug, Default)]
pub struct TcpFrames {
    /// The length, and what has come of a message.
    incomplete: Vec<u8>,
}

impl TcpFrames {
    /// Takes the next bytes of the stream, in whatever pieces they come; `deliver` gets every message that is complete with them.
    ///
    /// # Errors
    /// [`DropReason::BadDns`] for a message shorter than a header: whoever sends it speaks something else, and the connection is to be
    /// closed.
    pub fn feed(&mut self, mut bytes: &[u8], mut deliver: impl FnMut(&[u8])) -> Result<(), DropReason> {
        while let [first, rest @ ..] = bytes {
            let &[high, low, ..] = self.incomplete.as_slice() else {
                self.incomplete.push(*first);
                bytes = rest;
                continue;
            };
            let len = usize::from(u16::from_be_bytes([high, low]));
            if len < MESSAGE_LEN_MIN {
                return Err(DropReason::BadDns);
            }
            let (taken, rest) = bytes.split_at(bytes.len().min(2 + len - self.incomplete.len()));
            self.incomplete.extend_from_slice(taken);
            bytes = rest;
            if self.incomplete.len() == 2 + len {
                deliver(&self.incomplete[2..]);
                self.incomplete.clear();
            }
        }
        Ok(())
    }

    /// True if the stream may end here.
    #[must_use]
    pub fn is_at_boundary(&self) -> bool {
        self.incomplete.is_empty()
    }
}

/// A message as it goes into a stream. Messages here are never longer than 65,535 bytes.
#[must_use]
pub fn tcp_frame(message: &[u8]) -> Vec<u8> {
    [&(message.len() as u16).to_be_bytes(), message].concat()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn messages_come_out_as_they_went_in_however_the_stream_is_cut(
            messages in prop::collection::vec(prop::collection::vec(any::<u8>(), 12..300), 0..6),
            cuts in prop::collection::vec(1..40usize, 1..20),
        ) {
            let stream: Vec<u8> = messages.iter().flat_map(|message| tcp_frame(message)).collect();
            let (mut frames, mut out, mut rest) = (TcpFrames::default(), Vec::new(), &stream[..]);
            for cut in cuts.iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let (piece, after) = rest.split_at(rest.len().min(*cut));
                frames.feed(piece, |message| out.push(message.to_vec())).unwrap();
                rest = after;
            }
            prop_assert_eq!(out, messages);
            prop_assert!(frames.is_at_boundary());
        }

        #[test]
        fn what_is_kept_is_bounded(bytes in prop::collection::vec(any::<u8>(), 0..3000)) {
            let mut frames = TcpFrames::default();
            let _ = frames.feed(&bytes, |message| assert!(message.len() >= MESSAGE_LEN_MIN));
            prop_assert!(frames.incomplete.len() < 2 + 65_535);
        }
    }

    #[test]
    fn the_longest_message_passes_and_one_without_a_header_ends_the_stream() {
        let mut frames = TcpFrames::default();
        let mut lengths = Vec::new();
        frames.feed(&tcp_frame(&[7; 65_535]), |message| lengths.push(message.len())).unwrap();
        assert_eq!(lengths, [65_535]);
        for short in [1, 11] {
            assert_eq!(frames.clone().feed(&tcp_frame(&vec![0; short]), |_| panic!()), Err(DropReason::BadDns));
        }
    }
}
