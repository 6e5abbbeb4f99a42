//! Mount hints: what a pod says of its volumes beyond their mounts, in the annotations of its
//! sandbox, `dev.gvisor.spec.mount.<name>.{source,type,share,options}` as gVisor reads them, and
//! the same under `dev.berm.mount.<name>`.
//!
//! A hint is for those mounts of the pod's containers whose `source` is its own, and for no other:
//! it names nothing that a spec does not mount already, so no node has to allow it. What gVisor
//! ignores with a warning is refused here: a kind or a field that nobody knows, a missing field.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use oci_spec::runtime;
use serde::{Deserialize, Serialize};

use crate::container::ContainerFacts;
use crate::ids::Ids;
use crate::options::{Options, parse_list};
use crate::refusal::{Error, invalid, no_nul, quoted, unsupported};
use crate::source::tmpfs_data;
use crate::spec::Spec;
use crate::step::{Atime, Attr, Idmap, PodTmpfs, Propagation, Source};

/// gVisor's annotations, and Berm's.
const PREFIXES: [&str; 2] = ["dev.gvisor.spec.mount.", OURS];
/// Berm's own.
pub(crate) const OURS: &str = "dev.berm.mount.";
/// More hints than a pod has volumes: for each the host makes a mount.
const MAX_HINTS: usize = 64;
/// All that they say, in bytes: they are kept in the sandbox's record.
const MAX_BYTES: usize = 64 << 10;
/// As long as a volume's name in Kubernetes.
const MAX_NAME: usize = 63;

/// The mount hints of a pod, with gVisor's keys (`PodMountHints`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountHints {
    /// By name.
    pub mounts: BTreeMap<String, MountHint>,
}

/// One hint (`MountHint`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountHint {
    /// Its name.
    pub name: String,
    /// Who sees what is written there.
    pub share: Share,
    /// What stands for the mounts of this source.
    pub mount: HintedMount,
}

/// The `mount` of a hint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HintedMount {
    /// Type.
    #[serde(rename = "type")]
    pub kind: HintType,
    /// The source of the mounts that it is for.
    pub source: PathBuf,
    /// Options of the whole.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
}

/// What stands for the mounts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HintType {
    /// A tmpfs of the pod, whatever the source holds.
    Tmpfs,
    /// What the spec mounts.
    Bind,
}

/// Who sees what is written (`ShareType`, whose numbers it is stored as).
///
/// In a pod of one kernel all see the same: `container` and `pod` differ as little here as a
/// tmpfs of either does in gVisor, and a bind is the same for all three.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "u8", try_from = "u8")]
pub enum Share {
    /// One container, whose next start finds it again.
    Container,
    /// The containers of the pod.
    Pod,
    /// Whoever else has the source.
    Shared,
}

impl Share {
    /// The word of the annotation.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Container => "container",
            Self::Pod => "pod",
            Self::Shared => "shared",
        }
    }
}

impl From<Share> for u8 {
    fn from(share: Share) -> Self {
        match share {
            Share::Container => 1,
            Share::Pod => 2,
            Share::Shared => 3,
        }
    }
}

impl TryFrom<u8> for Share {
    type Error = String;

    fn try_from(number: u8) -> Result<Self, String> {
        match number {
            1 => Ok(Self::Container),
            2 => Ok(Self::Pod),
            3 => Ok(Self::Shared),
            other => Err(format!("{other} is no share of a mount hint")),
        }
    }
}

impl HintType {
    /// The word of the annotation.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tmpfs => "tmpfs",
            Self::Bind => "bind",
        }
    }
}

/// An annotation that says something of a hint.
struct Annotation<'a> {
    key: &'a str,
    name: &'a str,
    field: &'a str,
    value: &'a str,
}

