//! Rates over windows of a second, and chances against what they should be, all of it with seeds: the same in each run.

use proptest::prelude::*;

use super::*;
use crate::guard::{Limit, Meters, StormLimits};
use crate::{EthernetHeader, Timestamp, WireSize};

const MBIT: u64 = 1_000_000;
const SECOND: u64 = 1_000_000_000;
const LARGEST: usize = 65_549;

fn shape(bits: u64) -> Shape {
    Shape { limit: Limit { bits, burst: Shape::usual_burst(bits) }, queue: Shape::usual_queue(bits) }
}

fn at(nanos: u64) -> Moment {
    Moment::from_nanos(nanos)
}

/// Departures, in nanoseconds, of frames of `len` bytes for `span` nanoseconds, of which there are always more than may wait; they come every `pause` nanoseconds.
fn departures(mut admit: impl FnMut(Moment, usize) -> Fate, len: usize, pause: u64, span: u64) -> Vec<u64> {
    let mut left = Vec::new();
    for now in (5 * SECOND..5 * SECOND + span).step_by(pause as usize) {
        while let Ok(departure) = admit(at(now), len) {
            left.push(departure.at.nanos());
        }
    }
    left
}

/// The bits of the frames that left in each window of a second; windows begin every tenth of a second.
fn windows(left: &[u64], len: usize) -> Vec<u64> {
    let (first, last) = (left[0], left[left.len() - 1]);
    let count = |from| left.partition_point(|at| *at < from + SECOND) - left.partition_point(|at| *at < from);
    (first..last - SECOND).step_by(SECOND as usize / 10).map(|from| (count(from) * len * 8) as u64).collect()
}

#[track_caller]
fn assert_within(windows: &[u64], rate: u64, percent: u64, what: &str) {
    assert!(!windows.is_empty());
    for bits in windows {
        assert!(bits.abs_diff(rate) * 100 <= rate * percent, "{bits} instead of {rate} bits a second: {what}");
    }
}

#[test]
fn shaping_keeps_its_rate_within_three_percent_over_each_second() {
    for (rate, lens) in
        [(10 * MBIT, &[60, 1514, 9014][..]), (1000 * MBIT, &[1514, 9014, LARGEST]), (10_000 * MBIT, &[1514, 9014, LARGEST])]
    {
        for len in lens {
            for pause in [10_000, 1_000_000] {
                let mut line = Line::new(&LineSettings { shape: Some(shape(rate)), impairment: None }, 0);
                let left = departures(|now, len| line.admit(now, len).0, *len, pause, 5 * SECOND / 4);
                assert_within(&windows(&left, *len), rate, 3, &format!("frames of {len}, every {pause} ns"));
            }
        }
    }
}

/// A burst apart, it is much closer than that: by a frame.
#[test]
fn shaping_loses_nothing_by_rounding() {
    for rate in [10 * MBIT, 999_999_937, 3_333 * MBIT] {
        let mut shaper = Shaper::new(&Shape { queue: Duration::from_secs(3600), ..shape(rate) });
        let start = at(7 * SECOND);
        let sent: u64 = (0..100_000)
            .map(|nth: usize| 60 + nth * 7 % 1455)
            .inspect(|len| assert!(shaper.admit(start, *len).is_ok()))
            .map(|len| len as u64 * 8)
            .sum();
        let last = shaper.admit(start, 0).unwrap().since(start).as_nanos();
        let exact = u128::from(sent - shape(rate).limit.burst * 8) * u128::from(SECOND) / u128::from(rate);
        assert!(last.abs_diff(exact) <= 1, "{last} instead of {exact} ns");
    }
}

#[test]
fn an_impaired_rate_is_kept_within_three_percent_over_each_second() {
    for rate in [10 * MBIT, 1000 * MBIT, 10_000 * MBIT] {
        let impairment = Impairment { rate: Some(rate), ..Impairment::default() };
        let mut line = Line::new(&LineSettings { shape: None, impairment: Some(impairment) }, 0);
        let left = departures(|now, len| line.admit(now, len).0, 1514, 1_000_000, 5 * SECOND / 4);
        assert_within(&windows(&left, 1514), rate, 3, "rate");
    }
}

