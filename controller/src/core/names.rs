//! Every path and every name that this program gives to anything, in one place.
//! Only computes names; nothing here looks whether the thing is there.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::units::Generation;
use super::volume::Volume;

/// Ends the names of the files in which a volume tells of changes.
const THIN_CHANGES: &str = ".thin-changes";

/// A libvirt domain name that is safe as one component of a path.
///
/// libvirt itself refuses `/` and newlines in the names of QEMU domains. Spaces, quotes, `%` and backslashes are
/// kept as they are: no name goes through a shell, and a user must find `B/<vm>` under the name that libvirt shows.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct VmName(String);

/// Why a name cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum NameError {
    #[error("the name is empty")]
    Empty,
    #[error("the name {name:?} contains {character:?}, which has no place in a file name of ours")]
    Character { name: String, character: char },
    #[error("the name {name:?} begins with a dot: names of ours that begin so are not for VMs")]
    LeadingDot { name: String },
    #[error("the name {name:?} ends in \".lock\", so its directory could be another VM's lock")]
    LooksLikeLock { name: String },
    #[error("the name {name:?} is {length} bytes long, more than {limit}")]
    TooLong { name: String, length: usize, limit: usize },
    #[error("{text:?} is not a UUID")]
    Uuid { text: String },
    #[error("{text:?} is not a job id of 16 hexadecimal digits")]
    Job { text: String },
}

impl VmName {
    /// 255 bytes are a path component on Linux; the rest is for `_<target>.b3`, `.lock` and temporary suffixes.
    pub const MAX_BYTES: usize = 200;

