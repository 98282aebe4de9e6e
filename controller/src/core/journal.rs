//! The format of the journal: what a job intends, has done and has undone, hence what it still owes.
//! Text to records and back; writing it to disk is `session`'s work.
//!
//! ```text
//! <16 hex digits> <record as JSON>\n       one line each, the header first
//! ```
//! The digits are the beginning of BLAKE3 over the digits of the line before and this line's JSON, so that a line
//! that is changed, lost, doubled or moved is seen. Every line is on disk before the next is begun: a power cut can
//! tear the last one and no other, and what the last line announces has then not been begun.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::lock::{BootId, ProcessId};
use super::names::{JobId, VmName};
use super::step::Undo;

/// The version of the format written here. Older ones stay readable for ever.
pub const VERSION: u32 = 1;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    pub version: u32,
    pub vm: VmName,
    pub job: JobId,
    pub boot: BootId,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Record {
    Header(Header),
    /// About to be done. From here on `undo` is owed.
    Intent {
        step: u32,
        what: String,
        undo: Undo,
    },
    /// The step has been done; for a view with the process that shows it.
    Done {
        step: u32,
        process: Option<ProcessId>,
    },
    Undone {
        step: u32,
    },
    /// The whole plan has been done.
    /// What these made is to stay: nothing of it is owed any more.
    Kept {
        steps: Vec<u32>,
    },
    Complete,
}

/// What a journal says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Journal {
    pub header: Header,
    /// In the order in which they were incurred.
    pub debts: Vec<Debt>,
    pub progress: Progress,
    pub tail: Tail,
    /// How many bytes are whole lines.
    pub valid_bytes: usize,
    /// To go on writing where it ends.
    pub chain: Chain,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Debt {
    pub step: u32,
    pub what: String,
    pub undo: Undo,
    pub state: DebtState,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DebtState {
    /// Perhaps done, perhaps half done, perhaps not at all.
    Intended,
    Done {
        process: Option<ProcessId>,
    },
    Undone,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    Underway,
    Complete,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tail {
    Whole,
    /// The last line was being written when the power went. It is not part of the journal.
    Torn,
}

/// A journal that a power cut cannot explain. Nothing in it is acted upon.
#[derive(Debug, PartialEq, Eq, Error)]
pub enum JournalError {
    #[error("line {line} of the journal is damaged: its checksum does not match, and it is not the last")]
    Damaged { line: usize },
    #[error("the journal has no header")]
    NoHeader,
    #[error("the journal has the version {0}, which is newer than this program")]
    Version(u32),
    #[error("line {line} of the journal is whole but means nothing here: {why}")]
    Meaningless { line: usize, why: String },
}

/// The checksum of the last line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chain(String);

impl Chain {
    const DIGITS: usize = 16;

    /// The line for a record, and with it the new end of the chain.
    pub fn append(&mut self, record: &Record) -> String {
        let json = serde_json::to_string(record).expect("records are plain data and always serialise");
        assert!(!json.contains('\n'), "JSON escapes newlines");
        self.0 = self.checksum(&json);
        format!("{} {json}\n", self.0)
    }

    fn checksum(&self, json: &str) -> String {
        let mut hasher = blake3::Hasher::new();
        hasher.update(self.0.as_bytes()).update(json.as_bytes());
        hasher.finalize().to_hex()[..Self::DIGITS].to_owned()
    }

    /// The JSON of a line that follows in the chain.
    fn follow<'a>(&mut self, line: &'a str) -> Option<&'a str> {
        let (digits, json) = line.split_at_checked(Self::DIGITS)?;
        let json = json.strip_prefix(' ')?;
        let checksum = self.checksum(json);
        (checksum == digits).then(|| {
            self.0 = checksum;
            json
        })
    }
}

impl Journal {
    /// The first line of a new journal.
    pub fn begin(header: Header) -> (String, Journal) {
        let mut chain = Chain::default();
        let line = chain.append(&Record::Header(header.clone()));
        let valid_bytes = line.len();
        let (debts, progress, tail) = (Vec::new(), Progress::Underway, Tail::Whole);
        (line, Journal { header, debts, progress, tail, valid_bytes, chain })
    }

