//! derrick beside what people use instead, and beside the least that the kernel can do it for.
//!
//! Every contender does the same jobs in one run, a few at a time in turn, so that a noisy moment of
//! the machine meets all of them. Printed is one table of medians with three ratios.
//!
//! `cargo bench --bench peers -- --rounds 40 [--chart FILE]`; without `--bench`, as under `cargo test`, one round.
//!
//! | contender | what it is, and what a change of its time means |
//! |---|---|
//! | `true` | fork, exec and wait of `/bin/true`: the machine |
//! | `shell` | the same of `bash -c true`, which all others run as their command: the machine |
//! | `bare` | fork, namespaces of every kind, one overlay, exec of the same, wait: the kernel |
//! | `derrick` | its HTTP API on a kept connection |
//! | `bwrap` | bubblewrap with the flags that come nearest |
//! | `runc` | runc with the namespaces that derrick makes and an overlay on `/usr` |
//! | `docker` | a Docker engine, where one can be reached, with a small image and no network |
//!
//! | job | what is timed |
//! |---|---|
//! | `first` | from the request until a first command ran: create and command |
//! | `exec` | one command in what is running |
//! | `reset` | back to the state of the beginning |
//! | `teardown` | until nothing of it runs |
//! | `whole` | create, one command, teardown |

#[path = "../support/mod.rs"]
mod support;

mod bwrap;
mod chart;
mod contender;
mod derrick;
mod docker;
mod floor;
mod runc;
mod table;

use contender::{Contender, Samples};
use support::Scratch;

/// Rounds unless `--rounds` says otherwise: enough for a median that the next run finds again.
const ROUNDS: usize = 40;

fn main() {
    let mut arguments = std::env::args().skip(1);
    let mut rounds = 1;
    let mut chart = None;
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            support::floor::ARGUMENT => return support::floor::serve(arguments),
            "--bench" => rounds = ROUNDS,
            "--rounds" => rounds = support::rounds(&mut arguments),
            "--chart" => chart = Some(arguments.next().expect("--chart takes a file")),
            other => {
                panic!("{other} is no argument of this bench; it has --rounds N, --chart FILE")
            }
        }
    }
    compare(rounds, chart.as_deref());
}

fn compare(rounds: usize, chart: Option<&str>) {
    let scratch = Scratch::new();
    let mut derrick = derrick::Derrick::start();
    let notes = vec![
        derrick.describe(),
        bwrap::describe(),
        runc::describe(),
        docker::describe(),
    ];
    let mut contenders: Vec<Box<dyn Contender>> = vec![
        Box::new(floor::Spawn::TRUE),
        Box::new(floor::Spawn::SHELL),
        Box::new(floor::Bare::start(&scratch)),
        Box::new(bwrap::Bwrap::new()),
        Box::new(runc::Runc::new(&scratch)),
        Box::new(docker::Docker::new(&scratch)),
    ];
    // Where the host lets one of them do nothing, the table says so.
    let mut absent = Vec::new();
    contenders.retain_mut(|contender| match contender.try_once() {
        Ok(()) => true,
        Err(reason) => {
            absent.push((contender.name(), reason));
            false
        }
    });
    derrick.round(&mut Samples::default());
    contenders.push(Box::new(derrick));

    let mut samples = Samples::default();
    for round in 0..rounds {
        // Each has another one before it in the next round, whose background work it meets.
        contenders.rotate_left(1);
        if round % 2 == 1 {
            contenders.reverse();
        }
        for contender in &mut contenders {
            contender.round(&mut samples);
        }
    }
    table::print(&samples, &absent, &notes, rounds);
    if let Some(file) = chart {
        let drawn = chart::draw(&samples, &notes);
        std::fs::write(file, drawn).expect("the chart can be written");
    }
}