    /// The only way from a VM's name to a path component.
    pub fn new(name: &str) -> Result<VmName, NameError> {
        check_component(name, Self::MAX_BYTES)?;
        if name.ends_with(".lock") {
            return Err(NameError::LooksLikeLock { name: name.to_owned() });
        }
        Ok(VmName(name.to_owned()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The name under which the guest sees a disk, `vda`: unique in its domain, and part of file names.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Target(String);

impl Target {
    /// Linux and libvirt use names such as `sdaaa`; anything near this is not a target.
    pub const MAX_BYTES: usize = 32;

    /// Letters, digits, `_`, `-`, `.` and `:`, not beginning with a dot or a dash.
    pub fn new(name: &str) -> Result<Target, NameError> {
        check_component(name, Self::MAX_BYTES)?;
        let odd = |c: char| !(c.is_ascii_alphanumeric() || "_-.:".contains(c));
        match name.chars().find(|c| odd(*c)).or(name.starts_with('-').then_some('-')) {
            Some(character) => Err(NameError::Character { name: name.to_owned(), character }),
            None => Ok(Target(name.to_owned())),
        }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn check_component(name: &str, limit: usize) -> Result<(), NameError> {
    if name.is_empty() {
        return Err(NameError::Empty);
    }
    if let Some(character) = name.chars().find(|c| *c == '/' || c.is_control()) {
        return Err(NameError::Character { name: name.to_owned(), character });
    }
    if name.starts_with('.') {
        return Err(NameError::LeadingDot { name: name.to_owned() });
    }
    if name.len() > limit {
        return Err(NameError::TooLong { name: name.to_owned(), length: name.len(), limit });
    }
    Ok(())
}

/// A domain's UUID in lower case with dashes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Uuid(String);

impl Uuid {
    pub fn new(text: &str) -> Result<Uuid, NameError> {
        let digits: String = text.chars().filter(|c| *c != '-').collect::<String>().to_ascii_lowercase();
        if digits.len() != 32 || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(NameError::Uuid { text: text.to_owned() });
        }
        let parts = [&digits[..8], &digits[8..12], &digits[12..16], &digits[16..20], &digits[20..]];
        Ok(Uuid(parts.join("-")))
    }

    /// A random one (RFC 9562, version 4), of random bits.
    pub fn from_bits(bits: u128) -> Uuid {
        let bits = bits & !(0xf << 76) & !(0x3 << 62) | 4 << 76 | 2 << 62;
        Uuid::new(&format!("{bits:032x}")).expect("32 digits are a UUID")
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// One run of this program on one VM, from its lock to its cleanup. 64 random bits, drawn by the host.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct JobId(String);

impl JobId {
    pub fn from_bits(bits: u64) -> JobId {
        JobId(format!("{bits:016x}"))
    }

    pub fn new(text: &str) -> Result<JobId, NameError> {
        let fine = text.len() == 16 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if fine { Ok(JobId(text.to_owned())) } else { Err(NameError::Job { text: text.to_owned() }) }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

macro_rules! text_type {
    ($($name:ident),*) => {$(
        impl TryFrom<String> for $name {
            type Error = NameError;
            fn try_from(text: String) -> Result<Self, NameError> { $name::new(&text) }
        }
        impl From<$name> for String {
            fn from(name: $name) -> String { name.0 }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { f.write_str(&self.0) }
        }
    )*};
}
text_type!(VmName, Target, Uuid, JobId);

/// A checkpoint of ours: `virt-backup-<generation>-<job>-<check>`.
///
/// The check is a digest over the domain's UUID, the generation and the job. A user may well call a checkpoint
/// `virt-backup-1`; nobody gets the check right by accident, and a clone of the domain does not inherit it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct CheckpointName(String);

impl CheckpointName {
    const PREFIX: &str = "virt-backup-";

    pub fn new(uuid: &Uuid, generation: Generation, job: &JobId) -> CheckpointName {
        let check = Self::check(uuid, generation, job);
        CheckpointName(format!("{}{generation}-{job}-{check}", Self::PREFIX))
    }

    /// `Some` when this program made the checkpoint of that name for that domain.
    pub fn recognise(uuid: &Uuid, name: &str) -> Option<(CheckpointName, Generation)> {
        let mut parts = name.strip_prefix(Self::PREFIX)?.split('-');
        let generation = Generation(parts.next()?.parse().ok()?);
        let job = JobId::new(parts.next()?).ok()?;
        let ours = CheckpointName::new(uuid, generation, &job);
        (ours.0 == name).then_some((ours, generation))
    }

    /// A name of our form, of a domain that is not known here: to be recognised before it means anything.
    pub fn of_any_domain(name: &str) -> Option<CheckpointName> {
        name.starts_with(Self::PREFIX).then(|| CheckpointName(name.to_owned()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn check(uuid: &Uuid, generation: Generation, job: &JobId) -> String {
        let text = format!("virt-backup checkpoint\n{uuid}\n{generation}\n{job}\n");
        blake3::hash(text.as_bytes()).to_hex()[..8].to_owned()
    }
}

impl fmt::Display for CheckpointName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The directories that the user may choose.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Places {
    /// `B`, --backupdir: views appear here.
    pub backup_dir: PathBuf,
    /// --lockdir, `B` unless told otherwise.
    pub lock_dir: PathBuf,
    /// --statedir: journals, indexes, what a running job needs. Survives a reboot.
    pub state_dir: PathBuf,
}

impl Default for Places {
    fn default() -> Places {
        Places {
            backup_dir: PathBuf::from("/var/lib/libvirt/backup"),
            lock_dir: PathBuf::from("/var/lib/libvirt/backup"),
            state_dir: PathBuf::from("/var/lib/virt-backup"),
        }
    }
}

/// The names for one VM.
///
/// ```text
/// B/<vm>.lock  B/<vm>/                      the lock, the view
/// <state>/<vm>/journal  guard               what is owed; who works on it (kept open, never removed)
/// <state>/<vm>/index/                       stamps and digests of each disk: the daemon's
/// <state>/<vm>/view.json  <vm>.xml  <vm>.json   while a job runs: what the daemon is to show
/// <state>/<vm>/dumped                       which files in B/<vm>/ are of a dump: for cleanup
/// <state>/<vm>/log                          the daemon's messages
/// <state>/<vm>/nvram                        while a job runs: the UEFI variables, as of its point in time
/// <state>/<vm>/tpm/                         the same of the files of an emulated TPM's state
/// <state>/<vm>/state                        while a job with --state runs: the guest's memory
/// <state>/<vm>/volumes/<group>-<volume>/    while a job runs by method lvm: the file system of a snapshot, mounted read-only
/// /dev/<group>/<volume>_<epoch>             while a job runs by method lvm, tagged virt-backup:<uuid>
/// <state>/<vm>/scratch/<target>.qcow2       while a job runs: what QEMU saves before the guest overwrites it
/// <image>.virt-backup-<job>                 while a job runs by method external: what the guest writes meanwhile
/// <image>.virt-backup-clone-<job>           while a job runs by method reflink: the image as it was
/// <state>/.run/<16 digits>/nbd.sock         sockets: a socket's path may have 107 bytes, a VM's name more
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Names {
    places: Places,
    vm: VmName,
}

impl Names {
    pub fn new(places: &Places, vm: &VmName) -> Names {
        Names { places: places.clone(), vm: vm.clone() }
    }

    pub fn vm(&self) -> &VmName {
        &self.vm
    }

    pub fn backup_dir(&self) -> &Path {
        &self.places.backup_dir
    }

    pub fn lock_dir(&self) -> &Path {
        &self.places.lock_dir
    }

    pub fn lock(&self) -> PathBuf {
        self.places.lock_dir.join(format!("{}.lock", self.vm))
    }

    /// Where the view is mounted, `B/<vm>`.
    pub fn mount_point(&self) -> PathBuf {
        self.places.backup_dir.join(self.vm.as_str())
    }

    /// What the kernel shows as the source of our mount. A mount without it is not ours.
    pub fn mount_source(&self) -> String {
        format!("chunkfs-{}", self.vm)
    }

    pub fn state_root(&self) -> &Path {
        &self.places.state_dir
    }

    pub fn home(&self) -> PathBuf {
        self.places.state_dir.join(self.vm.as_str())
    }

    pub fn guard(&self) -> PathBuf {
        self.home().join("guard")
    }

    pub fn journal(&self) -> PathBuf {
        self.home().join("journal")
    }

    pub fn index_dir(&self) -> PathBuf {
        self.home().join("index")
    }

    pub fn view_spec(&self) -> PathBuf {
        self.home().join("view.json")
    }

    pub fn saved_xml(&self) -> PathBuf {
        self.home().join(self.shown_xml())
    }

    /// What `<vm>.json` in the view shows.
    pub fn saved_about(&self) -> PathBuf {
        self.home().join(self.shown_about())
    }

    pub fn saved_nvram(&self) -> PathBuf {
        self.home().join("nvram")
    }

    /// The name in the view of the UEFI variables.
    pub fn shown_nvram(&self) -> String {
        format!("{}.nvram", self.vm)
    }

    /// The files of the state of an emulated TPM.
    pub fn saved_tpm(&self) -> PathBuf {
        self.home().join("tpm")
    }

    /// The name of the TPM's directory in the view and in a dump.
    pub fn shown_tpm(&self) -> String {
        format!("{}.tpm", self.vm)
    }

    /// The guest's memory, as libvirt saves it.
    pub fn saved_state(&self) -> PathBuf {
        self.home().join("state")
    }

    /// The name of the memory in the view and in a dump.
    pub fn shown_state(&self) -> String {
        format!("{}.state", self.vm)
    }

    /// Where a dump goes: where a view would be.
    pub fn dump_dir(&self) -> PathBuf {
        self.mount_point()
    }

    /// `mail01_vda.img`, `mail01_vda.img.gz`, `mail01_vda.qcow2`
    pub fn dump_file(&self, target: &Target, extension: &str) -> String {
        format!("{}_{target}{extension}", self.vm)
    }

    /// The digests of a dump; written last.
    pub fn dump_digests(&self) -> String {
        format!("{}.b3", self.vm)
    }

    /// Which files in the dump directory are ours.
    pub fn dump_record(&self) -> PathBuf {
        self.home().join("dumped")
    }

    /// Where the file systems of snapshots of logical volumes are mounted.
    pub fn volumes_dir(&self) -> PathBuf {
        self.home().join("volumes")
    }

    pub fn volume_point(&self, snapshot: &Volume) -> PathBuf {
        self.volumes_dir().join(format!("{}-{}", snapshot.group(), snapshot.name()))
    }

    /// What a disk's volume tells of changes.
    pub fn thin_changes(&self, target: &Target) -> PathBuf {
        self.home().join(format!("{target}{THIN_CHANGES}"))
    }

    pub fn scratch_dir(&self) -> PathBuf {
        self.home().join("scratch")
    }

    /// The daemon's messages, of the last job.
    pub fn log_beside(spec: &Path) -> PathBuf {
        spec.with_file_name("log")
    }

    pub fn scratch_file(&self, target: &Target) -> PathBuf {
        self.scratch_dir().join(format!("{target}.qcow2"))
    }

    pub fn socket_root(&self) -> PathBuf {
        self.places.state_dir.join(".run")
    }

    pub fn socket_dir(&self) -> PathBuf {
        let digest = blake3::hash(self.vm.as_str().as_bytes()).to_hex();
        self.socket_root().join(&digest[..16])
    }

    /// The socket on which QEMU serves all disks of a backup job.
    pub fn backup_socket(&self) -> PathBuf {
        self.socket_dir().join("nbd.sock")
    }

    /// The socket on which `qemu-nbd` serves one disk of a guest that is off.
    pub fn image_socket(&self, target: &Target) -> PathBuf {
        self.socket_dir().join(format!("{target}.sock"))
    }

    /// The name of a disk's chunk tree in the view, `mail01_vda`.
    pub fn shown_disk(&self, target: &Target) -> String {
        format!("{}_{target}", self.vm)
    }

    /// The name in the view of what is told of it.
    pub fn shown_about(&self) -> String {
        format!("{}.json", self.vm)
    }

    /// The name of the domain's XML in the view.
    pub fn shown_xml(&self) -> String {
        format!("{}.xml", self.vm)
    }
}

/// Where libvirt keeps the states of emulated TPMs.
pub const TPM_ROOT: &str = "/var/lib/libvirt/swtpm";

/// Where it keeps that of one domain's: `version` is `2.0` or `1.2`.
pub fn tpm_dir(uuid: &Uuid, version: &str) -> PathBuf {
    let version = if version == "2.0" { "tpm2" } else { "tpm1.2" };
    Path::new(TPM_ROOT).join(uuid.as_str()).join(version)
}

/// Can this be the name of a file in a directory, and of nothing outside of it?
pub fn is_file_name(name: &str) -> bool {
    !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\0'])
}

/// What a file is called until it is whole.
pub fn partial_of(name: &str) -> String {
    format!("{name}.partial")
}

const OVERLAY: &str = ".virt-backup-";
const CLONE: &str = ".virt-backup-clone-";

/// Where the guest writes while its image is read: beside the image, where there is as much room as the guest counts
/// upon, and where libvirt lets QEMU write.
pub fn overlay_of(image: &Path, job: &JobId) -> PathBuf {
    beside(image, OVERLAY, job)
}

/// Where the clone of an image is: sharing blocks goes within a file system only.
pub fn clone_of(image: &Path, job: &JobId) -> PathBuf {
    beside(image, CLONE, job)
}

/// The image below an overlay, by the overlay's name. None: not an overlay of ours.
pub fn image_of_overlay(overlay: &Path) -> Option<PathBuf> {
    let (image, job) = overlay.to_str()?.rsplit_once(OVERLAY)?;
    JobId::new(job).ok()?;
    Some(PathBuf::from(image))
}

fn beside(image: &Path, mark: &str, job: &JobId) -> PathBuf {
    let mut path = image.as_os_str().to_owned();
    path.push(mark);
    path.push(job.as_str());
    PathBuf::from(path)
}

/// Is this the name of a file in a VM's home, one of those that `Names::thin_changes` gives?
pub fn is_thin_changes(name: &str) -> bool {
    name.strip_suffix(THIN_CHANGES).is_some_and(|target| Target::new(target).is_ok())
}

/// The index of a VM, in its directory. One for all disks.
pub fn index_file(index_dir: &Path) -> PathBuf {
    index_dir.join("chunks")
}

/// The target of the disk that an index knows by the name that the view shows. The directory is that of a VM's indexes.
pub fn target_of_shown(index_dir: &Path, shown: &str) -> Option<Target> {
    let vm = index_dir.parent()?.file_name()?.to_str()?;
    Target::new(shown.strip_prefix(vm)?.strip_prefix('_')?).ok()
}

/// The VM whose lock a file in the lock directory is, by its name; its content must agree.
pub fn vm_of_lock(file_name: &str) -> Option<VmName> {
    VmName::new(file_name.strip_suffix(".lock")?).ok()
}

/// The longest path that a unix socket can have: `sun_path` has 108 bytes, one for the end (unix(7)).
pub const SOCKET_PATH_MAX: usize = 107;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn names(vm: &str) -> Names {
        Names::new(&Places::default(), &VmName::new(vm).unwrap())
    }

    fn uuid() -> Uuid {
        Uuid::new("A0B1c2d3-0000-4000-8000-00000000000f").unwrap()
    }

    #[test]
    fn names_that_could_leave_their_directory_are_refused() {
        for name in ["", ".", "..", "a/b", "/", "../a", "a\0b", "a\nb", "a\x1b[31m", ".run", "mail01.lock"] {
            assert!(VmName::new(name).is_err(), "{name:?}");
        }
        assert!(VmName::new(&"x".repeat(VmName::MAX_BYTES)).is_ok());
        assert!(VmName::new(&"x".repeat(VmName::MAX_BYTES + 1)).is_err());
        assert!(VmName::new(&"ä".repeat(VmName::MAX_BYTES / 2 + 1)).is_err(), "counted in bytes");
    }

    #[test]
    fn odd_names_are_kept_as_they_are() {
        for name in ["web server", "it's", "a\"b", "100%", r"a\040b", "größe", "-rf", "a..b", "*"] {
            assert_eq!(names(name).mount_point(), Path::new("/var/lib/libvirt/backup").join(name));
            assert_eq!(names(name).home(), Path::new("/var/lib/virt-backup").join(name));
        }
    }

    #[test]
    fn paths_are_where_the_documents_say() {
        let n = names("mail01");
        let vda = Target::new("vda").unwrap();
        for (path, text) in [
            (n.lock(), "/var/lib/libvirt/backup/mail01.lock"),
            (n.mount_point(), "/var/lib/libvirt/backup/mail01"),
            (n.journal(), "/var/lib/virt-backup/mail01/journal"),
            (n.view_spec(), "/var/lib/virt-backup/mail01/view.json"),
            (n.saved_xml(), "/var/lib/virt-backup/mail01/mail01.xml"),
            (n.scratch_file(&vda), "/var/lib/virt-backup/mail01/scratch/vda.qcow2"),
        ] {
            assert_eq!(path, Path::new(text));
        }
        assert_eq!(n.mount_source(), "chunkfs-mail01");
        assert_eq!(n.shown_disk(&vda), "mail01_vda");
    }

    #[test]
    fn the_longest_vm_name_still_has_a_usable_socket() {
        let n = names(&"x".repeat(VmName::MAX_BYTES));
        let socket = n.image_socket(&Target::new(&"v".repeat(Target::MAX_BYTES)).unwrap());
        assert!(socket.as_os_str().len() <= SOCKET_PATH_MAX, "{}", socket.display());
    }

    #[test]
    fn targets_are_plain_words() {
        for good in ["vda", "sdaaa", "hdb", "nvme0n1", "fda"] {
            assert_eq!(Target::new(good).unwrap().as_str(), good);
        }
        for bad in ["", "v/da", "..", "vd a", "vda\"", "ü", "-vda", ".vda"] {
            assert!(Target::new(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn only_checkpoints_with_the_right_mark_are_ours() {
        let job = JobId::from_bits(0x1234);
        let ours = CheckpointName::new(&uuid(), Generation(7), &job);
        assert_eq!(ours.as_str(), "virt-backup-7-0000000000001234-8b6e421a");
        assert_eq!(CheckpointName::recognise(&uuid(), ours.as_str()), Some((ours.clone(), Generation(7))));

        let other_domain = Uuid::new("a0b1c2d3-0000-4000-8000-000000000010").unwrap();
        assert_eq!(CheckpointName::recognise(&other_domain, ours.as_str()), None);
        for foreign in
            ["", "virt-backup-", "virt-backup-7", "nightly", "virt-backup-7-0000000000001234-00000000"]
        {
            assert_eq!(CheckpointName::recognise(&uuid(), foreign), None, "{foreign:?}");
        }
        let leading_zero = ours.as_str().replace("-7-", "-07-");
        assert_eq!(CheckpointName::recognise(&uuid(), &leading_zero), None);
    }

    proptest! {
        #[test]
        fn a_vm_name_is_always_one_path_component(name in "\\PC{0,40}|[./ %\\\\\"']{0,6}") {
            if let Ok(vm) = VmName::new(&name) {
                let path = Names::new(&Places::default(), &vm).mount_point();
                prop_assert_eq!(path.parent(), Some(Path::new("/var/lib/libvirt/backup")));
                prop_assert_eq!(path.file_name().and_then(|n| n.to_str()), Some(name.as_str()));
                prop_assert_eq!(vm_of_lock(&format!("{name}.lock")), Some(vm));
            }
        }
    }
}