    pub fn parse(bytes: &[u8]) -> Result<Journal, JournalError> {
        let mut journal: Option<Journal> = None;
        let mut chain = Chain::default();
        let (mut valid_bytes, mut tail) = (0, Tail::Whole);
        let mut rest = bytes;
        for line in 1.. {
            if rest.is_empty() {
                break;
            }
            let end = rest.iter().position(|b| *b == b'\n');
            let (current, after) = end.map_or((rest, &rest[..0]), |end| (&rest[..end], &rest[end + 1..]));
            let json =
                std::str::from_utf8(current).ok().filter(|_| end.is_some()).and_then(|l| chain.follow(l));
            let Some(json) = json else {
                // Appends are synced one by one, so only the very last line can be torn.
                if !after.is_empty() {
                    return Err(JournalError::Damaged { line });
                }
                tail = Tail::Torn;
                break;
            };
            valid_bytes += current.len() + 1;
            rest = after;
            let record = serde_json::from_str(json)
                .map_err(|error| JournalError::Meaningless { line, why: error.to_string() })?;
            match (&mut journal, record) {
                (None, Record::Header(header)) if header.version > VERSION => {
                    return Err(JournalError::Version(header.version));
                }
                (None, Record::Header(header)) => journal = Some(Journal::begin(header).1),
                (None, _) => return Err(JournalError::NoHeader),
                (Some(journal), record) => {
                    journal.apply(&record).map_err(|why| JournalError::Meaningless { line, why })?;
                }
            }
        }
        // The header is put in place whole, with the file: a journal without it was never begun by us.
        let journal = journal.ok_or(JournalError::NoHeader)?;
        Ok(Journal { tail, valid_bytes, chain, ..journal })
    }

    /// Appends a record: the line to write. The journal says what the file says once the line is in it.
    pub fn append(&mut self, record: &Record) -> String {
        self.apply(record).expect("a session only writes records that follow from its journal");
        let line = self.chain.append(record);
        self.valid_bytes += line.len();
        line
    }

    /// What is still owed, newest first.
    pub fn owed(&self) -> Vec<Debt> {
        self.debts.iter().rev().filter(|debt| debt.state != DebtState::Undone).cloned().collect()
    }

    fn apply(&mut self, record: &Record) -> Result<(), String> {
        match record {
            Record::Header(_) => return Err("a second header".to_owned()),
            Record::Intent { step, what, undo } => {
                if self.debts.last().is_some_and(|last| last.step >= *step) {
                    return Err(format!("step {step} is intended out of turn"));
                }
                let (what, undo) = (what.clone(), undo.clone());
                self.debts.push(Debt { step: *step, what, undo, state: DebtState::Intended });
            }
            Record::Done { step, process } => {
                self.debt(*step)?.state = DebtState::Done { process: process.clone() };
            }
            Record::Undone { step } => self.debt(*step)?.state = DebtState::Undone,
            Record::Kept { steps } => {
                for step in steps {
                    self.debt(*step)?.state = DebtState::Undone;
                }
            }
            Record::Complete => self.progress = Progress::Complete,
        }
        Ok(())
    }