/// What comes in is asked about at whole milliseconds, and what does not pass is lost.
#[test]
fn policing_keeps_its_rate_within_three_percent_over_each_second() {
    let header = EthernetHeader::parse(&[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0]);
    for rate in [10 * MBIT, 1000 * MBIT, 10_000 * MBIT] {
        // At 10 Mbit/s, 19.07 of the largest frames make a second: no whole number of them is nearer than 4 %.
        for len in [1514, 9014, LARGEST].into_iter().filter(|len| rate > 10 * MBIT || *len < LARGEST) {
            let burst = Limit::usual_burst(rate);
            let mut meters = Meters::new(&StormLimits::default(), Some(Limit { bits: rate, burst }));
            let mut left = Vec::new();
            for millis in 5_000..7_500 {
                while meters.admit(Timestamp::from_millis(millis), &header, WireSize { frames: 1, bytes: len }).is_ok() {
                    // What was there at the start passes at once.
                    if millis > 5_000 {
                        left.push(millis * 1_000_000);
                    }
                }
            }
            assert_within(&windows(&left, len), rate, 3, &format!("frames of {len}"));
        }
    }
}

#[test]
fn what_would_wait_for_too_long_is_dropped_and_takes_nothing_from_the_others() {
    let mut line = Line::new(&LineSettings { shape: Some(shape(10 * MBIT)), impairment: None }, 0);
    let (now, queue) = (at(SECOND), Shape::usual_queue(10 * MBIT));
    let mut passed = 0_u64;
    while let (Ok(departure), None) = line.admit(now, 1514) {
        assert!(departure.at.since(now) <= queue);
        passed += 1;
    }
    let room = shape(10 * MBIT).limit.burst + 10 * MBIT / 8 * queue.as_nanos() as u64 / SECOND;
    assert_eq!(passed, room / 1514);
    assert!(
        line.wants_segments()
            && !Line::new(&LineSettings { shape: Some(shape(1000 * MBIT)), impairment: None }, 0).wants_segments()
    );
    assert!(!line.has_room(now));
    for _ in 0..1000 {
        assert_eq!(line.admit(now, 1514).0, Err(DropReason::ShaperFull));
    }
    // A frame takes 1.2112 ms.
    let later = now.after(Duration::from_micros(1212));
    assert!(line.admit(later, 1514).0.is_ok() && line.admit(later, 1514).0.is_err());
    assert!(line.has_room(later.after(queue)));
}

/// The pattern of Pearson's test: true if what was seen would come about by chance in one of a thousand cases at least. The critical value is that of Wilson and Hilferty.
fn is_plausible(seen: &[u64], expected: &[f64]) -> bool {
    let statistic: f64 = seen.iter().zip(expected).map(|(seen, expected)| (*seen as f64 - expected).powi(2) / expected).sum();
    let freedom = (seen.len() - 1) as f64;
    let critical = freedom * (1.0 - 2.0 / (9.0 * freedom) + 3.0902 * (2.0 / (9.0 * freedom)).sqrt()).powi(3);
    statistic < critical
}

#[test]
fn the_test_itself_tells_right_from_wrong() {
    assert!(is_plausible(&[490, 510], &[500.0, 500.0]) && !is_plausible(&[440, 560], &[500.0, 500.0]));
    // The table says 27.877 for nine degrees of freedom.
    let bins = |surplus: f64| {
        [[1000.0 + surplus; 5].map(|count| count as u64), [1000.0 - surplus; 5].map(|count| count as u64)].concat()
    };
    assert!(is_plausible(&bins(52.0), &[1000.0; 10]) && !is_plausible(&bins(53.5), &[1000.0; 10]));
}

const FRAMES: u64 = 200_000;

fn bad_line(impairment: Impairment) -> Line {
    Line::new(&LineSettings { shape: None, impairment: Some(impairment) }, 4711)
}

/// The fates of many frames, a second apart, so that none has to do with another one.
fn fates(impairment: Impairment, len: usize) -> Vec<(Moment, (Fate, Option<Fate>))> {
    let mut line = bad_line(impairment);
    (1..=FRAMES).map(|nth| at(nth * SECOND)).map(|now| (now, line.admit(now, len))).collect()
}

/// How often something happened, and how often it should have.
#[track_caller]
fn assert_chance(happened: u64, of: u64, chance: f64) {
    let expected = of as f64 * chance;
    assert!(
        is_plausible(&[happened, of - happened], &[expected, of as f64 - expected]),
        "{happened} of {of} instead of {expected}"
    );
}

