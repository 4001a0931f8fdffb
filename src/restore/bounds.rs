//! What a snapshot may not bring: whoever made it need not be the administrator.
//!
//! On a volume, which others of the host see, neither devices nor what gives rights to whoever runs
//! it; and where the container has a user namespace no number of a user that is not its own, as its
//! own processes could have made none. What is there already, as it is to be, is not brought.

use std::path::PathBuf;

use anyhow::{Context, Result, anyhow};

use super::reconcile::Target;
use crate::bytes::ByteString;
use crate::container::{Bundle, Users};
use crate::glob;
use crate::hint::WithHint;
use crate::locations;
use crate::snapshot::{Gain, Id, Kind, Meta, Plan, Verb};
use crate::substitute::Allow;

/// Refuses what the parts may not bring.
pub(super) fn ensure_within(
    parts: &[Target],
    plans: &[Plan<'_>],
    bundle: &Bundle,
    allow: &Allow,
) -> Result<()> {
    for (part, plan) in parts.iter().zip(plans).filter(|(_, plan)| !plan.is_empty()) {
        let bounds = Bounds::of(part, bundle, allow)?;
        bounds
            .ensure(plan)
            .with_context(|| format!("looking at {}", part.destination.display()))?;
    }
    Ok(())
}

/// The bounds of a part.
struct Bounds {
    /// A volume to which nothing privileged may come.
    volume: Option<PathBuf>,
    users: Option<Users>,
}

/// What a path would have that it may not have.
#[derive(Debug, PartialEq, Eq)]
enum Excess {
    Device,
    SetId,
    Attribute(ByteString),
    User(u32),
    Group(u32),
}

impl Bounds {
    fn of(part: &Target, bundle: &Bundle, allow: &Allow) -> Result<Self> {
        let path = ByteString::from(part.path());
        let matches = |pattern: &String| glob::matches(pattern.as_bytes(), path.as_bytes());
        let is_free = part.is_root() || allow.privileged_volumes.iter().any(matches);
        Ok(Self {
            volume: (!is_free).then(|| part.path().to_owned()),
            users: bundle.users_at(&part.destination)?,
        })
    }

    fn ensure(&self, plan: &Plan<'_>) -> Result<()> {
        if self.volume.is_none() && self.users.is_none() {
            return Ok(());
        }
        let label = plan.present(Id::ROOT)?.and_then(|top| top.xattrs.get(&LABEL.into()).cloned());
        let (mut first, mut others) = (None, 0);
        for gain in plan.gains() {
            let Some(excess) = self.excess(&gain, label.as_ref(), || plan.present(gain.path))?
            else {
                continue;
            };
            match first {
                None => first = Some((plan.path(gain.path), excess)),
                Some(_) => others += 1,
            }
        }
        match first {
            None => Ok(()),
            Some((path, excess)) => Err(self.refuse(&path, &excess, others)),
        }
    }

    /// What is too much; `present` tells what is there now, if that matters.
    fn excess(
        &self,
        gain: &Gain<'_>,
        label: Option<&ByteString>,
        present: impl FnOnce() -> Result<Option<Meta>>,
    ) -> Result<Option<Excess>> {
        let meta = &gain.entry.meta;
        let privilege = self.privilege(&gain.entry.kind, meta, label);
        let foreign = self.users.as_ref().and_then(|users| foreign(users, meta));
        let Some(excess) = privilege.or(foreign) else { return Ok(None) };
        let is_privileged =
            is_device(&gain.entry.kind) || rights(&gain.entry.kind, meta) != (0, Vec::new());
        let stays = present()?.is_some_and(|now| {
            let same_owner =
                (now.uid, now.gid) == (meta.uid, meta.gid) && acls(&now).eq(acls(meta));
            let same_rights = rights(&gain.entry.kind, &now) == rights(&gain.entry.kind, meta);
            // Attributes alone leave what has them what it is, content and all.
            same_owner && same_rights && (gain.verb == Verb::Attributes || !is_privileged)
        });
        Ok((!stays).then_some(excess))
    }

    /// What would give rights on the host.
    fn privilege(&self, kind: &Kind, meta: &Meta, label: Option<&ByteString>) -> Option<Excess> {
        // In a user namespace nobody makes a device, and file capabilities count there alone.
        let is_volume = self.volume.is_some();
        let is_confined = is_volume || self.users.is_some();
        if is_confined && is_device(kind) {
            return Some(Excess::Device);
        }
        if is_volume && rights(kind, meta).0 != 0 {
            return Some(Excess::SetId);
        }
        let is_usual = |name: &ByteString, value: &ByteString| {
            name.as_bytes() == LABEL.as_bytes() && Some(value) == label
                || !is_volume && name.as_bytes() == CAPABILITY && self.is_own_capability(value)
        };
        let mut security = security(meta).filter(|(name, value)| !is_usual(name, value));
        security.next().filter(|_| is_confined).map(|(name, _)| Excess::Attribute(name.clone()))
    }

    /// Capabilities that the kernel honours in the namespace of this user alone (`struct
    /// vfs_ns_cap_data` in linux/capability.h).
    fn is_own_capability(&self, value: &ByteString) -> bool {
        const REVISION_3: u8 = 3;
        let bytes = value.as_bytes();
        let Some(Ok(root)) = bytes.get(20..24).map(<[u8; 4]>::try_from) else { return false };
        let users = self.users.as_ref();
        bytes[3] == REVISION_3
            && users.is_some_and(|users| users.uids.contain(u32::from_le_bytes(root)))
    }

    fn refuse(&self, path: &ByteString, excess: &Excess, others: usize) -> anyhow::Error {
        let what = match excess {
            Excess::Device => "the checkpoint would make it a device".to_owned(),
            Excess::SetId => {
                "the checkpoint would give it a set-user-ID or set-group-ID bit".to_owned()
            }
            Excess::Attribute(name) => format!("the checkpoint would give it the attribute {name}"),
            Excess::User(id) => format!("the checkpoint would give it to user {id} of the host"),
            Excess::Group(id) => format!("the checkpoint would give it to group {id} of the host"),
        };
        let others = match others {
            0 => String::new(),
            more => format!("; and the like for {more} other paths"),
        };
        let hint = match (excess, &self.volume) {
            (Excess::User(_) | Excess::Group(_), _) | (_, None) => {
                "the container's user namespace has no such thing: the checkpoint is of a container with \
                 another one, or was altered".to_owned()
            }
            (_, Some(volume)) => format!(
                "if it may, that is a line `privileged-volumes = [\"{}\"]` below [allow] in {}",
                ByteString::from(volume.as_path()),
                locations::configuration().display()
            ),
        };
        anyhow!("/{path}: {what}{others}").hint(hint)
    }
}

const LABEL: &str = "security.selinux";
const CAPABILITY: &[u8] = b"security.capability";

fn is_device(kind: &Kind) -> bool {
    matches!(kind, Kind::Char { .. } | Kind::Block { .. })
}

fn security(meta: &Meta) -> impl Iterator<Item = (&ByteString, &ByteString)> {
    meta.xattrs.iter().filter(|(name, _)| name.as_bytes().starts_with(b"security."))
}

fn acls(meta: &Meta) -> impl Iterator<Item = (&ByteString, &ByteString)> {
    meta.xattrs.iter().filter(|(name, _)| name.as_bytes().starts_with(b"system.posix_acl"))
}

/// Set-ID bits, which mean something else on a directory, and attributes of security modules.
fn rights<'a>(kind: &Kind, meta: &'a Meta) -> (u32, Vec<(&'a ByteString, &'a ByteString)>) {
    const SET_ID: u32 = 0o6000;
    let is_dir = matches!(kind, Kind::Dir { .. });
    (if is_dir { 0 } else { meta.mode & SET_ID }, security(meta).collect())
}

