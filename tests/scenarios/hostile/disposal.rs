//! Attacks on the thread that closes what a port's front-ends have sent: something hangs there, and more comes.

use std::fs::File;
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::time::Duration;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::net::sockopt::set_socket_linger;
use vhost::vhost_user::message::{VhostUserMemory, VhostUserMemoryRegion, VhostUserSingleMemoryRegion};
use vm_memory::ByteValued;
use weft_guest::{Request, Session};

use crate::common::{BROADCAST, LIMIT, at_most, exchange, expect_frame, frame, guest_mappings, open_descriptors, settles};
use crate::siege::{GOOD, Siege, WITNESS};

/// Far from the guest's own memory.
const ELSEWHERE: u64 = 1 << 44;
const PAGE: u64 = 4096;

/// Lets the thread of the attacked port, on which a guest must be, hang until what is returned is dropped. The guest's own connection
/// does not suffer: a second one, which is refused, brings a socket that lingers.
fn hang_disposal(siege: &Siege) -> TcpStream {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let lingering = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (peer, _) = listener.accept().unwrap();
    lingering.set_nonblocking(true).unwrap();
    while (&lingering).write(&[0; 0x1_0000]).is_ok() {}
    lingering.set_nonblocking(false).unwrap();
    set_socket_linger(&lingering, Some(Duration::from_secs(60))).unwrap();
    let path = siege.port.path.clone();
    // The owner does this itself, so that it refuses nothing before everything was sent.
    let second = siege.switch.with(move |_| {
        let second = Session::connect(&path, LIMIT).unwrap();
        second.send_bytes(b"x", &[lingering.as_raw_fd()]).unwrap();
        second
    });
    assert!(second.is_closed_within(LIMIT).unwrap());
    siege.switch.status(&siege.port);
    peer
}

fn region(at: u64, len: u64) -> VhostUserMemoryRegion {
    VhostUserMemoryRegion::new(ELSEWHERE + at, len, ELSEWHERE + at, 0)
}

fn single(region: VhostUserMemoryRegion) -> VhostUserSingleMemoryRegion {
    let VhostUserMemoryRegion { guest_phys_addr, memory_size, user_addr, mmap_offset } = region;
    VhostUserSingleMemoryRegion::new(guest_phys_addr, memory_size, user_addr, mmap_offset)
}

fn memfd(name: &str, len: u64) -> File {
    let file = memfd_create(name, MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&file, len).unwrap();
    file.into()
}

/// Both address space, of which this would take hundreds of times too much, and descriptors.
#[test]
fn memory_that_comes_and_goes_while_the_disposal_hangs_is_taken_from_nobody() {
    const LEN: u64 = 1 << 39;
    let mut siege = Siege::begin();
    let guest = siege.attacker(|builder| builder);
    let peer = hang_disposal(&siege);
    let before = (guest_mappings(), open_descriptors());
    // Counted like any guest's memory.
    let file = memfd("weft-guest", LEN);
    let payload = single(region(0, LEN));
    guest.session().stream().set_write_timeout(Some(Duration::from_millis(500))).unwrap();
    let mut pairs = 0;
    while pairs < 1000
        && guest.session().request(Request::ADD_MEM_REG, false, payload.as_slice(), &[file.as_raw_fd()]).is_ok()
        && guest.session().request(Request::REM_MEM_REG, false, payload.as_slice(), &[]).is_ok()
    {
        pairs += 1;
    }
    siege.while_others_exchange(10);
    siege.switch.status(&siege.port);
    // What hangs, what waits behind it and what is shared: the rest is not read yet.
    let now = (guest_mappings(), open_descriptors());
    assert!(now.0 <= before.0 + 2 && now.1 <= before.1 + 5, "{pairs} pairs: from {before:?} to {now:?} mappings and descriptors");
    let (port, mut neighbour) = siege.switch.guest(|builder| builder);
    siege.forget_frames();
    exchange(&mut neighbour, port.mac.0, &mut siege.witness, WITNESS);
    drop((peer, file));
    siege.switch.remove(&port);
    drop(neighbour);
    at_most("mappings when everything has been handled", before.0, guest_mappings);
    siege.leave(guest);
    siege.end();
}

const REFUSED: &str = "weft-refused";

/// How many descriptors of memory there are that the tests below have given away.
fn refused_descriptors() -> usize {
    let links = std::fs::read_dir("/proc/self/fd").unwrap().map(|entry| std::fs::read_link(entry.unwrap().path()));
    links.filter(|link| link.as_ref().is_ok_and(|link| link.to_string_lossy().contains(REFUSED))).count()
}