#[test]
fn losses_are_as_many_as_they_should_be_and_one_says_nothing_of_the_next() {
    for (millionths, chance) in [(1_000, 0.001), (10_000, 0.01), (300_000, 0.3), (990_000, 0.99)] {
        let impairment = Impairment { loss: Chance::from_millionths(millionths), ..Impairment::default() };
        let lost: Vec<bool> = fates(impairment, 100).iter().map(|(_, fate)| fate.0.is_err()).collect();
        assert_chance(lost.iter().filter(|lost| **lost).count() as u64, FRAMES, chance);
        let mut pairs = [0_u64; 4];
        lost.as_chunks::<2>().0.iter().for_each(|[one, two]| pairs[usize::from(*one) * 2 + usize::from(*two)] += 1);
        let (lost, not, all) = (chance, 1.0 - chance, FRAMES as f64 / 2.0);
        let expected = [not * not, not * lost, lost * not, lost * lost].map(|share| share * all);
        // The test says nothing about what is expected less than five times.
        if expected.iter().all(|count| *count >= 5.0) {
            assert!(is_plausible(&pairs, &expected), "{pairs:?} instead of {expected:?}");
        }
    }
    let certain = Impairment { loss: Chance::from_millionths(Chance::ALWAYS), ..Impairment::default() };
    assert!(fates(certain, 100).iter().all(|(_, fate)| *fate == (Err(DropReason::ImpairmentLoss), None)));
}

#[test]
fn the_gaps_between_losses_are_those_of_chance() {
    let impairment = Impairment { loss: Chance::from_millionths(50_000), ..Impairment::default() };
    let mut bins = [0_u64; 40];
    let mut gap = 0;
    for (_, fate) in fates(impairment, 100) {
        if fate.0.is_ok() {
            gap += 1;
        } else {
            bins[usize::min(std::mem::take(&mut gap), 39)] += 1;
        }
    }
    let all = bins.iter().sum::<u64>() as f64;
    let mut expected: Vec<f64> = (0..39).map(|gap| all * 0.05 * 0.95_f64.powi(gap)).collect();
    expected.push(all * 0.95_f64.powi(39));
    assert!(is_plausible(&bins, &expected), "{bins:?} instead of {expected:?}");
}

#[test]
fn duplicates_are_as_many_as_they_should_be_and_come_right_behind() {
    let delay = Duration::from_millis(3);
    let impairment = Impairment { duplicate: Chance::from_millionths(20_000), delay, ..Impairment::default() };
    let fates = fates(impairment, 100);
    assert_chance(fates.iter().filter(|(_, fate)| fate.1.is_some()).count() as u64, FRAMES, 0.02);
    for (now, fate) in fates {
        let on_time = Ok(Departure { at: now.after(delay), flipped: None });
        assert!(fate.0 == on_time && fate.1.is_none_or(|second| second == on_time));
    }
}

#[test]
fn corruption_hits_every_bit_behind_the_header_alike() {
    let impairment = Impairment { corrupt: Chance::from_millionths(250_000), ..Impairment::default() };
    let flipped: Vec<usize> = fates(impairment, 64).iter().filter_map(|(_, fate)| fate.0.unwrap().flipped).collect();
    assert_chance(flipped.len() as u64, FRAMES, 0.25);
    let mut bins = vec![0_u64; 50 * 8];
    flipped.iter().for_each(|bit| bins[bit - 14 * 8] += 1);
    assert!(is_plausible(&bins, &vec![flipped.len() as f64 / 400.0; 400]));
    // Of a frame without any there is nothing to flip.
    assert!(fates(impairment, 14).iter().all(|(_, fate)| fate.0.unwrap().flipped.is_none()));
}

#[test]
fn delay_and_jitter_are_as_they_were_asked_for() {
    let (delay, jitter) = (Duration::from_millis(20), Duration::from_millis(5));
    let fates = fates(Impairment { delay, jitter, ..Impairment::default() }, 100);
    let mut bins = [0_u64; 50];
    for (now, fate) in fates {
        let took = fate.0.unwrap().at.since(now);
        assert!((delay - jitter..=delay + jitter).contains(&took));
        bins[(took - (delay - jitter)).as_nanos() as usize * 50 / 10_000_001] += 1;
    }
    assert!(is_plausible(&bins, &[FRAMES as f64 / 50.0; 50]), "{bins:?}");
}

#[test]
fn as_many_frames_overtake_as_should_and_without_that_none_does() {
    let bad = Impairment { delay: Duration::from_millis(20), jitter: Duration::from_millis(20), ..Impairment::default() };
    let run = |impairment| -> Vec<Moment> {
        let mut line = bad_line(impairment);
        (0..FRAMES).map(|nth| line.admit(at(nth * 10_000), 100).0.unwrap().at).collect()
    };
    assert!(run(bad).is_sorted());
    let reorder = Chance::from_millionths(50_000);
    let left = run(Impairment { reorder, jitter: Duration::ZERO, ..bad });
    let overtook = left.iter().enumerate().filter(|(nth, left)| **left == at(*nth as u64 * 10_000)).count();
    assert_chance(overtook as u64, FRAMES, 0.05);
    let others: Vec<_> = left.iter().enumerate().filter(|(nth, left)| **left != at(*nth as u64 * 10_000)).collect();
    assert!(others.is_sorted_by_key(|(_, left)| **left));
}

