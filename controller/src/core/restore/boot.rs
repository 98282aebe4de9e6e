//! A guest that runs straight from a tree of chunks: nothing is copied, what it writes goes to an overlay.
//! Pure. How it is thrown away, or kept, is told by the undo of each step.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::{
    Backup, Form, JOINED, Known, Plan, Refusal, Standing, Step, make_tpm, partial_of, tpm_cannot_move,
    tpm_files, without_tpm,
};
use crate::core::domain::{DomainId, Format, Source};
use crate::core::names::{Target, Uuid, VmName};
use crate::core::rewrite::{self, Changes, Content, Macs, NewDisk, Nvram, Place, Surroundings};

/// What the user wishes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootWish {
    pub name: VmName,
    pub exclude: BTreeSet<Target>,
    pub network: Network,
    pub then: AfterBoot,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    /// It neither sees nor is seen.
    Isolated,
    /// As the original: which had better be off.
    AsItWas,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AfterBoot {
    /// What it wrote goes with it.
    ThrowAway,
    /// While it runs, all of its disks are copied to this directory; then it is defined.
    Keep { to: PathBuf },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootFacts {
    pub fresh_uuid: Uuid,
    pub of_this_name: Option<Known>,
    pub absent_media: BTreeSet<Target>,
    pub standing: BTreeMap<PathBuf, Standing>,
}

/// Where everything of one guest that runs from a backup is, while it does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootNames {
    dir: PathBuf,
}

