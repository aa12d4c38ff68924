//! What weft costs while nothing happens, and what a guest pays for that when something does.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use weft_tests::{Guest, Weft};

const GUESTS: usize = 8;
const MEASURED: Duration = Duration::from_secs(10);

#[test]
#[ignore = "boots guests: ./test runs it"]
fn eight_idle_guests_cost_less_than_one_percent_of_a_core() {
    let weft = Weft::start();
    let guests: Vec<Guest> = (1..=GUESTS)
        .map(|n| {
            let name = format!("vm{n}");
            let socket = if n <= 2 { weft.socket(&name) } else { weft.add_port(&name) };
            Guest::builder(&name, &socket).ip(&format!("10.0.0.{n}/24")).start()
        })
        .collect();
    for guest in &guests {
        guest.await_ready();
    }
    // They must have used their network, or the rings never started and there was nothing to be idle with. It is also
    // what wakes the worker, which has to go back to sleep by itself.
    for guest in &guests[1..] {
        let text = guest.run("ping -c 2 -i 0.1 -W 2 10.0.0.1");
        assert!(text.contains("2 packets received"), "ping from {}:\n{text}", guest.name());
    }

    // The one fixed wait there is: a share of time needs a span to be a share of.
    let before = weft.cpu_time();
    assert!(before > Duration::ZERO, "what is measured here is really weft");
    sleep(MEASURED);
    let used = weft.cpu_time() - before;

    println!("weft used {used:?} of CPU time in {MEASURED:?} with {GUESTS} idle guests");
    assert!(used * 100 < MEASURED, "{used:?} in {MEASURED:?} is more than 1 % of a core");
}

/// How long the switch is left alone before a quiet guest speaks: long enough that it sleeps.
const SILENCE: Duration = Duration::from_millis(20);
/// What waking up may cost on the way there and back: four sleepers, each on a shared machine.
const WAKE_UP: Duration = Duration::from_millis(1);
const ROUNDS: usize = 200;

#[test]
#[ignore = "measures time: ./test runs it"]
fn a_quiet_guest_is_answered_as_fast_as_a_busy_one() {
    const MAC1: [u8; 6] = [2, 0, 0, 0, 0, 1];
    const MAC2: [u8; 6] = [2, 0, 0, 0, 0, 2];
    let weft = Weft::start();
    // What comes is compared, and weft's own questions about groups are none of it.
    weft.cli(&["network", "set", "default", "--multicast", "flood"]);
    let connect = |port| weft_guest::Guest::builder(weft.socket(port)).connect().expect("weft takes a guest");
    let (mut one, mut two) = (connect("vm1"), connect("vm2"));
    let frame = |to: [u8; 6], from: [u8; 6]| [&to[..], &from, &[0x88, 0xb5], &[0; 46]].concat();
    let (ask, answer) = (frame(MAC2, MAC1), frame(MAC1, MAC2));

    let over = AtomicBool::new(false);
    let [busy, quiet] = thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                if two.receive(Duration::from_millis(100)).expect("a sound ring").is_some() {
                    two.send(&answer).expect("weft takes frames");
                }
            }
        });
        let _stop = StopOnDrop(&over);
        [Duration::ZERO, SILENCE].map(|silence| {
            let mut times: Vec<Duration> = (0..ROUNDS)
                .map(|_| {
                    sleep(silence);
                    let start = Instant::now();
                    one.send(&ask).expect("weft takes frames");
                    let came = one.receive(Duration::from_secs(5)).expect("a sound ring");
                    assert_eq!(came.as_deref(), Some(&answer[..]), "the answer");
                    start.elapsed()
                })
                .collect();
            times.sort_unstable();
            times[ROUNDS / 2]
        })
    });

    println!("there and back, median: {busy:?} for a busy guest, {quiet:?} for one that was quiet for {SILENCE:?}");
    assert!(quiet < busy + WAKE_UP, "{quiet:?} after a silence against {busy:?} without");
}

/// Ends the answering thread also when the asking one panics, or the test would wait for it for ever.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
