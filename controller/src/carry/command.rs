//! A program that takes a disk by its standard input: a compressor that writes our file, or the user's own.
//! Started by `host::exec`, the only door; here it is fed, waited for, and asked what it said.

use std::fs::File;
use std::path::Path;

use chunkfs::watch::Watch;

use super::{CarryError, Options};
use crate::core::compression::Filter;
use crate::host::exec::{self, Echo, Fed, FeedError, Output};

/// Is there such a program?
pub(super) fn find(program: &str) -> Result<(), CarryError> {
    match exec::is_installed(Path::new(program)) {
        true => Ok(()),
        false => Err(CarryError::NoProgram { program: program.to_owned() }),
    }
}

/// Ended when it is dropped before it has finished.
#[derive(Debug)]
pub(super) struct Feed {
    fed: Fed,
    program: String,
    disk: String,
}

impl Feed {
    pub(super) fn filter(filter: &Filter, output: File, options: &Options<'_>) -> Result<Feed, CarryError> {
        let to = (Output::File(output), Echo::No);
        Feed::start(filter.program, filter.arguments.iter().copied(), &[], to, options)
    }

    pub(super) fn command(
        words: &[String],
        environment: &[(&str, &str)],
        options: &Options<'_>,
    ) -> Result<Feed, CarryError> {
        let (program, arguments) = words.split_first().expect("a command has a first word");
        let arguments = arguments.iter().map(String::as_str);
        Feed::start(program, arguments, environment, (Output::OurStderr, Echo::Yes), options)
    }

    fn start<'w>(
        program: &str,
        arguments: impl Iterator<Item = &'w str>,
        environment: &[(&str, &str)],
        (output, echo): (Output, Echo),
        options: &Options<'_>,
    ) -> Result<Feed, CarryError> {
        let arguments = exec::arguments(arguments.map(AsRef::as_ref));
        let (program, disk) = (program.to_owned(), options.disk.to_owned());
        match exec::feed(Path::new(&program), &arguments, environment, output, echo) {
            Ok(fed) => Ok(Feed { fed, program, disk }),
            Err(error) => Err(CarryError::Program { disk, program, why: format!("{error:#}") }),
        }
    }

    pub(super) fn put(&mut self, bytes: &[u8], watch: &dyn Watch) -> Result<(), CarryError> {
        self.fed.put(bytes, &|| watch.is_stopped()).map_err(|error| self.error(error))
    }

    /// Closes its input and waits for a good end.
    pub(super) fn finish(mut self, watch: &dyn Watch) -> Result<(), CarryError> {
        self.fed.finish(&|| watch.is_stopped()).map_err(|error| self.error(error))
    }

    fn error(&self, error: FeedError) -> CarryError {
        let (program, disk) = (self.program.clone(), self.disk.clone());
        match error {
            FeedError::Stopped => CarryError::Stopped { disk },
            FeedError::Ended(why) => CarryError::Program { disk, program, why },
        }
    }
}