impl BootNames {
    /// `home`: of the name that the guest runs under, in the state directory.
    pub fn new(home: &Path) -> BootNames {
        BootNames { dir: home.join("boot") }
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What its first serial port prints.
    pub fn console(&self) -> PathBuf {
        self.dir.join("console")
    }

    pub fn view(&self, target: &Target) -> PathBuf {
        self.dir.join(target.as_str())
    }

    fn nvram(&self) -> PathBuf {
        self.dir.join("nvram")
    }

    /// Where what the guest writes to a disk goes.
    pub fn overlay(&self, wish: &BootWish, target: &Target) -> PathBuf {
        match &wish.then {
            AfterBoot::ThrowAway => self.dir.join(format!("{target}.qcow2")),
            AfterBoot::Keep { to } => to.join(format!("{}_{target}.qcow2", wish.name)),
        }
    }

    fn nvram_of(&self, wish: &BootWish) -> PathBuf {
        match &wish.then {
            AfterBoot::ThrowAway => self.nvram(),
            AfterBoot::Keep { to } => to.join(format!("{}_VARS.fd", wish.name)),
        }
    }

    /// All that would be made outside of our own directory.
    pub fn paths(&self, backup: &Backup, wish: &BootWish) -> Vec<PathBuf> {
        let disks = wanted(backup, wish).map(|target| self.overlay(wish, target));
        disks.chain(backup.nvram.iter().map(|_| self.nvram_of(wish))).collect()
    }
}

/// The plan that starts it, or everything that is in its way.
pub fn plan(backup: &Backup, wish: &BootWish, facts: &BootFacts, names: &BootNames) -> Result<Plan, Refusal> {
    let reasons = obstacles(backup, wish, facts);
    if !reasons.is_empty() {
        return Err(Refusal { reasons });
    }
    let id = DomainId { name: wish.name.clone(), uuid: facts.fresh_uuid.clone() };
    let mut steps = Vec::new();
    for target in wanted(backup, wish) {
        let from = backup.disks.get(target).expect("looked for among the obstacles").clone();
        let (point, to) = (names.view(target), names.overlay(wish, target));
        let over = point.join(JOINED);
        steps.push(Step::Join { target: target.clone(), from, point });
        steps.push(Step::Overlay { target: target.clone(), over, to });
    }
    let nvram = backup.nvram.as_ref().filter(|_| backup.domain.nvram.is_some());
    if let Some(from) = nvram {
        let to = names.nvram_of(wish);
        steps.push(Step::CopySmall { from: from.clone(), to: partial_of(&to) });
        steps.push(Step::Name { path: to });
    }
    let tpm = tpm_files(backup, &id);
    steps.extend(make_tpm(&tpm, partial_of));
    steps.extend(tpm.into_iter().map(|(_, path)| Step::Name { path }));
    let surroundings = match wish.network {
        Network::Isolated => Surroundings::Isolated { console: Some(names.console()) },
        Network::AsItWas => Surroundings::Kept,
    };
    let changes = Changes { surroundings, ..changes(backup, wish, facts, names) };
    let xml = rewrite::domain(&backup.xml, &changes);
    let xml = xml.map_err(|error| Refusal { reasons: vec![error.to_string()] })?;
    steps.push(Step::Run { id: id.clone(), xml });
    let mut notes = backup.notes.clone();
    notes.extend(wish.exclude.iter().map(|target| format!("{target}: the guest runs without it")));
    notes.extend(without_tpm(backup));
    Ok(Plan { id, notes, steps })
}

/// How the guest is defined that was kept: with the surroundings of the original, on its own disks.
pub fn definition(
    backup: &Backup,
    wish: &BootWish,
    facts: &BootFacts,
    names: &BootNames,
) -> Result<String, rewrite::RewriteError> {
    rewrite::domain(&backup.xml, &changes(backup, wish, facts, names))
}

/// The disks that it runs with.
pub fn wanted<'a>(backup: &'a Backup, wish: &'a BootWish) -> impl Iterator<Item = &'a Target> {
    let disks = backup.domain.disks.iter().filter(|disk| disk.source != Source::Nothing);
    disks.map(|disk| &disk.target).filter(|target| !wish.exclude.contains(*target))
}

fn obstacles(backup: &Backup, wish: &BootWish, facts: &BootFacts) -> Vec<String> {
    let mut reasons = Vec::new();
    let strangers = wish.exclude.iter().filter(|target| backup.domain.disk(target).is_none());
    reasons.extend(strangers.map(|target| format!("the domain in the backup has no disk {target}")));
    for target in wanted(backup, wish) {
        match backup.disks.get(target).map(|kept| kept.form) {
            Some(Form::Chunks) => {}
            Some(form) => {
                reasons.push(format!("{target}: only chunks can be run from, and this is {form}: restore it"))
            }
            None => reasons.push(format!(
                "{target}: the backup has nothing of this disk: --exclude={target} runs without it"
            )),
        }
    }
    let id = DomainId { name: wish.name.clone(), uuid: facts.fresh_uuid.clone() };
    reasons.extend(tpm_cannot_move(backup, &id));
    if facts.of_this_name.is_some() {
        reasons.push(format!("there is a domain {} already: choose another --name", wish.name));
    }
    for (path, standing) in &facts.standing {
        match standing {
            Standing::Absent => {}
            Standing::NoDirectory => {
                reasons.push(format!("the directory of {} does not exist", path.display()))
            }
            _ => reasons.push(format!("{} exists", path.display())),
        }
        if path.starts_with(&backup.root) {
            reasons.push(format!("{} is in the backup itself", path.display()));
        }
    }
    reasons
}

fn changes(backup: &Backup, wish: &BootWish, facts: &BootFacts, names: &BootNames) -> Changes {
    let overlay = |target: &Target| NewDisk {
        place: Place::File(names.overlay(wish, target)),
        format: Format::Qcow2,
        content: Content::Guest,
    };
    Changes {
        name: Some(wish.name.clone()),
        uuid: Some(facts.fresh_uuid.clone()),
        macs: match wish.network {
            Network::Isolated => Macs::DerivedFrom(facts.fresh_uuid.clone()),
            Network::AsItWas => Macs::Keep,
        },
        nvram: match &backup.nvram {
            Some(_) => Nvram::At(names.nvram_of(wish)),
            None => Nvram::Default,
        },
        disks: wanted(backup, wish).map(|target| (target.clone(), overlay(target))).collect(),
        without: wish.exclude.clone(),
        ejected: facts.absent_media.clone(),
        ..Changes::none()
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Kept, Kind};
    use super::*;
    use crate::core::domain::Domain;
    use crate::core::units::Bytes;

    const XML: &str = "<domain type='kvm'><name>mail01</name><uuid>c7a5fdbd-edaf-9455-926a-d65c16db1809</uuid>\
        <memory>1024</memory><os><nvram>/v/mail01_VARS.fd</nvram></os><devices>\
        <disk type='file'><driver name='qemu' type='raw'/><source file='/i/a.img'/><target dev='vda'/></disk>\
        <disk type='network'><source protocol='rbd' name='p/b'/><target dev='vdb'/></disk>\
        <interface type='bridge'><mac address='52:54:00:00:00:01'/><source bridge='br0'/></interface>\
        <hostdev mode='subsystem' type='pci'/></devices></domain>";

    fn target(name: &str) -> Target {
        Target::new(name).unwrap()
    }

    fn backup() -> Backup {
        let kept =
            |disk: &str| Kept { name: format!("mail01_{disk}"), form: Form::Chunks, bytes: Some(Bytes(1)) };
        let domain = Domain::parse(XML).unwrap();
        Backup {
            root: "/backup".into(),
            kind: Kind::Tree,
            origin: domain.id.clone(),
            domain,
            xml: XML.to_owned(),
            disks: ["vda", "vdb"].map(|disk| (target(disk), kept(disk))).into(),
            nvram: Some("mail01.nvram".to_owned()),
            tpm: Vec::new(),
            memory: None,
            snapshots: Vec::new(),
            notes: Vec::new(),
        }
    }

    fn wish(then: AfterBoot) -> BootWish {
        let name = VmName::new("mail01-boot").unwrap();
        BootWish { name, exclude: BTreeSet::new(), network: Network::Isolated, then }
    }

    fn facts(standing: &[(&str, Standing)]) -> BootFacts {
        BootFacts {
            fresh_uuid: Uuid::new("11111111-2222-4333-8444-555555555555").unwrap(),
            of_this_name: None,
            absent_media: BTreeSet::new(),
            standing: standing.iter().map(|(path, standing)| (path.into(), standing.clone())).collect(),
        }
    }

    fn names() -> BootNames {
        BootNames::new(Path::new("/state/mail01-boot"))
    }

    #[test]
    fn a_guest_from_chunks_reads_as_a_story_and_leads_nowhere_else() {
        let plan = plan(&backup(), &wish(AfterBoot::ThrowAway), &facts(&[]), &names()).unwrap();
        assert_eq!(
            plan.to_string(),
            "mail01-boot (11111111-2222-4333-8444-555555555555)
   1. show vda from mail01_vda as one file
   2. let vda be written to /state/mail01-boot/boot/vda.qcow2
   3. show vdb from mail01_vdb as one file
   4. let vdb be written to /state/mail01-boot/boot/vdb.qcow2
   5. copy mail01.nvram to /state/mail01-boot/boot/nvram.partial
   6. give /state/mail01-boot/boot/nvram its name
   7. start mail01-boot, for as long as it runs
"
        );
        let Some(Step::Run { xml, .. }) = plan.steps.last() else { panic!("{plan}") };
        for of_the_host in ["/i/a.img", "rbd", "br0", "hostdev", "/v/", "52:54:00:00:00:01", "c7a5fdbd"] {
            assert!(!xml.contains(of_the_host), "{of_the_host}: {xml}");
        }
    }

    #[test]
    fn its_tpm_begins_with_the_state_in_the_backup_at_a_place_of_its_own() {
        let xml = XML.replace("</devices>", "<tpm><backend type='emulator' version='2.0'/></tpm></devices>");
        let tpm = vec!["mail01.tpm/tpm2-00.permall".to_owned()];
        let backup = Backup { domain: Domain::parse(&xml).unwrap(), xml, tpm, ..backup() };
        let text = plan(&backup, &wish(AfterBoot::ThrowAway), &facts(&[]), &names()).unwrap().to_string();
        let dir = format!("/var/lib/libvirt/swtpm/{}/tpm2", facts(&[]).fresh_uuid);
        let at = text.find(&format!("give {dir}/tpm2-00.permall its name")).expect(&text);
        assert!(at < text.find("start mail01-boot").unwrap(), "{text}");
    }

    #[test]
    fn one_that_is_kept_is_defined_on_its_own_disks_with_its_surroundings() {
        let wish = wish(AfterBoot::Keep { to: "/to".into() });
        let xml = definition(&backup(), &wish, &facts(&[]), &names()).unwrap();
        let domain = Domain::parse(&xml).unwrap();
        let sources: Vec<_> = domain.disks.iter().map(|disk| disk.source.to_string()).collect();
        assert_eq!(sources, ["file /to/mail01-boot_vda.qcow2", "file /to/mail01-boot_vdb.qcow2"]);
        assert_eq!(domain.nvram, Some("/to/mail01-boot_VARS.fd".into()));
        assert!(xml.contains("br0") && xml.contains("hostdev"), "{xml}");
    }

    #[test]
    fn what_is_in_the_way_is_told() {
        let keep = || wish(AfterBoot::Keep { to: "/to".into() });
        let file = Standing::File(crate::core::restore::FileId::Device { number: 1 });
        let mut dump = backup();
        dump.disks.get_mut(&target("vda")).unwrap().form = Form::Raw;
        let mut lacking = backup();
        lacking.disks.remove(&target("vdb"));
        let stranger = BootWish { exclude: [target("vdz")].into(), ..keep() };
        let there = [("/to/mail01-boot_vda.qcow2", file)];
        let nowhere = [("/to/mail01-boot_vda.qcow2", Standing::NoDirectory)];
        for (backup, wish, facts, words) in [
            (dump, keep(), facts(&[]), "vda: only chunks can be run from, and this is a raw image"),
            (lacking, keep(), facts(&[]), "vdb: the backup has nothing of this disk: --exclude=vdb"),
            (backup(), stranger, facts(&[]), "has no disk vdz"),
            (backup(), keep(), facts(&there), "/to/mail01-boot_vda.qcow2 exists"),
            (backup(), keep(), facts(&nowhere), "does not exist"),
        ] {
            let told = plan(&backup, &wish, &facts, &names()).unwrap_err().to_string();
            assert!(told.contains(words), "{told}");
        }
    }
}