/// Every annotation of a spec that is of a hint, in the order of their keys.
fn annotations(spec: &Spec) -> Result<Vec<Annotation<'_>>, Error> {
    let mut found = Vec::new();
    for (key, value) in spec.oci.annotations().iter().flatten() {
        let Some(rest) = PREFIXES.iter().find_map(|p| key.strip_prefix(p)) else {
            continue;
        };
        let parts = rest.split_once('.').filter(|(_, f)| !f.contains('.'));
        let (name, field) = parts.ok_or_else(|| {
            let way_out = "name a hint and one of source, type, share, options";
            invalid(field_of(key), "not of the form NAME.FIELD", way_out)
        })?;
        check_name(key, name)?;
        found.push(Annotation {
            key,
            name,
            field,
            value,
        });
    }
    found.sort_by_key(|a| a.key);
    let bytes: usize = found.iter().map(|a| a.key.len() + a.value.len()).sum();
    if bytes > MAX_BYTES {
        let reason = format!("{bytes} bytes of mount hints, Berm takes {MAX_BYTES}");
        return Err(invalid("annotations", reason, "say less, or use mounts"));
    }
    Ok(found)
}

/// It names a directory of kubelet's, and one of the mount namespace where the tmpfs is kept.
fn check_name(key: &str, name: &str) -> Result<(), Error> {
    let fits = |b: u8| b.is_ascii_alphanumeric() || b"-_".contains(&b);
    if !name.is_empty() && name.len() <= MAX_NAME && name.bytes().all(fits) {
        return Ok(());
    }
    let reason = format!(
        "{} is no name of letters, digits, - and _, {MAX_NAME} at most",
        quoted(name)
    );
    Err(invalid(field_of(key), reason, "use the volume's name"))
}

fn field_of(key: &str) -> String {
    format!("annotations[{}]", quoted(key))
}

/// A hint whose annotations are being read: values with the keys that they stand under.
#[derive(Default)]
struct Draft<'a> {
    source: Option<(&'a str, &'a str)>,
    kind: Option<(&'a str, &'a str)>,
    share: Option<(&'a str, &'a str)>,
    options: Option<(&'a str, &'a str)>,
    /// Any of its keys.
    key: &'a str,
}

impl<'a> Draft<'a> {
    fn set(&mut self, given: &Annotation<'a>) -> Result<(), Error> {
        self.key = given.key;
        let slot = match given.field {
            "source" => &mut self.source,
            "type" => &mut self.kind,
            "share" => &mut self.share,
            "options" => &mut self.options,
            "directfs" => {
                let reason = "of gVisor's file proxy, which this engine has not";
                return Err(unsupported(field_of(given.key), reason, "drop it"));
            }
            _ => {
                let reason = format!("a hint has no {}", quoted(given.field));
                let way_out = "use source, type, share or options";
                return Err(invalid(field_of(given.key), reason, way_out));
            }
        };
        match slot {
            Some((other, value)) if *value != given.value => Err(invalid(
                field_of(given.key),
                format!("says otherwise than {}", quoted(other)),
                "give one of the two",
            )),
            _ => {
                *slot = Some((given.key, given.value));
                Ok(())
            }
        }
    }

    /// The key of a field that is missing, spelled as the others of this hint.
    fn beside(&self, field: &str) -> String {
        let stem = self.key.rsplit_once('.').map_or(self.key, |(stem, _)| stem);
        field_of(&format!("{stem}.{field}"))
    }

    fn need(
        &self,
        field: &str,
        value: Option<(&'a str, &'a str)>,
    ) -> Result<(&'a str, &'a str), Error> {
        value.ok_or_else(|| {
            let reason = "missing: a hint has source, type and share";
            let way_out = "add it, or drop the other annotations of this hint";
            invalid(self.beside(field), reason, way_out)
        })
    }

