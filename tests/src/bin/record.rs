//! Runs a command and makes of what it prints an animated picture of a terminal, line by line as they came:
//! `cargo run --release -p tests --bin record -- docs/quickstart.svg scripts/quickstart`
//! Shows standard output alone, without colours of its own; long pauses are cut short.

use std::error::Error;
use std::fmt::Write;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Instant;

/// Lines of the window, and its width in characters.
const ROWS: usize = 30;
const COLUMNS: usize = 112;
/// In pixels.
const LINE: usize = 18;
const CHARACTER: f64 = 8.0;
const MARGIN: usize = 16;
/// In seconds.
const LONGEST_PAUSE: f64 = 1.0;
const SHORTEST_PAUSE: f64 = 0.12;

struct Line {
    /// In seconds from the beginning of the picture.
    at: f64,
    text: String,
}

fn main() -> Result<(), Box<dyn Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [picture, program, arguments @ ..] = words.as_slice() else {
        return Err("usage: record PICTURE.svg COMMAND [ARGUMENT...]".into());
    };
    let lines = record(Command::new(program).args(arguments))?;
    std::fs::write(picture, draw(&format!("{program} {}", arguments.join(" ")), &lines))?;
    Ok(())
}

/// What a command prints, and when. It must succeed: a picture of a failure helps nobody.
fn record(command: &mut Command) -> Result<Vec<Line>, Box<dyn Error>> {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
    let output = BufReader::new(child.stdout.take().expect("it is a pipe"));
    let (mut lines, mut at, mut last) = (Vec::new(), 0.0, Instant::now());
    for text in output.lines() {
        at += last.elapsed().as_secs_f64().clamp(SHORTEST_PAUSE, LONGEST_PAUSE);
        last = Instant::now();
        lines.push(Line { at, text: text? });
    }
    match child.wait()?.success() {
        true => Ok(lines),
        false => Err("the command has failed".into()),
    }
}

fn draw(title: &str, lines: &[Line]) -> String {
    let (width, height) =
        ((COLUMNS as f64 * CHARACTER) as usize + 2 * MARGIN, (ROWS + 2) * LINE + 2 * MARGIN);
    let end = lines.last().map_or(0.0, |line| line.at) + 3.0;
    let offset = |count: usize| count.saturating_sub(ROWS) * LINE;
    let mut scroll = String::from("0%{transform:translateY(0)}");
    let mut body = String::new();
    for (number, line) in lines.iter().enumerate() {
        if offset(number + 1) > 0 {
            let percent = line.at / end * 100.0;
            // What is written to a String is written.
            let _ = write!(scroll, "{percent:.2}%{{transform:translateY(-{}px)}}", offset(number + 1));
        }
        let class = match number.checked_sub(1).is_some_and(|before| lines[before].text.is_empty()) {
            true => "step",
            false if line.text.starts_with("  $ ") => "command",
            false => "told",
        };
        let text = escape(&line.text.chars().take(COLUMNS).collect::<String>());
        let (y, at) = ((number + 1) * LINE, line.at);
        let _ = writeln!(
            body,
            r#"<text y="{y}" class="{class}" style="animation-duration:{at:.2}s">{text}</text>"#
        );
    }
    // Lines are hidden until they came. Where nothing is animated the end is seen.
    format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">
<style>
text{{font:13px ui-monospace,Menlo,Consolas,"DejaVu Sans Mono",monospace;white-space:pre}}
#lines text{{animation:hidden 0s step-end}}
.step{{font-weight:bold;fill:#79c0ff}} .command{{fill:#7ee787}} .told{{fill:#e6edf3}}
#lines{{transform:translateY(-{last}px);animation:scroll {end:.2}s step-end}}
@keyframes hidden{{from,to{{visibility:hidden}}}}
@keyframes scroll{{{scroll}}}
</style>
<rect width="{width}" height="{height}" rx="8" fill="#0d1117"/>
<text x="{MARGIN}" y="{title_y}" fill="#9fb0c0">$ {title}</text>
<svg x="{MARGIN}" y="{top}" width="{inner}" height="{window}" overflow="hidden"><g id="lines" xml:space="preserve">
{body}</g></svg>
</svg>
"##,
        last = offset(lines.len()),
        title = escape(title.trim()),
        title_y = MARGIN + LINE / 2,
        top = MARGIN + LINE,
        inner = width - 2 * MARGIN,
        window = ROWS * LINE + LINE / 3,
    )
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