#[test]
fn a_seed_says_what_happens_and_another_one_says_something_else() {
    let bad = |seed| Impairment {
        loss: Chance::from_millionths(100_000),
        corrupt: Chance::from_millionths(100_000),
        delay: Duration::from_millis(5),
        jitter: Duration::from_millis(5),
        seed,
        ..Impairment::default()
    };
    assert_eq!(fates(bad(Some(1)), 100), fates(bad(Some(1)), 100));
    assert_ne!(fates(bad(Some(1)), 100), fates(bad(Some(2)), 100));
    assert_eq!(fates(bad(Some(4711)), 100), fates(bad(None), 100));
}

#[test]
fn a_frame_that_waits_to_enter_the_line_is_delayed_after_that() {
    let impairment = Impairment { delay: Duration::from_millis(20), ..Impairment::default() };
    let shape = Shape { limit: Limit { bits: 8 * MBIT, burst: 65_557 }, queue: Duration::from_millis(100) };
    let mut line = Line::new(&LineSettings { shape: Some(shape), impairment: Some(impairment) }, 0);
    assert!(line.wants_segments());
    let now = at(SECOND);
    let mut departures: Vec<_> =
        std::iter::from_fn(|| line.admit(now, 1000).0.ok()).map(|departure| departure.at.since(now)).collect();
    assert_eq!((departures.len(), departures[64]), (165, Duration::from_millis(20)));
    // A byte takes a microsecond.
    assert_eq!(departures.pop(), Some(Duration::from_millis(20) + Duration::from_micros(165_000 - 65_557)));
}

proptest! {
    #[test]
    fn no_span_of_time_gets_more_than_rate_and_burst_and_order_is_kept(
        rate in 1_000..20_000_000_000_u64,
        burst in 65_557..10_000_000_u64,
        queue in 0..1_000_000_000_u64,
        steps in prop::collection::vec((0..100_000_000_u64, 14..65_557_usize), 1..80),
    ) {
        let queue = Duration::from_nanos(queue);
        let mut line = Line::new(&LineSettings { shape: Some(Shape { limit: Limit { bits: rate, burst }, queue }), impairment: None }, 0);
        let (mut now, mut left) = (5 * SECOND, Vec::new());
        for (wait, len) in steps {
            now += wait;
            if let Ok(Departure { at: leaves, .. }) = line.admit(at(now), len).0 {
                prop_assert!(leaves >= at(now) && leaves.since(at(now)) <= queue);
                left.push((leaves.nanos(), len as u128 * 8));
            }
        }
        prop_assert!(left.is_sorted_by_key(|(leaves, _)| *leaves));
        for (first, (start, _)) in left.iter().enumerate() {
            let mut sum = 0;
            for (end, bits) in &left[first..] {
                sum += bits;
                // The end is a whole nanosecond, up to one too early.
                let most = u128::from(rate) * u128::from(end - start + 1) + u128::from(burst * 8) * u128::from(SECOND);
                prop_assert!(sum * u128::from(SECOND) <= most);
            }
        }
    }

    /// A clock that goes backwards, any settings, any length: nothing panics, and nothing leaves before it came.
    #[test]
    fn whatever_comes_leaves_not_before_it_came_and_in_order(
        chances in prop::array::uniform3(0..=1_000_000_u32),
        delay in 0..60_000_000_000_u64,
        jitter in 0..60_000_000_000_u64,
        rate in prop::option::of(1_000..1_000_000_000_000_u64),
        steps in prop::collection::vec((any::<u32>(), 0..65_562_usize), 1..80),
    ) {
        let [loss, duplicate, corrupt] = chances.map(Chance::from_millionths);
        let (delay, jitter) = (Duration::from_nanos(delay), Duration::from_nanos(jitter));
        let mut line = bad_line(Impairment { loss, duplicate, corrupt, rate, delay, jitter, ..Impairment::default() });
        let mut last = Moment::default();
        for (now, len) in steps {
            let (first, second) = line.admit(at(now.into()), len);
            for departure in [Some(first), second].into_iter().flatten().flatten() {
                prop_assert!(departure.at >= at(now.into()) && departure.at >= last);
                prop_assert!(departure.flipped.is_none_or(|bit| (112..len * 8).contains(&bit)));
                last = departure.at;
            }
        }
    }
}