    fn hint(self, name: &str, volumes: &BTreeMap<String, PathBuf>) -> Result<MountHint, Error> {
        let (key, word) = self.need("type", self.kind)?;
        let kind = match word {
            "tmpfs" => HintType::Tmpfs,
            "bind" => HintType::Bind,
            other => return Err(neither(key, other, "\"tmpfs\" nor \"bind\"")),
        };
        let (key, word) = self.need("share", self.share)?;
        let all = [Share::Container, Share::Pod, Share::Shared];
        let Some(share) = all.into_iter().find(|share| share.as_str() == word) else {
            return Err(neither(key, word, "\"container\", \"pod\" nor \"shared\""));
        };
        if (kind, share) == (HintType::Tmpfs, Share::Shared) {
            let reason = "a tmpfs is the pod's: nobody outside sees it";
            let way_out = "use \"pod\", or type \"bind\"";
            return Err(invalid(field_of(key), reason, way_out));
        }
        let source = self.source(name, volumes)?;
        let options = match self.options {
            Some((key, list)) => options_of(key, kind, list)?,
            None => Vec::new(),
        };
        Ok(MountHint {
            name: name.to_owned(),
            share,
            mount: HintedMount {
                kind,
                source,
                options,
            },
        })
    }

    fn source(&self, name: &str, volumes: &BTreeMap<String, PathBuf>) -> Result<PathBuf, Error> {
        let Some((key, source)) = self.source else {
            return volumes.get(name).cloned().ok_or_else(|| {
                let reason = format!("missing, and kubelet has no volume {} here", quoted(name));
                let way_out = "add it: a path as in mounts[].source";
                invalid(self.beside("source"), reason, way_out)
            });
        };
        no_nul(&field_of(key), source)?;
        if !source.starts_with('/') {
            let reason = format!("{} is not an absolute path", quoted(source));
            return Err(invalid(field_of(key), reason, "use a path as in mounts[]"));
        }
        Ok(PathBuf::from(source))
    }
}

fn neither(key: &str, word: &str, known: &str) -> Error {
    let reason = format!("{} is neither {known}", quoted(word));
    invalid(field_of(key), reason, "use one of them")
}

fn split(list: &str) -> impl Iterator<Item = &str> {
    list.split(',').filter(|option| !option.is_empty())
}

/// Flags of a mount, and what a tmpfs takes.
fn options_of(key: &str, kind: HintType, list: &str) -> Result<Vec<String>, Error> {
    let options: Vec<_> = split(list).map(str::to_owned).collect();
    let field = |option: &str| format!("{} {}", field_of(key), quoted(option));
    for option in &options {
        let read = parse_list(std::slice::from_ref(option), &field)?;
        let flags = Options {
            attr: read.attr,
            ..Options::default()
        };
        if kind == HintType::Tmpfs {
            // Which ids the pod has is not known yet.
            tmpfs_data(&read.data, &Ids::default(), &field)?;
        }
        let data = kind == HintType::Tmpfs && !read.data.is_empty();
        if read != flags && !data {
            let way_out = match kind {
                HintType::Tmpfs => "use ro, nosuid, nodev, noexec, noatime, and those of a tmpfs",
                HintType::Bind => "use ro, nosuid, nodev, noexec, noatime",
            };
            let reason = "no option of such a hint";
            return Err(unsupported(field(option), reason, way_out));
        }
    }
    Ok(options)
}

impl MountHints {
    /// Reads the hints of a sandbox's spec; `volumes`: where kubelet has those of
    /// [`Spec::volumes_to_find`].
    pub(crate) fn parse(spec: &Spec, volumes: &BTreeMap<String, PathBuf>) -> Result<Self, Error> {
        let mut drafts: BTreeMap<&str, Draft<'_>> = BTreeMap::new();
        for given in annotations(spec)? {
            drafts.entry(given.name).or_default().set(&given)?;
        }
        if drafts.len() > MAX_HINTS {
            let reason = format!("{} mount hints, Berm takes {MAX_HINTS}", drafts.len());
            return Err(invalid("annotations", reason, "use fewer"));
        }
        let mut hints = Self::default();
        for (name, draft) in drafts {
            let beside = draft.beside("source");
            let hint = draft.hint(name, volumes)?;
            if let Some(other) = hints.find(&hint.mount.source) {
                let reason = format!("the source of hint {} as well", quoted(&other.name));
                return Err(invalid(beside, reason, "keep one of the two hints"));
            }
            hints.mounts.insert(name.to_owned(), hint);
        }
        Ok(hints)
    }

    /// There are none.
    pub fn is_empty(&self) -> bool {
        self.mounts.is_empty()
    }