    fn debt(&mut self, step: u32) -> Result<&mut Debt, String> {
        let debt = self.debts.iter_mut().find(|debt| debt.step == step);
        debt.ok_or_else(|| format!("step {step} was never intended"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header() -> Header {
        Header {
            version: VERSION,
            vm: VmName::new("mail 01").unwrap(),
            job: JobId::from_bits(7),
            boot: BootId("b".to_owned()),
        }
    }

    fn intent(step: u32) -> Record {
        let undo = Undo::RemoveFile { path: format!("/tmp/\n{step}").into() };
        Record::Intent { step, what: "write \"x\"\n".to_owned(), undo }
    }

    fn text(records: &[Record]) -> String {
        let (mut text, mut journal) = Journal::begin(header());
        for record in records {
            text += &journal.append(record);
        }
        text
    }

    fn sample() -> String {
        text(&[
            intent(0),
            Record::Done { step: 0, process: None },
            intent(1),
            intent(4),
            Record::Undone { step: 1 },
        ])
    }

    fn owed(text: &str) -> Vec<u32> {
        Journal::parse(text.as_bytes()).unwrap().owed().iter().map(|debt| debt.step).collect()
    }

    #[test]
    fn what_was_intended_and_not_undone_is_owed_newest_first() {
        assert_eq!(owed(&text(&[])), [0_u32; 0]);
        assert_eq!(owed(&sample()), [4, 0]);
        assert_eq!(
            owed(&text(&[intent(2), Record::Undone { step: 2 }, Record::Undone { step: 2 }])),
            [0_u32; 0]
        );
    }

    #[test]
    fn a_journal_cut_anywhere_says_what_its_whole_lines_say() {
        let whole = sample();
        for cut in 0..whole.len() {
            let lines = whole[..cut].matches('\n').count();
            let parsed = Journal::parse(&whole.as_bytes()[..cut]);
            if lines == 0 {
                assert_eq!(parsed, Err(JournalError::NoHeader), "cut at {cut}");
                continue;
            }
            let parsed = parsed.unwrap();
            assert_eq!(parsed.tail == Tail::Torn, !whole[..cut].ends_with('\n'), "cut at {cut}");
            assert_eq!(parsed.valid_bytes, whole[..cut].rfind('\n').unwrap() + 1, "cut at {cut}");
        }
    }

    #[test]
    fn a_tail_of_zeros_or_of_noise_is_a_torn_line() {
        for tail in [&b"\0\0\0\0"[..], b"\0\0\n", b"0123456789abcdef {}\n", b"\xff\xfe"] {
            let parsed = Journal::parse(&[sample().as_bytes(), tail].concat()).unwrap();
            assert_eq!((parsed.tail, parsed.valid_bytes), (Tail::Torn, sample().len()), "{tail:?}");
        }
    }

    #[test]
    fn damage_before_the_last_line_is_never_tolerated() {
        let lines: Vec<_> = sample().lines().map(|line| format!("{line}\n")).collect();
        for damaged in 0..lines.len() - 1 {
            let mut flipped = lines.clone();
            flipped[damaged] = flipped[damaged].replace(':', ";");
            let mut lost = lines.clone();
            lost.remove(damaged);
            let mut doubled = lines.clone();
            doubled.insert(damaged, lines[damaged].clone());
            let mut swapped = lines.clone();
            swapped.swap(damaged, damaged + 1);
            for (what, text) in
                [("flipped", flipped), ("lost", lost), ("doubled", doubled), ("swapped", swapped)]
            {
                let error = Journal::parse(text.concat().as_bytes()).map(|j| j.tail);
                // Losing the last but one leaves a last line that does not follow: it reads as torn.
                let reads_as_torn = what == "lost" && damaged == lines.len() - 2;
                let expected = if reads_as_torn { error == Ok(Tail::Torn) } else { error.is_err() };
                assert!(expected, "{what} line {damaged}: {error:?}");
            }
        }
    }

    #[test]
    fn a_newer_version_and_a_missing_header_are_refused() {
        let newer = Journal::begin(Header { version: VERSION + 1, ..header() }).0;
        assert_eq!(Journal::parse(newer.as_bytes()), Err(JournalError::Version(VERSION + 1)));
        let headless = Chain::default().append(&Record::Complete);
        assert_eq!(Journal::parse(headless.as_bytes()), Err(JournalError::NoHeader));
        assert_eq!(Journal::parse(b""), Err(JournalError::NoHeader));
    }

    #[test]
    fn records_that_do_not_follow_are_refused() {
        let mut chain = Chain::default();
        let mut text = chain.append(&Record::Header(header()));
        text += &chain.append(&Record::Done { step: 3, process: None });
        let error = Journal::parse(text.as_bytes()).unwrap_err().to_string();
        assert!(error.contains("step 3 was never intended"), "{error}");
    }

    #[test]
    fn the_stored_sample_of_version_1_is_read_for_ever() {
        let journal = Journal::parse(include_bytes!("../../tests/data/journal-v1")).unwrap();
        let owed: Vec<_> = journal.owed().iter().map(|debt| debt.undo.to_string()).collect();
        assert_eq!(journal.header.job, JobId::from_bits(0x0123_4567_89ab_cdef));
        assert_eq!(journal.progress, Progress::Complete);
        assert_eq!(
            owed,
            [
                "stop the view at /var/lib/libvirt/backup/mail01",
                "end the backup job of mail01 on /var/lib/virt-backup/.run/0123456789abcdef/nbd.sock",
                "close the generation of /var/lib/virt-backup/mail01/view.json",
                "stop serving on /s",
                "remove /f",
                "remove the directory /d",
                "delete the checkpoints of mail01 that are ours and that no index names",
            ]
        );
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            // Only that it returns is claimed.
            drop(Journal::parse(&bytes));
        }

        #[test]
        fn one_flipped_byte_never_changes_what_is_owed_without_notice(at in 0..1000usize, bit in 0..8u8) {
            let good = sample().into_bytes();
            let (mut bad, at) = (good.clone(), at % good.len());
            // An append never touches the end of the line before it; without that end two lines would read as one.
            prop_assume!(good[at] != b'\n');
            bad[at] ^= 1 << bit;
            if let Ok(journal) = Journal::parse(&bad) {
                // Only the last line may be lost, and it is said.
                prop_assert_eq!(journal.tail, Tail::Torn);
                prop_assert_eq!(journal.valid_bytes, sample().trim_end().rfind('\n').unwrap() + 1);
            }
        }
    }
}
