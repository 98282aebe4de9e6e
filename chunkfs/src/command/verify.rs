//! `chunkfs verify`: names everything that is wrong with a directory of chunks.

use super::progress::{Progress, Show};
use crate::source::Source;
use crate::source::image::ImageSource;
use crate::source::shape::Known;
use crate::verify::{self, Problem, Report, VerifyError};
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

#[derive(Clone, Debug)]
pub struct Options {
    pub chunks: PathBuf,
    /// The image that the chunks were made of.
    pub image: Option<PathBuf>,
    pub format: Format,
    pub known: Known,
    pub show: Show,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// A line for each problem when it is found, and one at the end.
    Text,
    /// One object; the problems are an array in it, in no certain order.
    Json,
}

#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error("image {path}: {error}")]
    Image { path: PathBuf, error: io::Error },
    #[error("catching signals: {0}")]
    Signals(io::Error),
    #[error("writing the report: {0}")]
    Report(io::Error),
    #[error("stopped before the end")]
    Stopped,
    #[error(transparent)]
    Verify(#[from] VerifyError),
}

/// Writes the report to `out`.
pub fn verify(options: &Options, out: &mut (dyn Write + Send)) -> Result<Report, Failure> {
    let image = options
        .image
        .as_ref()
        .map(|path| ImageSource::open(path).map_err(|error| Failure::Image { path: path.clone(), error }));
    let image = image.transpose()?;
    let against =
        verify::Options { known: options.known, image: image.as_ref().map(|image| image as &dyn Source) };
    let progress = Progress::begin("verifying", options.show).map_err(Failure::Signals)?;
    let writer = Mutex::new(Writer { out, format: options.format, problems: 0, error: None });
    let found = |problem: &Problem| {
        let mut writer = writer.lock().unwrap_or_else(PoisonError::into_inner);
        progress.aside(|| writer.problem(problem));
        if writer.error.is_some() {
            // Nobody reads any more: `verify | head`.
            progress.stop();
        }
    };
    let result = verify::verify(&options.chunks, &against, &progress, &found);
    drop(progress);
    let mut writer = writer.into_inner().unwrap_or_else(PoisonError::into_inner);
    writer.end(&result);
    if let Some(error) = writer.error {
        return Err(Failure::Report(error));
    }
    let report = result?;
    if report.complete { Ok(report) } else { Err(Failure::Stopped) }
}

struct Writer<'a> {
    out: &'a mut (dyn Write + Send),
    format: Format,
    problems: u64,
    error: Option<io::Error>,
}

impl Writer<'_> {
    fn problem(&mut self, problem: &Problem) {
        let written = match self.format {
            Format::Text => writeln!(self.out, "{problem}"),
            Format::Json => {
                let before = if self.problems == 0 { "{\"problems\":[\n" } else { ",\n" };
                write!(self.out, "{before}{}", json(problem))
            }
        };
        self.problems += 1;
        self.keep_error(written);
    }

    fn end(&mut self, result: &Result<Report, VerifyError>) {
        if self.error.is_some() {
            return;
        }
        let begun = if self.problems == 0 { "{\"problems\":[" } else { "" };
        let written = match (self.format, result) {
            (Format::Text, Ok(report)) => writeln!(self.out, "{}", sentence(report)),
            // It is told as every error is.
            (Format::Text, Err(_)) => Ok(()),
            (Format::Json, Ok(report)) => writeln!(self.out, "{begun}],\n\"report\":{}}}", json(report)),
            (Format::Json, Err(error)) => {
                writeln!(self.out, "{begun}],\n\"error\":{}}}", json(&error.to_string()))
            }
        };
        let written = written.and_then(|()| self.out.flush());
        self.keep_error(written);
    }

    fn keep_error(&mut self, written: io::Result<()>) {
        if let Err(error) = written {
            self.error.get_or_insert(error);
        }
    }
}

fn json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).expect("these types have nothing that JSON cannot say")
}

fn sentence(report: &Report) -> String {
    let by = match (report.has_digests, report.compared_with_image) {
        (true, true) => "compared with their digests and the image",
        (true, false) => "compared with their digests",
        (false, true) => "compared with the image; there are no digests",
        (false, false) => "there are no digests, so only names and lengths were checked",
    };
    let found = match (report.complete, report.problems) {
        (false, _) => "stopped before the end".to_owned(),
        (true, 0) => "no problems".to_owned(),
        (true, 1) => "1 problem".to_owned(),
        (true, problems) => format!("{problems} problems"),
    };
    format!("{} chunks, {} bytes: {found}; {by}", report.chunks, report.bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::split::{SplitTree, pattern, split};
    use std::fs;

    fn run(tree: &SplitTree, image: Option<PathBuf>, format: Format) -> (Result<Report, Failure>, String) {
        let chunks = tree.chunks();
        let options = Options { chunks, image, format, known: Known::NOTHING, show: Show::Never };
        let mut out = Vec::new();
        let report = verify(&options, &mut out);
        let home = format!("{}/", tree.home().canonicalize().unwrap().display());
        (report, String::from_utf8(out).unwrap().replace(&home, ""))
    }

    #[test]
    fn the_report_ends_with_a_sentence_and_counts_the_problems() {
        let image = pattern(40 * 4096);
        let tree = split(&image, 4096);
        let (report, text) = run(&tree, None, Format::Text);
        assert_eq!(text, "40 chunks, 163840 bytes: no problems; compared with their digests\n");
        assert_eq!(report.unwrap().problems, 0);

        let path = tree.home().join("disk.img");
        fs::write(&path, &image).unwrap();
        fs::remove_file(tree.chunk(3)).unwrap();
        let (report, text) = run(&tree, Some(path), Format::Text);
        assert_eq!(
            text,
            "vda/00/00/00/00/00/00/00/03: missing\n\
             39 chunks, 159744 bytes: 1 problem; compared with their digests and the image\n"
        );
        assert_eq!(report.unwrap().problems, 1);
    }

    #[test]
    fn json_is_one_object_whatever_happens() {
        let image = pattern(40 * 4096);
        let tree = split(&image, 4096);
        let parse = |text: String| serde_json::from_str::<serde_json::Value>(&text).unwrap();
        let value = parse(run(&tree, None, Format::Json).1);
        assert_eq!(value["problems"].as_array().unwrap().len(), 0);
        assert_eq!(value["report"]["chunks"], 40);
        for chunk in [3, 4, 7] {
            fs::write(tree.chunk(chunk), "").unwrap();
        }
        let value = parse(run(&tree, None, Format::Json).1);
        assert_eq!(value["problems"].as_array().unwrap().len(), 3);
        assert_eq!(value["problems"][0]["problem"], "short");
        fs::remove_dir_all(tree.chunks()).unwrap();
        let (failed, text) = run(&tree, None, Format::Json);
        assert!(failed.is_err());
        assert!(parse(text)["error"].as_str().unwrap().contains("No such file"));
    }

    #[test]
    fn a_report_that_nobody_reads_is_an_error() {
        struct Closed;
        impl Write for Closed {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let tree = split(&pattern(40 * 4096), 4096);
        let options = Options {
            chunks: tree.chunks(),
            image: None,
            format: Format::Text,
            known: Known::NOTHING,
            show: Show::Never,
        };
        assert!(matches!(verify(&options, &mut Closed), Err(Failure::Report(_))));
    }
}