    /// The hint for mounts of this source.
    pub fn find(&self, source: &Path) -> Option<&MountHint> {
        self.mounts.values().find(|h| h.mount.source == source)
    }

    /// What the host makes once for the pod, with the host's numbers of its ids.
    /// # Errors
    /// [`Error::NotSupported`] for an owner that the pod's map does not hold.
    pub fn tmpfs(&self, ids: &Ids) -> Result<Vec<PodTmpfs>, Error> {
        let made = self.mounts.values();
        let made = made.filter(|hint| hint.mount.kind == HintType::Tmpfs);
        made.map(|hint| hint.tmpfs(ids)).collect()
    }

    /// Hints are the pod's. CRI copies annotations of a pod to its containers: a container may
    /// repeat those of its pod, no more.
    pub(crate) fn only_repeated(&self, spec: &Spec) -> Result<(), Error> {
        for given in annotations(spec)? {
            let hint = self.mounts.get(given.name);
            if !hint.is_some_and(|hint| hint.says(given.field, given.value)) {
                return Err(unsupported(
                    field_of(given.key),
                    "not what the pod's sandbox says, whose the hints are",
                    "set it on the pod",
                ));
            }
        }
        Ok(())
    }
}

impl MountHint {
    fn says(&self, field: &str, value: &str) -> bool {
        let mount = &self.mount;
        match field {
            "source" => mount.source == Path::new(value),
            "type" => mount.kind.as_str() == value,
            "share" => self.share.as_str() == value,
            "options" => split(value).eq(mount.options.iter().map(String::as_str)),
            _ => false,
        }
    }

    fn field(&self, option: &str) -> String {
        format!(
            "mount hint {} options {}",
            quoted(&self.name),
            quoted(option)
        )
    }

    fn options(&self) -> Result<Options, Error> {
        parse_list(&self.mount.options, &|option: &str| self.field(option))
    }

    fn tmpfs(&self, ids: &Ids) -> Result<PodTmpfs, Error> {
        let data = self.options()?.data;
        let names = |keys: &[&str]| data.iter().any(|(key, _)| keys.contains(&key.as_str()));
        Ok(PodTmpfs {
            name: self.name.clone(),
            like: self.mount.source.clone(),
            mode_of_source: !names(&["mode"]),
            owner_of_source: !names(&["uid", "gid"]),
            options: tmpfs_data(&data, ids, &|option: &str| self.field(option))?,
        })
    }
}

/// What stands for `mounts[index]` because of a hint; `None`: what the spec says, whose options
/// then are no looser than the hint's.
pub(crate) fn source(
    index: usize,
    mount: &runtime::Mount,
    options: &mut Options,
    facts: &ContainerFacts,
) -> Result<Option<Source>, Error> {
    let found = mount.source().as_ref().and_then(|s| facts.hints.find(s));
    let Some(hint) = found else { return Ok(None) };
    let given = mount.typ().as_deref().unwrap_or_default();
    let bind = options.bind || given == "bind";
    let tmpfs = hint.mount.kind == HintType::Tmpfs;
    let replaceable = bind || tmpfs && given == "tmpfs";
    if !replaceable {
        let reason = format!(
            "mount hint {} makes a {} of it",
            quoted(&hint.name),
            hint.mount.kind.as_str()
        );
        let field = format!("mounts[{index}].type {}", quoted(given));
        return Err(unsupported(field, reason, "mount it by \"bind\""));
    }
    hint.no_looser(index, mount, options)?;
    if !tmpfs {
        return Ok(None);
    }
    hint.fits(index, mount, options, facts)?;
    let name = hint.name.clone();
    Ok(Some(Source::Hinted { name }))
}

