use std::time::Duration;

use mio::{Poll, Token};
use proptest::prelude::*;
use weft_switch::guard::Limit;
use weft_switch::line::{Chance, Impairment, Shape};
use weft_switch::{PartialChecksum, SegmentKind, Segmentation};

use super::*;

const MILLISECOND: u64 = 1_000_000;

fn line_in(memory: &Arc<LineMemory>, impairment: Impairment) -> PortLine {
    let waker = Waker::new(Poll::new().unwrap().registry(), Token(0)).unwrap();
    PortLine::new(Way::ToGuest, 0, Arc::new(waker), &LineSettings { shape: None, impairment: Some(impairment) }, memory)
}

fn line(impairment: Impairment) -> PortLine {
    line_in(&Arc::default(), impairment)
}

fn put(line: &PortLine, now: u64, counters: &LiveCounters, frames: impl IntoIterator<Item = Vec<u8>>) {
    let mut entrance = line.enter(Moment::from_nanos(now), counters);
    frames.into_iter().for_each(|frame| entrance.put(frame, Offload::NONE));
    entrance.leave(0);
}

fn take(line: &PortLine, now: u64) -> Vec<Vec<u8>> {
    let mut taken = Vec::new();
    line.take_due(Moment::from_nanos(now), usize::MAX, &mut taken);
    taken.into_iter().map(|dispatch| dispatch.frame).collect()
}

fn drops(counters: &LiveCounters) -> u64 {
    counters.drops().iter().map(|(_, count)| count).sum()
}

#[test]
fn the_next_departure_is_known_and_nothing_leaves_before_it() {
    let (line, counters) =
        (line(Impairment { delay: Duration::from_millis(5), ..Impairment::default() }), LiveCounters::default());
    assert_eq!(line.due(), Moment::NEVER);
    put(&line, 0, &counters, [vec![1; 60], vec![2; 60]]);
    put(&line, MILLISECOND, &counters, [vec![3; 60]]);
    assert_eq!(line.due(), Moment::from_nanos(5 * MILLISECOND));
    assert_eq!(take(&line, 5 * MILLISECOND - 1), Vec::<Vec<u8>>::new());
    assert_eq!(take(&line, 5 * MILLISECOND), [vec![1; 60], vec![2; 60]]);
    assert_eq!(line.due(), Moment::from_nanos(6 * MILLISECOND));
    line.empty();
    assert_eq!(line.due(), Moment::default());
    assert_eq!(take(&line, MILLISECOND), [vec![3; 60]]);
    assert_eq!(line.due(), Moment::NEVER);
}

#[test]
fn what_is_let_go_at_once_keeps_the_order_in_which_it_would_have_left() {
    let bad = Impairment {
        delay: Duration::from_millis(50),
        reorder: Chance::from_millionths(300_000),
        duplicate: Chance::from_millionths(300_000),
        seed: Some(1),
        ..Impairment::default()
    };
    let [one, other] = [line(bad), line(bad)];
    let counters = LiveCounters::default();
    for number in 0..100_u8 {
        [&one, &other].iter().for_each(|line| put(line, u64::from(number) * MILLISECOND, &counters, [vec![number; 60]]));
    }
    one.empty();
    let expected = take(&other, u64::MAX - 1);
    assert!(expected.len() > 100 && !expected.is_sorted());
    assert_eq!(take(&one, 0), expected);
}

#[test]
fn duplicates_count_for_the_memory_too() {
    const LEN: usize = 60_000;
    let bad = Impairment { duplicate: Chance::from_millionths(Chance::ALWAYS), ..Impairment::default() };
    let (line, counters) = (line(bad), LiveCounters::default());
    // A small one and its duplicate, so that in the end there is room for a frame, but not for two.
    put(&line, 0, &counters, [vec![0; LEN / 2]]);
    let room = (QUEUE_BYTES - 2 * (LEN / 2 + FRAME_COST)) / (LEN + FRAME_COST);
    assert_eq!(room % 2, 1);
    put(&line, 0, &counters, (0..room / 2 + 11).map(|_| vec![0; LEN]));
    assert!((QUEUE_BYTES - LEN..=QUEUE_BYTES).contains(&line.lock().bytes));
    // One without its duplicate, and ten that had no chance of any.
    assert_eq!((take(&line, 0).len(), drops(&counters)), (2 + room, 11));
}

