//! Messages on stderr, which a daemon points elsewhere: `chunkfs: warning: ...`, in a log file with the time.
//! What is worth a message is decided where it happens.

use crate::cli::{Cli, Command};
use std::fmt;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime as Clock};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// RUST_LOG says it more finely than the options.
pub fn to_stderr(cli: &Cli) {
    let level = match (cli.debug, cli.quiet) {
        (true, _) => LevelFilter::DEBUG,
        (_, true) => LevelFilter::ERROR,
        _ => LevelFilter::WARN,
    };
    let filter = EnvFilter::builder().with_default_directive(level.into()).from_env_lossy();
    // fuser warns when it finds that its mount is gone, which is how every view of ours ends.
    let filter = match cli.debug {
        true => filter,
        false => filter.add_directive("fuser=error".parse().expect("a constant")),
    };
    let serving = match &cli.command {
        Command::Mount(mount) => Some(&mount.serving),
        Command::Join(join) => Some(&join.serving),
        _ => None,
    };
    let lines =
        if serving.is_some_and(|serving| serving.log.is_some()) { Lines::WithTime } else { Lines::Plain };
    tracing_subscriber::fmt()
        .log_internal_errors(false)
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .event_format(lines)
        .init();
}

/// How a message looks.
enum Lines {
    Plain,
    WithTime,
}

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut out: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        if let Lines::WithTime = self {
            Clock.format_time(&mut out)?;
            out.write_char(' ')?;
        }
        let level = match *event.metadata().level() {
            Level::ERROR => "error: ",
            Level::WARN => "warning: ",
            _ => "",
        };
        write!(out, "chunkfs: {level}")?;
        context.field_format().format_fields(out.by_ref(), event)?;
        writeln!(out)
    }
}
