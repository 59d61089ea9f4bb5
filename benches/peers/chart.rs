//! The chart: one bar for each job of each contender, its length the logarithm of the median.

use std::fmt::Write;
use std::time::Duration;

use super::contender::{Job, Samples};
use super::table;

const JOBS: [(Job, &str); 4] = [
    (Job::First, "create and first command"),
    (Job::Exec, "command in a running one"),
    (Job::Reset, "reset"),
    (Job::Teardown, "teardown"),
];
/// Each with its colour, which is seen on white and on black.
const CONTENDERS: [(&str, &str); 4] = [
    ("derrick", "#0f9d76"),
    ("bwrap", "#4c7fd8"),
    ("runc", "#d08a1d"),
    ("docker", "#b05cc6"),
];

const WIDTH: f64 = 760.0;
/// Where bars begin, and how long the longest may be.
const LEFT: f64 = 190.0;
const LENGTH: f64 = 480.0;
const BAR: f64 = 18.0;
/// The shortest and the longest time of the scale, in powers of ten of milliseconds.
const SCALE: (f64, f64) = (-1.0, 3.0);

/// The chart as SVG, with what has to be known to read it.
pub(crate) fn draw(samples: &Samples, notes: &[String]) -> String {
    let mut body = String::new();
    let mut y = 44.0;
    for (job, title) in JOBS {
        text(&mut body, LEFT - 12.0, y + 13.0, "end", "job", title);
        for (name, colour) in CONTENDERS {
            let Some(median) = samples.percentile(job, name, 50) else {
                continue;
            };
            let length = length(median);
            let _ = writeln!(
                body,
                r#"<rect x="{LEFT}" y="{y:.0}" width="{length:.1}" height="{:.0}" rx="2" fill="{colour}"/>"#,
                BAR - 3.0
            );
            let said = format!("{name} {}", milliseconds(median));
            text(
                &mut body,
                LEFT + length + 6.0,
                y + 12.0,
                "start",
                "said",
                &said,
            );
            y += BAR;
        }
        y += 14.0;
    }
    let bottom = y;
    let mut grid = String::new();
    for power in -1..=3 {
        let time = Duration::from_secs_f64(10_f64.powi(power) / 1e3);
        let x = LEFT + length(time);
        let _ = writeln!(
            grid,
            r#"<line x1="{x:.1}" y1="36" x2="{x:.1}" y2="{bottom:.0}"/>"#
        );
        text(&mut grid, x, 28.0, "middle", "said", &milliseconds(time));
    }
    for note in notes.iter().chain(&[table::machine()]) {
        y += 16.0;
        text(&mut body, 12.0, y, "start", "said", note);
    }
    format!(
        r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {:.0}" font-family="sans-serif">
<style>
text {{ fill: #24292f; }} line {{ stroke: #24292f; stroke-opacity: 0.2; }}
.job {{ font-size: 13px; font-weight: bold; }} .said {{ font-size: 11px; }}
@media (prefers-color-scheme: dark) {{ text {{ fill: #e6edf3; }} line {{ stroke: #e6edf3; }} }}
</style>
<title>Medians in milliseconds, on a logarithmic scale: shorter is better</title>
{grid}{body}</svg>
"#,
        y + 14.0
    )
}

fn length(time: Duration) -> f64 {
    let (least, most) = SCALE;
    let power = (time.as_secs_f64() * 1e3).log10();
    ((power - least) / (most - least)).clamp(0.005, 1.0) * LENGTH
}

fn milliseconds(time: Duration) -> String {
    let time = time.as_secs_f64() * 1e3;
    if time < 10.0 {
        format!("{time:.1} ms")
    } else {
        format!("{time:.0} ms")
    }
}

fn text(out: &mut String, x: f64, y: f64, anchor: &str, class: &str, said: &str) {
    let said = said.replace('&', "&amp;").replace('<', "&lt;");
    let _ = writeln!(
        out,
        r#"<text x="{x:.1}" y="{y:.0}" text-anchor="{anchor}" class="{class}">{said}</text>"#
    );
}