impl MountHint {
    /// A container's mount has all restrictions of its hint. The spec's silence is filled in, its
    /// word against it is refused; for `ro` its silence is one.
    fn no_looser(
        &self,
        index: usize,
        mount: &runtime::Mount,
        options: &mut Options,
    ) -> Result<(), Error> {
        let hint = self.options()?.attr;
        let words = mount.options().as_deref().unwrap_or_default();
        let against = |word: &str| words.iter().any(|option| option == word);
        let attr = &mut options.attr;
        let looser = [
            (hint.ro && !attr.ro, "ro"),
            (hint.nosuid && !attr.nosuid && against("suid"), "nosuid"),
            (hint.nodev && !attr.nodev && against("dev"), "nodev"),
            (hint.noexec && !attr.noexec && against("exec"), "noexec"),
            (
                hint.atime == Atime::Noatime
                    && !matches!(attr.atime, Atime::Inherit | Atime::Noatime),
                "noatime",
            ),
        ];
        if let Some((_, word)) = looser.iter().find(|(looser, _)| *looser) {
            let reason = format!("looser than mount hint {}", quoted(&self.name));
            let way_out = format!("add \"{word}\", or take it out of the hint");
            return Err(invalid(format!("mounts[{index}].options"), reason, way_out));
        }
        attr.restrict(hint);
        Ok(())
    }

    /// Options of a mount that are none of a part of the pod's tmpfs.
    fn fits(
        &self,
        index: usize,
        mount: &runtime::Mount,
        options: &Options,
        facts: &ContainerFacts,
    ) -> Result<(), Error> {
        let refuse = |what: &str, reason: &str, way_out: &str| {
            let reason = format!("mount hint {}: {reason}", quoted(&self.name));
            Err(unsupported(
                format!("mounts[{index}].{what}"),
                reason,
                way_out,
            ))
        };
        if let Some((key, _)) = options.data.first() {
            let what = format!("options {}", quoted(key));
            return refuse(&what, "the tmpfs is the pod's", "put it into the hint");
        }
        if let Some(flag) = options.superblock.first() {
            let what = format!("options {}", quoted(flag));
            return refuse(&what, "the tmpfs is the pod's", "drop it");
        }
        if options.copy_up {
            return refuse("options \"tmpcopyup\"", "the tmpfs is the pod's", "drop it");
        }
        let shared = |p: &crate::step::Propagate| p.kind == Propagation::Shared;
        if options.propagation.iter().any(shared) {
            let reason = "the node does not have that tmpfs";
            let way_out = "use mountPropagation HostToContainer or None";
            return refuse("options \"shared\"", reason, way_out);
        }
        let idmap = crate::source::id_map(index, mount, options, facts)?;
        if matches!(idmap, Idmap::Own { .. }) {
            let reason = "the tmpfs has the pod's ids";
            return refuse("uidMappings", reason, "drop them");
        }
        Ok(())
    }
}

impl Attr {
    /// Adds the restrictions of another.
    fn restrict(&mut self, other: Self) {
        self.ro |= other.ro;
        self.nosuid |= other.nosuid;
        self.nodev |= other.nodev;
        self.noexec |= other.noexec;
        self.nosymfollow |= other.nosymfollow;
        self.nodiratime |= other.nodiratime;
        if self.atime == Atime::Inherit {
            self.atime = other.atime;
        }
    }
}

/// A pod's tmpfs is made before its containers are known, without their label.
pub(crate) fn refuse_label(
    label: Option<&String>,
    tree: &[crate::step::Mount],
) -> Result<(), Error> {
    let hinted = tree.iter().find_map(|mount| match &mount.source {
        Source::Hinted { name } => Some(name),
        _ => None,
    });
    match (label, hinted) {
        (Some(_), Some(name)) => Err(unsupported(
            "linux.mountLabel",
            format!("the tmpfs of mount hint {} has no label", quoted(name)),
            "drop the hint, or the label",
        )),
        _ => Ok(()),
    }
}

impl Spec {
    /// The hints that name no source: those of kubelet's volumes of the same names.
    pub fn volumes_to_find(&self) -> Vec<String> {
        // What is wrong with them is said when they are read.
        let all = annotations(self).unwrap_or_default();
        let mut names: Vec<_> = all.iter().map(|a| a.name).collect();
        names.sort_unstable();
        names.dedup();
        let named = |name: &str| all.iter().any(|a| a.name == name && a.field == "source");
        names.retain(|name| !named(name));
        names.into_iter().map(str::to_owned).collect()
    }
}