/// What is sent, with these two files, whether the connection goes on, and how many of the files are then open. The rest has not been
/// received yet.
type Refusal = (&'static str, fn(&Session, &[File; 2]), bool, usize);

/// Who gives the last reference to memory away makes the one who closes it free it all, about a second for each 8 GiB.
#[test]
fn memory_that_is_not_kept_is_closed_by_the_disposal_only() {
    fn add(session: &Session, region: VhostUserMemoryRegion, file: &File) {
        session.request(Request::ADD_MEM_REG, false, single(region).as_slice(), &[file.as_raw_fd()]).unwrap();
    }
    fn table(session: &Session, regions: [VhostUserMemoryRegion; 2], files: &[File; 2]) {
        let payload = [VhostUserMemory::new(2).as_slice(), regions[0].as_slice(), regions[1].as_slice()].concat();
        session.request(Request::SET_MEM_TABLE, false, &payload, &files.each_ref().map(AsRawFd::as_raw_fd)).unwrap();
    }
    let refusals: [Refusal; 6] = [
        (
            "with requests that were not negotiated",
            |session, files| {
                for file in files {
                    session.request(Request::SET_LOG_FD, true, &[], &[file.as_raw_fd()]).unwrap();
                }
            },
            true,
            1,
        ),
        (
            "with a request that takes none",
            |session, files| {
                let descriptors = files.each_ref().map(AsRawFd::as_raw_fd);
                session.request(Request::SET_OWNER, false, &[], &descriptors).unwrap();
            },
            false,
            2,
        ),
        (
            "for a region that overlaps another one",
            |session, files| {
                add(session, region(0, PAGE), &files[0]);
                add(session, region(0, PAGE), &files[1]);
            },
            false,
            2,
        ),
        (
            "for the second region of a table, longer than its file",
            |session, files| table(session, [region(0, PAGE), region(PAGE, 2 * PAGE)], files),
            false,
            2,
        ),
        (
            "for a table whose second region overlaps the first",
            |session, files| table(session, [region(0, PAGE), region(0, PAGE)], files),
            false,
            2,
        ),
        (
            "along with a region that is removed",
            |session, files| {
                add(session, region(0, PAGE), &files[0]);
                session
                    .request(Request::REM_MEM_REG, false, single(region(0, PAGE)).as_slice(), &[files[1].as_raw_fd()])
                    .unwrap();
            },
            true,
            2,
        ),
    ];
    let mut siege = Siege::begin();
    for (what, give, goes_on, open) in refusals {
        let mut guest = siege.attacker(|builder| builder);
        let peer = hang_disposal(&siege);
        let files = [(); 2].map(|()| memfd(REFUSED, PAGE));
        give(guest.session(), &files);
        drop(files);
        if goes_on {
            // The owner has handled whatever it will handle before the disposal goes on.
            siege.while_others_exchange(10);
            siege.switch.status(&siege.port);
            siege.expect_unharmed(&mut guest, what);
        } else {
            assert!(guest.session().is_closed_within(LIMIT).unwrap(), "{what}: the connection goes on");
            siege.switch.status(&siege.port);
        }
        assert_eq!(refused_descriptors(), open, "memory sent {what}: nothing is freed while the disposal hangs");
        drop(peer);
        siege.leave(guest);
        settles(&format!("memory sent {what}"), 0, refused_descriptors);
    }
    siege.end();
}

/// The frames of a guest pass while its session waits for the port's disposal.
#[test]
fn a_session_that_waits_goes_on_when_the_disposal_does() {
    let mut siege = Siege::begin();
    let mut guest = siege.attacker(|builder| builder);
    let peer = hang_disposal(&siege);
    let file = memfd("weft-guest", PAGE);
    for _ in 0..2 {
        guest.session().request(Request::ADD_MEM_REG, false, single(region(0, PAGE)).as_slice(), &[file.as_raw_fd()]).unwrap();
        guest.session().request(Request::REM_MEM_REG, false, single(region(0, PAGE)).as_slice(), &[]).unwrap();
    }
    guest.session().request(Request::GET_FEATURES, false, &[], &[]).unwrap();
    for _ in 0..5 {
        siege.expect_unharmed(&mut guest, "a session that waits");
    }
    drop((peer, file));
    assert_eq!(guest.session().reply(Request::GET_FEATURES).unwrap().len(), 8);
    let sent = frame(BROADCAST, GOOD, 77);
    guest.send(&sent).unwrap();
    expect_frame(&mut siege.witness, &sent);
    siege.leave(guest);
    siege.end();
}
