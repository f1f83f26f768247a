//! Dates for chat templates that print today's.

use std::fmt::Write;

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const WEEKDAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

/// A moment in the proleptic Gregorian calendar. The engine reads no clock: whoever does passes one in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CivilTime {
    /// Days since 1970-01-01.
    days: i64,
    /// Seconds of the day.
    second_of_day: u32,
}

impl CivilTime {
    /// The moment so many seconds after 1970-01-01 00:00; add the time zone's offset for local time.
    #[must_use]
    pub fn from_unix_seconds(seconds: i64) -> Self {
        // Beyond ±1e13 s (316,000 years) no calendar is meant; clamped so that nothing below overflows.
        let seconds = seconds.clamp(-10_000_000_000_000, 10_000_000_000_000);
        let second_of_day = u32::try_from(seconds.rem_euclid(86_400)).unwrap_or(0);
        Self { days: seconds.div_euclid(86_400), second_of_day }
    }

    /// Year, month `1..=12`, day `1..=31`: Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms", `civil_from_days`.
    #[must_use]
    pub fn date(self) -> (i64, usize, i64) {
        let z = self.days + 719_468;
        let era = z.div_euclid(146_097);
        let day_of_era = z.rem_euclid(146_097);
        let year_of_era =
            (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let shifted_month = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
        let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
        let year = year_of_era + era * 400 + i64::from(month <= 2);
        (year, usize::try_from(month).unwrap_or(1), day)
    }

    /// Formats as C's `strftime` in the C locale; `-` after `%` drops leading zeros.
    ///
    /// # Errors
    /// The directive that is not known.
    pub fn format(self, format: &str) -> Result<String, String> {
        let mut out = String::new();
        let mut rest = format.chars();
        while let Some(character) = rest.next() {
            if character != '%' {
                out.push(character);
                continue;
            }
            let mut directive = rest.next();
            let is_padded = directive != Some('-');
            if !is_padded {
                directive = rest.next();
            }
            self.write_directive(directive, is_padded, &mut out).ok_or_else(|| {
                let name = directive.map(String::from).unwrap_or_default();
                format!("date format {format:?}: %{name} is not one of %Y %y %m %d %e %B %b %A %a %j %H %I %M %S %p %F %T %%")
            })?;
        }
        Ok(out)
    }

    fn write_directive(self, directive: Option<char>, is_padded: bool, out: &mut String) -> Option<()> {
        let (year, month, day) = self.date();
        let (hour, minute, second) =
            (self.second_of_day / 3_600, self.second_of_day / 60 % 60, self.second_of_day % 60);
        let month_name = MONTHS[month - 1];
        let weekday = WEEKDAYS[usize::try_from((self.days + 4).rem_euclid(7)).ok()?];
        let number =
            |value: i64, width: usize| if is_padded { format!("{value:0width$}") } else { value.to_string() };
        let text = match directive? {
            'Y' => year.to_string(),
            'y' => number(year.rem_euclid(100), 2),
            'm' => number(i64::try_from(month).ok()?, 2),
            'd' => number(day, 2),
            'e' => {
                if is_padded {
                    format!("{day:2}")
                } else {
                    day.to_string()
                }
            }
            'B' => month_name.to_owned(),
            'b' | 'h' => month_name[..3].to_owned(),
            'A' => weekday.to_owned(),
            'a' => weekday[..3].to_owned(),
            'j' => number(day_of_year(year, month, day), 3),
            'H' => number(hour.into(), 2),
            'I' => number(((hour + 11) % 12 + 1).into(), 2),
            'M' => number(minute.into(), 2),
            'S' => number(second.into(), 2),
            'p' => if hour < 12 { "AM" } else { "PM" }.to_owned(),
            'F' => format!("{year}-{month:02}-{day:02}"),
            'T' => format!("{hour:02}:{minute:02}:{second:02}"),
            '%' => "%".to_owned(),
            _ => return None,
        };
        out.write_str(&text).ok()
    }
}

/// `1..=366`.
fn day_of_year(year: i64, month: usize, day: i64) -> i64 {
    const DAYS_BEFORE: [i64; 12] = [0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334];
    let is_leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    DAYS_BEFORE[month - 1] + day + i64::from(is_leap && month > 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Expected strings by Python 3: `datetime.utcfromtimestamp(s).strftime(f)`.
    #[test]
    fn dates_read_as_python_prints_them() {
        let format = "%Y-%m-%d %y %e %-d %B %b %A %a %j %H:%M:%S %I %p %-m %%";
        for (seconds, expected) in [
            (0, "1970-01-01 70  1 1 January Jan Thursday Thu 001 00:00:00 12 AM 1 %"),
            (951_782_400, "2000-02-29 00 29 29 February Feb Tuesday Tue 060 00:00:00 12 AM 2 %"),
            (1_735_689_599, "2024-12-31 24 31 31 December Dec Tuesday Tue 366 23:59:59 11 PM 12 %"),
            (-1, "1969-12-31 69 31 31 December Dec Wednesday Wed 365 23:59:59 11 PM 12 %"),
            (4_107_588_000, "2100-03-01 00  1 1 March Mar Monday Mon 060 12:40:00 12 PM 3 %"),
        ] {
            assert_eq!(CivilTime::from_unix_seconds(seconds).format(format).unwrap(), expected);
        }
    }

    #[test]
    fn an_unknown_directive_is_named_and_no_moment_panics() {
        assert!(CivilTime::from_unix_seconds(0).format("%Q").unwrap_err().contains("%Q"));
        assert!(CivilTime::from_unix_seconds(0).format("%").is_err());
        for seconds in [i64::MIN, i64::MAX] {
            CivilTime::from_unix_seconds(seconds).format("%F %j").unwrap();
        }
    }
}
