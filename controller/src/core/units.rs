//! The quantities that cross a file boundary, each a type of its own.
//! No conversions between different quantities.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A length or a capacity in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Bytes(pub u64);

impl Bytes {
    pub const ZERO: Bytes = Bytes(0);

    /// The sum, or the largest number there is: sums of capacities are only compared and shown.
    pub fn plus(self, other: Bytes) -> Bytes {
        Bytes(self.0.saturating_add(other.0))
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 7] = ["bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
        let (mut value, mut unit) = (self.0, 0);
        while value >= 1024 && value.is_multiple_of(1024) {
            (value, unit) = (value / 1024, unit + 1);
        }
        // An uneven number stays readable: two digits of the largest unit below it.
        if value >= 10 * 1024 {
            let mut rounded = value as f64;
            while rounded >= 1024.0 {
                (rounded, unit) = (rounded / 1024.0, unit + 1);
            }
            return write!(f, "{rounded:.1} {}", UNITS[unit]);
        }
        write!(f, "{value} {}", UNITS[unit])
    }
}

/// Counts the backups of a VM: 1 for the first. Never used twice for the same VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Generation(pub u64);

impl Generation {
    /// Before the first backup.
    pub const NONE: Generation = Generation(0);

    pub fn next(self) -> Generation {
        Generation(self.0.checked_add(1).expect("nobody makes 2^64 backups"))
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_read_as_a_person_would_say_them() {
        for (bytes, text) in [
            (0, "0 bytes"),
            (1023, "1023 bytes"),
            (1025, "1025 bytes"),
            (262_144, "256 KiB"),
            (5 << 30, "5 GiB"),
            ((5 << 30) + 512, "5.0 GiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(Bytes(bytes).to_string(), text);
        }
    }
}
