//! VLANs: which of a network's broadcast domains a frame belongs to, which ports are members of it, and with what tag it leaves.
//!
//! # Theory
//!
//! A network whose ports have no roles carries tags as they are and has one forwarding database. As soon as one port has a
//! [`PortRole`], the network is divided, and ports without one are access ports of its default VLAN.
//!
//! Then each frame goes through three steps (IEEE 802.1Q-2018, 6.9 and 8.6). [`PortRole::admit`] says which [`Vlan`] it belongs to, and
//! takes a tag off that said so; what comes after this sees an untagged frame and, beside it, its VLAN and its priority. `forward` decides with
//! the VLAN's own forwarding database. [`PortRole::release`] says for each receiver whether it is a member, and whether the frame leaves with
//! a tag. So no place has to know more than one port's role, and a tag that is pushed, popped, replaced or kept ([`TagOperation`]) is the sum of both.
//!
//! Tags of two kinds name VLANs, those of customers (0x8100) and of service providers (0x88a8), and the two kinds are worlds apart: VLAN 300 of one is not
//! VLAN 300 of the other. So whatever tags a customer sends through [`PortRole::Qinq`], it reaches nobody but the other ports of its service VLAN.
//!
//! Two tags, one in front of the other, are how a guest gets into another's VLAN through a switch that takes the outer one off. This one does not: where a
//! customer's tag comes off, there is none behind it, or the frame is dropped. Behind a service tag is the customer's own, which is for the customer.

mod id;
mod tables;
mod tag;
mod traffic;

pub use id::{ParseVlanError, VlanId, VlanSet};
pub use tables::{StaticStations, VlanTables, Weights};
pub use tag::{OuterTag, Priority, TAGGED_HEADER_LEN, Tag, TagKind, Vlan, behind_priority_tags, is_priority_tag, pop, push};
pub use traffic::{VlanCounters, VlanTraffic};

use crate::DropReason;

/// What a port is to the VLANs of its network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PortRole {
    /// A member of one VLAN, which knows nothing of tags.
    Access(VlanId),
    /// A member of several, told apart by tags.
    Trunk(Trunk),
    /// A customer of this service VLAN, whose own tags are carried as they are.
    Qinq(VlanId),
}

/// The VLANs of a port that tells them apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trunk {
    /// The VLANs, of both kinds of tags.
    pub allowed: VlanSet,
    /// The VLAN of frames without a tag; without it there are none. A member of it whether or not it is allowed with a tag.
    pub native: Option<VlanId>,
}

/// A frame that a port admitted, but for what is in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Admitted {
    /// The VLAN that it belongs to from now on.
    pub vlan: Vlan,
    /// Its priority; the lowest if nothing said so.
    pub priority: Priority,
    /// The tag that it came with has said so, and is no longer part of it.
    pub taken_off: bool,
    /// Behind that tag is another, which must not come to light.
    pub hides_tag: bool,
}

/// How a frame leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Release {
    /// As it is inside.
    Untagged,
    /// With a tag in front that names its VLAN.
    Tagged,
}

/// What happens to the tag of a frame on its way from one port to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TagOperation {
    /// Nothing.
    Keep,
    /// One is added in front of whatever there is.
    Push,
    /// The outermost goes.
    Pop,
    /// A tag that carries only a priority becomes one that names the VLAN.
    Replace,
}

impl PortRole {
    /// The VLAN that a frame from this port belongs to, by its outermost tag, if it has one (IEEE 802.1Q-2018, 6.9.1 and 8.6.2).
    ///
    /// # Errors
    /// Why the port does not admit it.
    #[inline(always)]
    pub fn admit(&self, tag: Option<OuterTag>) -> Result<Admitted, DropReason> {
        match (self, tag) {
            (Self::Access(id), None) => Ok(Admitted::untagged(Vlan::customer(*id))),
            (Self::Qinq(id), None) => Ok(Admitted::untagged(Vlan::service(*id))),
            (Self::Trunk(Trunk { native, .. }), None) => {
                native.map(|id| Admitted::untagged(Vlan::customer(id))).ok_or(DropReason::UntaggedNotAdmitted)
            }
            (Self::Access(id), Some(tag)) => Admitted::by_priority_tag(Vlan::customer(*id), tag)
                .filter(|admitted| !admitted.hides_tag)
                .ok_or_else(|| refusal(tag, DropReason::TagNotAdmitted)),
            (Self::Qinq(id), Some(tag)) => match tag.kind {
                TagKind::Customer => {
                    Ok(Admitted { priority: Priority::of(tag.control), ..Admitted::untagged(Vlan::service(*id)) })
                }
                TagKind::Service => {
                    Admitted::by_priority_tag(Vlan::service(*id), tag).ok_or_else(|| refusal(tag, DropReason::TagNotAdmitted))
                }
            },
            (Self::Trunk(trunk), Some(tag)) => trunk.admit(tag),
        }
    }

