//! The journal on disk: created whole, appended to line by line, each on disk before the next.
//! The format is `core::journal`'s.

use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::core::journal::{Debt, Header, Journal, Progress, Record, Tail};
use crate::core::names::Names;
use crate::host::Host;

#[derive(Debug)]
pub(super) struct JournalFile {
    path: PathBuf,
    journal: Journal,
    /// All lines, those included whose writing failed: what the file is to hold.
    text: Vec<u8>,
    file: File,
}

#[derive(Debug)]
enum File {
    /// The file holds `text`.
    InStep,
    /// A write failed or a line is torn: the next write puts the whole text in its place.
    Doubtful,
}

impl JournalFile {
    /// A new journal, not yet on disk, to stand in the place of one that owes nothing.
    pub(super) fn new(names: &Names, header: Header) -> JournalFile {
        let (line, journal) = Journal::begin(header);
        JournalFile { path: names.journal(), journal, text: line.into_bytes(), file: File::Doubtful }
    }

    pub(super) fn begin(&mut self, host: &dyn Host) -> Result<()> {
        host.replace(&self.path, &self.text)?;
        self.file = File::InStep;
        Ok(())
    }

    /// None: no job is underway.
    pub(super) fn read(host: &dyn Host, names: &Names) -> Result<Option<JournalFile>> {
        let path = names.journal();
        let Some(mut text) = host.read(&path).context("read the journal")? else { return Ok(None) };
        let journal = Journal::parse(&text).with_context(|| {
            format!(
                "read the journal {} (what it describes is not touched: look at it, then remove it)",
                path.display()
            )
        })?;
        text.truncate(journal.valid_bytes);
        let file = match journal.tail {
            Tail::Whole => File::InStep,
            Tail::Torn => File::Doubtful,
        };
        Ok(Some(JournalFile { path, journal, text, file }))
    }

    pub(super) fn append(&mut self, host: &dyn Host, record: &Record) -> Result<()> {
        let line = self.journal.append(record);
        self.text.extend_from_slice(line.as_bytes());
        let written = match self.file {
            File::InStep => host.append(&self.path, line.as_bytes()),
            File::Doubtful => host.replace(&self.path, &self.text),
        };
        self.file = if written.is_ok() { File::InStep } else { File::Doubtful };
        written
    }

    pub(super) fn header(&self) -> &Header {
        &self.journal.header
    }

    pub(super) fn progress(&self) -> Progress {
        self.journal.progress
    }

    pub(super) fn owed(&self) -> Vec<Debt> {
        self.journal.owed()
    }

    pub(super) fn into_journal(self) -> Journal {
        self.journal
    }
}
