//! Front-ends that keep the owner busy: what one port is given of its time has a bound.

use std::fs::File;
use std::time::{Duration, Instant};

use mio::{Events, Poll};
use rustix::fs::{MemfdFlags, memfd_create};
use vhost::vhost_user::message::VhostUserMemoryRegion;
use weft_dataplane::{Dataplane, PortSettings, PortState, SocketRole, WorkerSettings};
use weft_guest::{Guest, Request, RingPlace, Session, UserAddr};
use weft_switch::{FdbSettings, MacAddr};

use crate::common::{Background, LIMIT, PACKED, alone, eventually, mac};
use crate::siege::Siege;

/// Messages that are handled before others get their turn.
const MESSAGES_PER_TURN: usize = 64;
const MAX_RING_SIZE: u16 = 32_768;

/// The owner's loop, one pass at a time.
struct Owner {
    poll: Poll,
    dataplane: Dataplane,
}

impl Owner {
    fn pass(&mut self) {
        self.dataplane.tick();
        let mut events = Events::with_capacity(64);
        self.poll.poll(&mut events, Some(Duration::ZERO)).unwrap();
        events.iter().for_each(|event| self.dataplane.handle(event));
    }
}

/// How many replies to requests for features came since this was last asked.
fn replies(session: &Session) -> usize {
    use std::io::Read;
    const REPLY_LEN: usize = 20;
    let mut bytes = [0; 0x1_0000];
    match session.stream().read(&mut bytes) {
        Ok(len) => len / REPLY_LEN,
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => 0,
        Err(error) => panic!("{error}"),
    }
}

/// As long as there is something to read, a pass serves a port once for itself and once before it looks who knocks.
#[test]
fn a_port_has_a_bounded_turn_however_many_front_ends_knock() {
    let _alone = alone();
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("vm1.sock");
    let poll = Poll::new().unwrap();
    let mut dataplane = Dataplane::start(poll.registry(), &WorkerSettings::default()).unwrap();
    let network = dataplane.add_network(FdbSettings::new(16_384, Duration::from_secs(300))).unwrap();
    let settings = PortSettings {
        name: "vm1".to_owned(),
        network,
        vlan: None,
        protections: weft_switch::guard::Protections::NONE,
        lines: weft_switch::line::Lines::NONE,
        socket: socket.clone(),
        role: SocketRole::Server,
        queue_pairs: 1,
        mac: MacAddr(mac(1)),
        mtu: 1500,
    };
    let port = dataplane.add_port(settings).unwrap();
    let mut owner = Owner { poll, dataplane };
    let session = Session::connect(&socket, LIMIT).unwrap();
    session.stream().set_nonblocking(true).unwrap();
    assert!(eventually(|| {
        owner.pass();
        owner.dataplane.port_status(port).is_some_and(|status| status.state == PortState::Connected)
    }));
    let question: Vec<u8> = [Request::GET_FEATURES as u32, 1, 0].iter().flat_map(|word| word.to_ne_bytes()).collect();
    let mut knocking = Vec::new();
    for _ in 0..4 {
        const QUESTIONS: usize = 1000;
        session.send_bytes(&question.repeat(QUESTIONS), &[]).unwrap();
        knocking.extend((0..20).map(|_| Session::connect(&socket, LIMIT).unwrap()));
        let mut answered = 0;
        assert!(eventually(|| {
            owner.pass();
            let now = replies(&session);
            assert!(now <= 2 * MESSAGES_PER_TURN, "{now} messages in one turn");
            answered += now;
            answered == QUESTIONS
        }));
    }
    // Those who knock get their answer in the end.
    for session in knocking {
        assert!(eventually(|| {
            owner.pass();
            session.is_closed_within(Duration::ZERO).unwrap()
        }));
    }
}

/// The dearest messages there are: the address of a running ring changes, and a packed ring starts whose flags don't tell where it stands,
/// which takes several looks at all of them.
#[test]
fn a_flood_of_dear_messages_delays_the_owner_only_so_much() {
    const BASE: u64 = 1 << 44;
    const LEN: u64 = 1 << 20;
    const RINGS: u16 = 32;
    /// Looks available, and is the last that is looked at.
    const ODD_ONE: (u64, [u8; 2]) = (16 * (MAX_RING_SIZE as u64 - 2) + 14, 0x0080_u16.to_le_bytes());
    let siege = Siege::begin();
    let mut messages = [Vec::new(), Vec::new()];
    for nth in 0..64_u64 {
        let ring = nth % u64::from(RINGS);
        let address = [ring, BASE, BASE + LEN - 64 * (1 + nth / 32), BASE + LEN - 256, 0];
        let header = |code: Request, len: u32| [code as u32, 1, len].map(u32::to_ne_bytes).concat();
        messages[0].extend(header(Request::SET_VRING_ADDR, 40));
        messages[0].extend(address.map(u64::to_ne_bytes).concat());
        messages[1].extend(header(Request::SET_VRING_KICK, 8));
        messages[1].extend((ring | 1 << 8).to_ne_bytes());
    }
    for flood in messages {
        let port = siege.switch.add(PortSettings { queue_pairs: RINGS / 2, ..siege.switch.settings() });
        let mut guest = Guest::builder(&port.path).features(PACKED[0]).build().unwrap();
        guest.open().unwrap();
        guest.negotiate().unwrap();
        guest.session().set_features(guest.features()).unwrap();
        let file = File::from(memfd_create("weft-guest", MemfdFlags::CLOEXEC).unwrap());
        file.set_len(LEN).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &ODD_ONE.1, ODD_ONE.0).unwrap();
        guest.session().add_mem_reg(VhostUserMemoryRegion::new(0, LEN, BASE, 0), &file).unwrap();
        let place = RingPlace { descriptors: UserAddr(BASE), avail: UserAddr(BASE + LEN - 256), used: UserAddr(BASE + LEN - 64) };
        for ring in 0..RINGS {
            guest.session().set_vring_num(ring, MAX_RING_SIZE).unwrap();
            guest.session().set_vring_base(ring, 0x8000).unwrap();
            guest.session().set_vring_addr(ring, place).unwrap();
            guest.session().set_vring_descriptor(Request::SET_VRING_KICK, ring, None::<&File>).unwrap();
        }
        guest.session().features().unwrap();
        // All of a flood is sent or nothing: it is short enough.
        guest.session().stream().set_write_timeout(Some(Duration::from_millis(100))).unwrap();
        let path = port.path.clone();
        let knocking = Background::start(path, |path, _| drop(Session::connect(path, Duration::from_millis(100))));
        let flooding = Background::start(guest, move |guest, _| drop(guest.session().send_bytes(&flood, &[])));
        assert!(eventually(|| flooding.rounds() > 2 && knocking.rounds() > 20), "there is a flood");
        for _ in 0..3 {
            let asked = Instant::now();
            let status = siege.switch.status(&port);
            assert!(asked.elapsed() < LIMIT / 5, "an answer took {:?}", asked.elapsed());
            assert_eq!(status.rings.len(), usize::from(RINGS));
        }
        siege.while_others_exchange(2);
        drop((knocking, flooding));
        siege.switch.remove(&port);
    }
    siege.end();
}
