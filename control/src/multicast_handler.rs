//! The method of the control socket that is about multicast.

use weft_switch::multicast::{Family, GroupStatus, PortTime, QuerierStatus, SnoopingCounters};
use weft_switch::vlan::Vlan;

use crate::api::MaybeNetwork;
use crate::multicast::{MemberLine, MulticastInfo, QuerierLine};
use crate::rpc::RpcError;
use crate::switch::Switch;
use crate::values::Name;

impl Switch {
    pub(crate) fn list_multicast(&self, params: &MaybeNetwork) -> Result<Vec<MulticastInfo>, RpcError> {
        let infos = self.chosen(params)?.into_iter().map(|network| self.multicast_info(network));
        Ok(infos.collect())
    }

    fn multicast_info(&self, network: Name) -> MulticastInfo {
        let names = self.port_names();
        // A port that has gone since is of no use to anybody.
        let name = |time: &PortTime| names.get(&time.port).map(|name| (*name).clone());
        let has_vlans = self.config.roles_of(&network).is_some();
        let label = |vlan: Vlan| has_vlans.then(|| vlan.to_string());
        let status = self.dataplane.snooping_status(self.networks[&network]).unwrap_or_default();
        let members = status.groups.iter().flat_map(|GroupStatus { vlan, group, members }| {
            let line = |(time, version): &(PortTime, u8)| {
                Some(MemberLine {
                    vlan: label(*vlan),
                    group: *group,
                    port: name(time)?,
                    protocol: format!("{}v{version}", if group.is_ipv4() { "IGMP" } else { "MLD" }),
                    left_seconds: time.left.unwrap_or_default().as_secs(),
                })
            };
            members.iter().filter_map(line).collect::<Vec<_>>()
        });
        let mut members: Vec<_> = members.collect();
        members.sort_by(|a, b| (&a.vlan, a.group, &a.port).cmp(&(&b.vlan, b.group, &b.port)));
        let queriers = status.queriers.iter().map(|QuerierStatus { vlan, family, querier, routers, unsettled }| QuerierLine {
            vlan: label(*vlan),
            family: if *family == Family::V4 { "ipv4" } else { "ipv6" }.to_owned(),
            address: querier.map(|(address, _)| address),
            port: querier.and_then(|(_, time)| name(&time?)),
            routers: routers.iter().filter_map(name).collect(),
            unsettled: unsettled.iter().filter_map(name).collect(),
        });
        let queriers = queriers.collect();
        let SnoopingCounters { queries_sent, queries_heard, reports, leaves, expired, malformed, refused, overflows } =
            status.counters;
        let counters = [
            ("queries_sent", queries_sent),
            ("queries_heard", queries_heard),
            ("reports", reports),
            ("leaves", leaves),
            ("expired", expired),
            ("malformed", malformed),
            ("refused", refused),
            ("overflows", overflows),
        ];
        let counters = counters.map(|(name, count)| (name.to_owned(), count)).into();
        let multicast = self.config.networks[&network].multicast;
        MulticastInfo { network, multicast, members, queriers, counters }
    }
}