    /// Whether a frame of a VLAN may leave by this port, and how (IEEE 802.1Q-2018, 8.6.4 and 6.9.2). `hides_tag` is what was found when it was admitted.
    ///
    /// # Errors
    /// [`DropReason::VlanNotAllowed`] if the port is no member of its VLAN, [`DropReason::HiddenTag`] if it must not lose its tag.
    #[inline(always)]
    pub fn release(&self, vlan: Vlan, hides_tag: bool) -> Result<Release, DropReason> {
        match self.membership(vlan) {
            Some(Release::Untagged) if hides_tag => Err(DropReason::HiddenTag),
            Some(release) => Ok(release),
            None => Err(DropReason::VlanNotAllowed),
        }
    }

    /// How frames of a VLAN leave by this port, if it is a member.
    #[inline(always)]
    #[must_use]
    pub fn membership(&self, vlan: Vlan) -> Option<Release> {
        match self {
            Self::Access(id) => (vlan == Vlan::customer(*id)).then_some(Release::Untagged),
            Self::Qinq(id) => (vlan == Vlan::service(*id)).then_some(Release::Untagged),
            Self::Trunk(Trunk { native: Some(native), .. }) if vlan == Vlan::customer(*native) => Some(Release::Untagged),
            Self::Trunk(Trunk { allowed, .. }) => allowed.contains(vlan.id()).then_some(Release::Tagged),
        }
    }

    /// The VLAN whose frames leave by this port without a tag.
    #[must_use]
    pub fn untagged(&self) -> Option<Vlan> {
        match self {
            Self::Access(id) => Some(Vlan::customer(*id)),
            Self::Qinq(id) => Some(Vlan::service(*id)),
            Self::Trunk(Trunk { native, .. }) => native.map(Vlan::customer),
        }
    }
}

impl Trunk {
    #[inline(always)]
    fn admit(&self, tag: OuterTag) -> Result<Admitted, DropReason> {
        let hides_tag = tag.kind == TagKind::Customer && tag.hides_another();
        match VlanId::new(tag.number()) {
            Some(id) => {
                let vlan = Vlan::new(tag.kind, id);
                let is_native = || tag.kind == TagKind::Customer && self.native == Some(id);
                if !self.allowed.contains(id) && !is_native() {
                    return Err(DropReason::VlanNotAllowed);
                }
                Ok(Admitted { vlan, priority: Priority::of(tag.control), taken_off: true, hides_tag })
            }
            None if tag.number() == OuterTag::RESERVED => Err(DropReason::ReservedVlan),
            // There is no native VLAN of service tags.
            None if tag.kind == TagKind::Service => Err(DropReason::TagNotAdmitted),
            None => {
                let native = self.native.and_then(|id| Admitted::by_priority_tag(Vlan::customer(id), tag));
                native.ok_or(DropReason::UntaggedNotAdmitted)
            }
        }
    }
}

impl Admitted {
    /// A frame without a tag, or whose tags are its own business.
    #[inline(always)]
    #[must_use]
    pub const fn untagged(vlan: Vlan) -> Self {
        Self { vlan, priority: Priority::new(0, false), taken_off: false, hides_tag: false }
    }

    /// A frame with a tag that carries only a priority, of the kind of those that name the port's VLAN.
    #[inline(always)]
    fn by_priority_tag(vlan: Vlan, tag: OuterTag) -> Option<Self> {
        let hides_tag = tag.kind == TagKind::Customer && tag.hides_another();
        let admitted = Self { vlan, priority: Priority::of(tag.control), taken_off: true, hides_tag };
        (tag.kind == vlan.kind() && tag.number() == OuterTag::NO_VLAN).then_some(admitted)
    }

    /// The tag with which it leaves, where it leaves with one.
    #[inline(always)]
    #[must_use]
    pub const fn tag(&self) -> Tag {
        Tag { vlan: self.vlan, priority: self.priority }
    }

    /// What happened to the tag it came with, if it leaves like that. `came_with` is what the port that admitted it saw.
    #[must_use]
    pub fn operation(&self, came_with: Option<OuterTag>, release: Release) -> TagOperation {
        match (came_with.filter(|_| self.taken_off), release) {
            (None, Release::Untagged) => TagOperation::Keep,
            (None, Release::Tagged) => TagOperation::Push,
            (Some(_), Release::Untagged) => TagOperation::Pop,
            (Some(tag), Release::Tagged) if tag.number() == OuterTag::NO_VLAN => TagOperation::Replace,
            (Some(_), Release::Tagged) => TagOperation::Keep,
        }
    }
}

/// Why a tagged frame is not admitted by a port to which tags are nothing.
#[inline(always)]
fn refusal(tag: OuterTag, otherwise: DropReason) -> DropReason {
    if tag.number() == OuterTag::RESERVED { DropReason::ReservedVlan } else { otherwise }
}

#[cfg(test)]
mod tests;
