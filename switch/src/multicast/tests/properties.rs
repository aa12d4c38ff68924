//! What holds whatever hosts do.

use proptest::prelude::*;

use super::*;

/// What a host does, for a model that knows nothing but who wanted what and until when.
#[derive(Clone, Debug)]
enum Act {
    Join(u16, u8),
    Leave(u16, u8),
    Wait(u16),
    Query(u16, bool),
    Plug(u16),
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        4 => (0..5_u16, 0..6_u8).prop_map(|(port, group)| Act::Join(port, group)),
        2 => (0..5_u16, 0..6_u8).prop_map(|(port, group)| Act::Leave(port, group)),
        3 => (0..150_u16).prop_map(Act::Wait),
        1 => (0..5_u16, any::<bool>()).prop_map(|(port, specific)| Act::Query(port, specific)),
        1 => (2..6_u16).prop_map(Act::Plug),
    ]
}

proptest! {
    #[test]
    fn members_miss_nothing_while_they_are_members_and_others_get_nothing(acts in proptest::collection::vec(act(), 1..80), fast in any::<bool>()) {
        // 239.1.2.x, and 238.1.2.x with the same addresses.
        let groups = [0xef01_0201, 0xef01_0202, 0xef01_0203, 0xee01_0201, 0xef81_0202, 0xef00_0001_u32].map(Ipv4Addr::from_bits);
        let mut rig = Rig::settled(5, |settings| settings.fast_leave = fast);
        let mut now = 12_u64;
        // Until when each has said that it wants each group: certainly, and at the latest.
        let mut wanted: BTreeMap<(u16, Ipv4Addr), (u64, u64)> = BTreeMap::new();
        let mut open_until = BTreeMap::new();
        let mut routers: BTreeMap<u16, u64> = BTreeMap::new();
        for act in acts {
            match act {
                Act::Join(port, group) if port < rig.ports => {
                    let group = groups[usize::from(group)];
                    rig.hear(at(now), port, &report_v3(&[(4, group, &[])]));
                    wanted.insert((port, group), (now + 260, now + 260));
                }
                Act::Leave(port, group) if port < rig.ports => {
                    let group = groups[usize::from(group)];
                    rig.hear(at(now), port, &report_v3(&[(3, group, &[])]));
                    if let Some((certain, latest)) = wanted.get_mut(&(port, group)) {
                        *certain = now;
                        *latest = if fast { now } else { (*latest).min(now + 2) };
                    }
                }
                Act::Wait(seconds) => {
                    for _ in 0..seconds {
                        now += 1;
                        rig.tick(at(now));
                    }
                }
                Act::Query(port, specific) if port < rig.ports => {
                    let group = specific.then_some(groups[0]);
                    rig.hear(at(now), port, &query_of(QUERIER, group));
                    routers.insert(port, now + 255);
                }
                Act::Plug(ports) => {
                    for port in rig.ports..ports { open_until.insert(port, now + 11); }
                    wanted.retain(|(port, _), _| *port < ports);
                    routers.retain(|port, _| *port < ports);
                    rig.plug(ports);
                    rig.tick(at(now));
                }
                _ => {}
            }
            for group in groups {
                let audience = rig.audience(group);
                if is_for_everybody(group.into()) {
                    prop_assert_eq!(audience.len(), usize::from(rig.ports));
                    continue;
                }
                for port in 0..rig.ports {
                    let of_address = |(other, wants): &&(u16, Ipv4Addr)| *other == port && group_mac((*wants).into()) == group_mac(group.into());
                    let certain = wanted.get(&(port, group)).is_some_and(|(certain, _)| *certain > now);
                    prop_assert!(!certain || audience.contains(&port), "{port} misses {group} at {now}");
                    let possible = wanted.iter().any(|(key, (_, latest))| of_address(&key) && *latest > now)
                        || routers.get(&port).is_some_and(|until| *until > now)
                        || open_until.get(&port).is_some_and(|until| *until > now);
                    prop_assert!(possible || !audience.contains(&port), "{port} gets {group} at {now}");
                }
            }
        }
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..120), frame in 0..5_usize, place in any::<prop::sample::Index>()) {
        let mut rig = Rig::settled(2, |_| ());
        rig.hear(at(20), 1, &bytes);
        let frames = [report_v2(GROUP, 0x16), report_v3(&[(4, GROUP, &[QUERIER])]), report_mld(4, GROUP6), query_of(QUERIER, None), report_v2(GROUP, 0x17)];
        let cut = place.index(frames[frame].len());
        rig.hear(at(20), 1, &[&frames[frame][..cut], &bytes].concat());
    }
}
