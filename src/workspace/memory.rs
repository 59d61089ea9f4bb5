//! How much memory the host has, how much of it can be had now, and whether it is short.

use bytesize::ByteSize;

use super::admission::Shortage;
use crate::sandbox::cgroups::Pressure;

/// The most that is kept free where nobody has said how much, in bytes.
const LARGEST_FLOOR: u64 = 1 << 30;

/// From which part of the time on, in percent, what waits for memory says that there is too little. One
/// workspace at its own limit reaches that alone, so it counts only where little is available as well.
const STALLED: f64 = 10.0;

/// The host's memory, proc_meminfo(5).
#[derive(Debug, Clone, Copy)]
pub(super) struct Memory {
    pub(super) total: u64,
    /// What can be had without pushing anything out that is in use.
    pub(super) available: u64,
    /// Percent of the last ten seconds in which all waited for memory that could have worked.
    stalled: f64,
}

impl Memory {
    /// What a kernel does not tell counts as plenty.
    pub(super) fn of_host() -> Self {
        let read = |file| std::fs::read_to_string(file).unwrap_or_default();
        Self::parse(&read("/proc/meminfo"), &read("/proc/pressure/memory"))
    }

    fn parse(meminfo: &str, pressure: &str) -> Self {
        let field = |name: &str| {
            let line = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
            let number: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
            Some(number << 10)
        };
        let total = field("MemTotal:").unwrap_or(u64::MAX);
        Self {
            total,
            available: field("MemAvailable:").unwrap_or(total),
            stalled: Pressure::parse(pressure)
                .and_then(|pressure| pressure.full)
                .map_or(0.0, |full| full.avg10),
        }
    }

    /// How much is to stay free: what was asked for, else a fiftieth, at most 1 GiB.
    pub(super) fn floor(&self, asked: Option<ByteSize>) -> u64 {
        asked.map_or_else(
            || (self.total / 50).min(LARGEST_FLOOR),
            |floor| floor.as_u64(),
        )
    }

    /// What there is too little of for something that takes `needed`, beside what takes `coming`.
    pub(super) fn shortage(&self, floor: u64, coming: u64, needed: u64) -> Option<Shortage> {
        let available = self.available.saturating_sub(coming);
        if available < floor.saturating_add(needed) {
            return Some(Shortage::Memory {
                available: ByteSize::b(available),
                needed: ByteSize::b(needed),
                floor: ByteSize::b(floor),
            });
        }
        self.is_pressed(floor).then(|| Shortage::Pressure {
            available: ByteSize::b(self.available),
        })
    }

    /// Whether what runs waits for memory since there is too little.
    pub(super) fn is_pressed(&self, floor: u64) -> bool {
        self.stalled >= STALLED && self.available < floor.saturating_mul(2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMINFO: &str =
        "MemTotal:       1000000 kB\nMemFree:          1 kB\nMemAvailable:    300000 kB\n";

    fn with_pressure(full: &str) -> Memory {
        let some = "some avg10=90.00 avg60=0.00 avg300=0.00 total=5\n";
        let full = format!("full avg10={full} avg60=0.00 avg300=0.00 total=3\n");
        Memory::parse(MEMINFO, &format!("{some}{full}"))
    }

    #[test]
    fn the_kernels_numbers_are_read_and_what_it_does_not_say_is_plenty() {
        let memory = with_pressure("12.50");
        assert_eq!(memory.total, 1_000_000 << 10);
        assert_eq!(memory.available, 300_000 << 10);
        assert_eq!(memory.floor(None), (1_000_000 << 10) / 50);
        assert_eq!(memory.floor(Some(ByteSize::b(7))), 7);
        let unknown = Memory::parse("", "");
        assert_eq!(unknown.floor(None), LARGEST_FLOOR);
        assert_eq!(unknown.shortage(1 << 40, 1 << 40, 1 << 40), None);
    }

    #[test]
    fn what_is_promised_already_is_not_given_again() {
        let memory = with_pressure("0.00");
        let have = memory.available;
        assert_eq!(memory.shortage(0, 0, have), None);
        for (floor, coming, needed) in [(1, 0, have), (0, 1, have), (0, 0, have + 1), (0, have, 1)]
        {
            let short = memory.shortage(floor, coming, needed);
            assert!(matches!(short, Some(Shortage::Memory { .. })), "{short:?}");
        }
    }

    #[test]
    fn pressure_counts_where_little_is_left_alone() {
        let floor = 200_000 << 10;
        for (stalled, floor, pressed) in [
            ("9.99", floor, false),
            ("10.00", floor, true),
            ("90.00", floor / 2, false),
        ] {
            let short = with_pressure(stalled).shortage(floor, 0, 1);
            let found = matches!(short, Some(Shortage::Pressure { .. }));
            assert_eq!(found, pressed, "{short:?}");
        }
    }
}