#[test]
fn no_line_takes_more_of_the_common_memory_than_it_leaves() {
    const LEN: usize = 60_000;
    let (memory, counters) = (Arc::default(), LiveCounters::default());
    let lines: Vec<_> = (0..40).map(|_| line_in(&memory, Impairment::default())).collect();
    // Each as much as it can, as with a broadcast.
    for line in &lines {
        put(line, 0, &counters, std::iter::repeat_n(vec![0; LEN], QUEUE_BYTES / LEN + 1));
    }
    let used: Vec<_> = lines.iter().map(|line| line.lock().bytes).collect();
    assert_eq!(memory.in_use.load(Ordering::Relaxed), used.iter().sum::<usize>());
    assert!(used.iter().sum::<usize>() < ALL_BYTES + lines.len() * OWN_BYTES, "{used:?}");
    assert!(used.iter().all(|used| *used > OWN_BYTES - 2 * LEN) && used.is_sorted_by(|first, next| first >= next), "{used:?}");
    assert!((used[0] > QUEUE_BYTES - 2 * LEN) && (used[3] <= QUEUE_BYTES / 2 + LEN) && !lines[0].has_room(Moment::default()));
    // One that loses what it has, and one that goes, leave it to the others.
    let waiting = take(&lines[7], 0).len();
    assert_eq!((waiting, lines[0].discard()), (used[7] / (LEN + FRAME_COST), used[0] / (LEN + FRAME_COST)));
    assert_eq!((lines[0].due(), lines[0].lock().bytes), (Moment::NEVER, 0));
    drop(lines);
    assert_eq!(memory.in_use.load(Ordering::Relaxed), 0);
}

#[test]
fn what_one_network_sends_leaves_the_lines_of_others_more_than_their_own() {
    const LEN: usize = 60_000;
    let (all, counters) = (Arc::default(), LiveCounters::default());
    let [loud, quiet] = [(); 2].map(|()| LineMemory::of_network(&all));
    let lines: Vec<_> = (0..40).map(|_| line_in(&loud, Impairment::default())).collect();
    let fill = |line: &PortLine| {
        put(line, 0, &counters, std::iter::repeat_n(vec![0; LEN], QUEUE_BYTES / LEN + 1));
        line.lock().bytes
    };
    let used: usize = lines.iter().map(fill).sum();
    assert_eq!(used, all.in_use.load(Ordering::Relaxed));
    assert!((ALL_BYTES / 2 - LEN..ALL_BYTES / 2 + lines.len() * OWN_BYTES).contains(&used), "{used}");
    assert!(fill(&line_in(&quiet, Impairment::default())) > ALL_BYTES / 10);
    drop(lines);
    assert_eq!([&loud.in_use, &all.in_use].map(|bytes| bytes.load(Ordering::Relaxed)), [0, 0]);
}

#[test]
fn a_shaped_line_is_as_slow_as_the_wire_that_would_carry_the_segments() {
    // A byte takes a nanosecond.
    let shape = Shape { limit: Limit { bits: 8_000_000_000, burst: 1_514 }, queue: Duration::from_secs(1) };
    let waker = Waker::new(Poll::new().unwrap().registry(), Token(0)).unwrap();
    let settings = LineSettings { shape: Some(shape), impairment: None };
    let (line, counters) = (PortLine::new(Way::ToGuest, 0, Arc::new(waker), &settings, &Arc::default()), LiveCounters::default());
    let segmentation = Segmentation { kind: SegmentKind::Tcp4, size: 1460, ecn: false };
    let offload = Offload { checksum: Some(PartialChecksum { start: 34, offset: 16 }), segmentation: Some(segmentation) };
    let mut entrance = line.enter(Moment::from_nanos(0), &counters);
    for _ in 0..3 {
        entrance.put(vec![0; 54 + 40 * 1460], offload);
    }
    entrance.leave(0);
    let mut last = 0;
    for _ in 0..3 {
        last = line.due().nanos();
        assert_eq!(take(&line, last).len(), 1);
    }
    // As with timestamps.
    assert_eq!(last, 3 * (40 * 1514 + 39 * 12) - 1514, "but for the burst");
}

#[test]
fn a_frame_costs_what_it_takes() {
    let (line, counters) = (line(Impairment::default()), LiveCounters::default());
    let mut frame = Vec::with_capacity(1 << 20);
    frame.resize(60, 7);
    put(&line, 0, &counters, [frame]);
    assert!(line.lock().waiting.values().all(|(frame, _)| frame.capacity() < 100));
}

proptest! {
    /// Each frame, and each duplicate, leaves or is counted, and what it cost is given back.
    #[test]
    fn nothing_is_lost_uncounted(
        chances in prop::array::uniform4(0..=1_000_000_u32),
        delay in 0..10_000_000_u64,
        steps in prop::collection::vec((0..5_000_000_u64, 1..2_000_usize, any::<bool>()), 1..100),
    ) {
        let [loss, corrupt, reorder, _] = chances.map(Chance::from_millionths);
        let delay = Duration::from_nanos(delay);
        let (line, counters) = (line(Impairment { loss, corrupt, reorder, delay, ..Impairment::default() }), LiveCounters::default());
        let (mut now, mut sent, mut left) = (0, 0, 0);
        for (wait, len, is_taken) in steps {
            now += wait;
            put(&line, now, &counters, [vec![0; len]]);
            sent += 1;
            if is_taken {
                left += take(&line, now).len() as u64;
                prop_assert!(line.due() > Moment::from_nanos(now));
            }
        }
        line.empty();
        left += take(&line, now).len() as u64;
        prop_assert_eq!(left + drops(&counters), sent);
        prop_assert_eq!((line.lock().bytes, line.due()), (0, Moment::NEVER));
    }
}
