//! A span of time in which a staged bundle may be activated.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

const DAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];
const MINUTES_A_DAY: u16 = 24 * 60;

/// `[day] HH:MM-HH:MM` in UTC, over midnight where it ends before it begins; `day` is the one it begins on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Window {
    /// Day of the week, Sunday is 0; `None` is every day.
    day: Option<u8>,
    /// Minutes from midnight.
    from: u16,
    to: u16,
}

impl Window {
    /// Whether a time, in milliseconds since 1970 UTC, is inside.
    pub fn contains(&self, now_ms: i64) -> bool {
        let minute_of_all = now_ms.div_euclid(60_000);
        let minute = u16::try_from(minute_of_all.rem_euclid(MINUTES_A_DAY.into())).unwrap_or(0);
        // The first of January 1970 was a Thursday.
        let day = u8::try_from((minute_of_all.div_euclid(MINUTES_A_DAY.into()) + 4).rem_euclid(7)).unwrap_or(0);
        let on = |day| self.day.is_none_or(|d| d == day);
        if self.from <= self.to {
            on(day) && (self.from..self.to).contains(&minute)
        } else {
            (on(day) && minute >= self.from) || (on((day + 6) % 7) && minute < self.to)
        }
    }
}

impl FromStr for Window {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || format!("{text:?} is no window: expected e.g. 02:00-04:30 or sat 22:00-02:00, in UTC");
        let (day, span) = match text.trim().split_once(' ') {
            Some((day, span)) => (Some(DAYS.iter().position(|&d| d == day).ok_or_else(wrong)?), span),
            None => (None, text.trim()),
        };
        let minute = |time: &str| {
            let (hour, minute) = time.split_once(':')?;
            let (hour, minute) = (hour.parse::<u16>().ok()?, minute.parse::<u16>().ok()?);
            (hour < 24 && minute < 60).then_some(hour * 60 + minute)
        };
        let (from, to) = span.split_once('-').ok_or_else(wrong)?;
        let (from, to) = (minute(from).ok_or_else(wrong)?, minute(to).ok_or_else(wrong)?);
        let day = day.map(u8::try_from).transpose().map_err(|_| wrong())?;
        if from == to { Err(wrong()) } else { Ok(Self { day, from, to }) }
    }
}

impl TryFrom<String> for Window {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Window> for String {
    fn from(window: Window) -> Self {
        window.to_string()
    }
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(day) = self.day.and_then(|d| DAYS.get(usize::from(d))) {
            write!(f, "{day} ")?;
        }
        write!(f, "{:02}:{:02}-{:02}:{:02}", self.from / 60, self.from % 60, self.to / 60, self.to % 60)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_writes_and_refuses_the_rest_in_words() {
        for text in ["02:00-04:30", "sat 22:00-02:00"] {
            assert_eq!(text.parse::<Window>().unwrap().to_string(), text);
        }
        for text in ["", "2-4", "24:00-01:00", "02:60-03:00", "01:00-01:00", "samstag 01:00-02:00", "sat01:00-02:00"] {
            assert!(text.parse::<Window>().unwrap_err().contains("expected e.g. 02:00-04:30"), "{text}");
        }
    }
}
