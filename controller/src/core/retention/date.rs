//! The names of archives: a local time, to the second, and what counts it when that time came twice.
//! Knows the calendar, and no time zone: a name is never turned into a moment, only compared with other names.

use std::fmt;
use std::num::NonZeroU32;

use serde::Serialize;
use thiserror::Error;

/// `2025-07-14-172447`; `2025-07-14-172447-2` for the second one of that name, where the clock was set back.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(into = "String")]
pub struct ArchiveName {
    // In the order in which names are compared.
    date: Date,
    hour: u8,
    minute: u8,
    second: u8,
    repeat: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Date {
    year: u16,
    month: u8,
    day: u8,
}

#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{0:?} is not the name of an archive, such as 2025-07-14-172447")]
pub struct ArchiveNameError(String);

/// A stretch of the calendar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Period {
    /// Every archive is one of its own.
    Each,
    Day,
    /// From Monday to Sunday, by ISO 8601.
    Week,
    Month,
    Year,
}

impl ArchiveName {
    /// Strict: what is not exactly a name is none of our directories.
    pub fn parse(text: &str) -> Result<ArchiveName, ArchiveNameError> {
        parse(text).ok_or_else(|| ArchiveNameError(text.to_owned()))
    }

    /// For when there is an archive of this name already.
    pub fn next(&self) -> ArchiveName {
        ArchiveName { repeat: self.repeat + 1, ..self.clone() }
    }
}

fn parse(text: &str) -> Option<ArchiveName> {
    let (time, repeat) = text.split_at_checked(17)?;
    let repeat = match repeat.strip_prefix('-') {
        None if repeat.is_empty() => 1,
        None => return None,
        Some(digits) if digits.starts_with('0') || !digits.bytes().all(|b| b.is_ascii_digit()) => {
            return None;
        }
        Some(digits) => digits.parse::<NonZeroU32>().ok().filter(|repeat| repeat.get() > 1)?.get(),
    };
    let number = |from: usize, to: usize| {
        let digits = time.get(from..to).filter(|digits| digits.bytes().all(|b| b.is_ascii_digit()))?;
        digits.parse::<u16>().ok()
    };
    let small = |from| number(from, from + 2).and_then(|number| u8::try_from(number).ok());
    let dashes = [4, 7, 10].iter().all(|at| time.as_bytes()[*at] == b'-');
    let date = Date { year: number(0, 4)?, month: small(5)?, day: small(8)? };
    let name = ArchiveName { date, hour: small(11)?, minute: small(13)?, second: small(15)?, repeat };
    // A leap second is one more.
    let clock = name.hour < 24 && name.minute < 60 && name.second < 61;
    (dashes && clock && date.exists() && repeat < u32::MAX).then_some(name)
}

impl fmt::Display for ArchiveName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Date { year, month, day } = self.date;
        let ArchiveName { hour, minute, second, .. } = self;
        write!(f, "{year:04}-{month:02}-{day:02}-{hour:02}{minute:02}{second:02}")?;
        if self.repeat > 1 { write!(f, "-{}", self.repeat) } else { Ok(()) }
    }
}

impl From<ArchiveName> for String {
    fn from(name: ArchiveName) -> String {
        name.to_string()
    }
}

impl Period {
    /// Are both of the same period?
    pub(super) fn holds_both(self, a: &ArchiveName, b: &ArchiveName) -> bool {
        let (a_date, b_date) = (a.date, b.date);
        match self {
            Period::Each => a == b,
            Period::Day => a_date == b_date,
            Period::Week => a_date.week() == b_date.week(),
            Period::Month => (a_date.year, a_date.month) == (b_date.year, b_date.month),
            Period::Year => a_date.year == b_date.year,
        }
    }
}

impl Date {
    fn exists(self) -> bool {
        let leap =
            self.year.is_multiple_of(4) && !self.year.is_multiple_of(100) || self.year.is_multiple_of(400);
        let days = match self.month {
            1 | 3 | 5 | 7 | 8 | 10 | 12 => 31,
            4 | 6 | 9 | 11 => 30,
            2 if leap => 29,
            2 => 28,
            _ => return false,
        };
        (1..=days).contains(&self.day)
    }

    /// Counts the weeks; the first day of all was a Monday.
    fn week(self) -> i64 {
        self.number().div_euclid(7)
    }

    /// Days since Monday, 1 January of the year 1 (proleptic Gregorian calendar).
    fn number(self) -> i64 {
        // Years that begin in March have their odd day at the end.
        let (year, month) = match self.month {
            1 | 2 => (i64::from(self.year) - 1, i64::from(self.month) + 9),
            month => (i64::from(self.year), i64::from(month) - 3),
        };
        let leaps = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
        let of_year = (153 * month + 2) / 5 + i64::from(self.day) - 1;
        year * 365 + leaps + of_year - 306
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn date(text: &str) -> Date {
        ArchiveName::parse(&format!("{text}-000000")).unwrap().date
    }

    #[test]
    fn only_exact_names_are_names() {
        for good in [
            "2025-07-14-172447",
            "2025-07-14-172447-2",
            "2024-02-29-000000",
            "2000-02-29-235960",
            "0001-01-01-000000-4000000000",
        ] {
            assert_eq!(ArchiveName::parse(good).unwrap().to_string(), good);
        }
        for bad in [
            "",
            "2025-07-14",
            "2025-07-14-17244",
            "2025-07-14-1724470",
            "2025-07-14-172447-",
            "2025-07-14-172447-1",
            "2025-07-14-172447-02",
            "2025-07-14-172447-+2",
            "2025-07-14-172447.partial",
            "2025-07-14-172447/",
            "2025-07-14 172447",
            "2025-13-14-172447",
            "2025-00-14-172447",
            "2025-02-29-172447",
            "1900-02-29-172447",
            "2025-07-32-172447",
            "2025-07-00-172447",
            "2025-07-14-242447",
            "2025-07-14-176047",
            "2025-07-14-172461",
            "+025-07-14-172447",
            "2025-07-14-17 447",
            "2025-07-14-172447-99999999999",
            "ÄÄÄÄÄÄÄÄÄ",
        ] {
            assert!(ArchiveName::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn days_are_counted_without_a_gap() {
        assert_eq!(date("0001-01-01").number(), 0);
        // Howard Hinnant's and everybody's epoch, a Thursday.
        assert_eq!(date("1970-01-01").number(), 719_162);
        let mut last = date("1999-12-31").number();
        for year in 2000..=2004 {
            for month in 1..=12 {
                for day in 1..=31 {
                    let date = Date { year, month, day };
                    if date.exists() {
                        assert_eq!(date.number(), last + 1, "{date:?}");
                        last = date.number();
                    }
                }
            }
        }
    }

    #[test]
    fn a_week_is_from_monday_to_sunday_also_over_new_year() {
        for (a, b, same) in [
            ("2025-07-14", "2025-07-20", true),
            ("2025-07-13", "2025-07-14", false),
            ("2025-12-29", "2026-01-04", true),
            ("2026-01-04", "2026-01-05", false),
        ] {
            assert_eq!(date(a).week() == date(b).week(), same, "{a} {b}");
        }
    }

    #[test]
    fn a_name_that_is_taken_is_followed_by_the_next() {
        let first = ArchiveName::parse("2025-10-26-023000").unwrap();
        let second = first.next();
        assert_eq!(second.to_string(), "2025-10-26-023000-2");
        assert_eq!(second.next().to_string(), "2025-10-26-023000-3");
        assert!(first < second && second < second.next());
        assert!(second.next() < ArchiveName::parse("2025-10-26-023001").unwrap());
    }
}