/// A user or group of the host who is none of the container's.
fn foreign(users: &Users, meta: &Meta) -> Option<Excess> {
    let (mut uids, mut gids) = (vec![meta.uid], vec![meta.gid]);
    for (_, list) in acls(meta) {
        for (tag, id) in named_in(list) {
            match tag {
                ACL_USER => uids.push(id),
                ACL_GROUP => gids.push(id),
                _ => {}
            }
        }
    }
    let uid = uids.into_iter().find(|uid| !users.uids.contain(*uid));
    let gid = gids.into_iter().find(|gid| !users.gids.contain(*gid));
    uid.map(Excess::User).or(gid.map(Excess::Group))
}

/// Entries of an access control list that name somebody (linux/posix_acl_xattr.h).
const ACL_USER: u16 = 2;
const ACL_GROUP: u16 = 8;

/// Tag and number of each entry of an access control list: behind four bytes, two of each entry's
/// eight are the tag, and the last four the number.
fn named_in(list: &ByteString) -> impl Iterator<Item = (u16, u32)> {
    list.as_bytes().get(4..).unwrap_or_default().chunks_exact(8).map(|entry| {
        let tag = u16::from_le_bytes([entry[0], entry[1]]);
        (tag, u32::from_le_bytes([entry[4], entry[5], entry[6], entry[7]]))
    })
}
