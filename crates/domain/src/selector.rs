//! Selectors: which devices, by label and class, e.g. `site=berlin,class in (x8664-avx2-4t)`.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::DomainError;

/// Longest selector that is parsed, in bytes.
pub const MAX_BYTES: usize = 1_024;
/// The name under which a device's class is asked for; no label of a device counts under it.
pub const CLASS: &str = "class";
const EXPECTED: &str = "requirements joined by commas: key=value, key!=value, key in (a,b), key notin (a,b), key, !key";

/// Requirements that all hold; none: every device.
///
/// Grammar and meaning are those of Kubernetes' label selectors: `!=` and `notin` also hold where the label is missing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Selector(Vec<Requirement>);

/// One requirement on one label, or on the class.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requirement {
    key: String,
    test: Test,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Test {
    In(Vec<String>),
    NotIn(Vec<String>),
    Exists,
    Missing,
}

/// What a selector is asked about.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// Labels of the device.
    pub labels: &'a BTreeMap<String, String>,
    /// Its class, once it has one.
    pub class: Option<&'a str>,
}

impl Selector {
    /// Whether it asks for nothing, so that every device is meant.
    pub fn is_everything(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a device is meant.
    pub fn matches(&self, subject: Subject<'_>) -> bool {
        self.unmet(subject).is_none()
    }

    /// The first requirement that does not hold for a device.
    pub fn unmet(&self, subject: Subject<'_>) -> Option<&Requirement> {
        self.0.iter().find(|r| !r.holds(subject))
    }
}

impl Requirement {
    fn holds(&self, subject: Subject<'_>) -> bool {
        let value = if self.key == CLASS { subject.class } else { subject.labels.get(&self.key).map(String::as_str) };
        match &self.test {
            Test::In(values) => value.is_some_and(|v| values.iter().any(|x| x == v)),
            Test::NotIn(values) => value.is_none_or(|v| values.iter().all(|x| x != v)),
            Test::Exists => value.is_some(),
            Test::Missing => value.is_none(),
        }
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = &self.key;
        match &self.test {
            Test::In(values) => match values.as_slice() {
                [value] => write!(f, "{key}={value}"),
                values => write!(f, "{key} in ({})", values.join(",")),
            },
            Test::NotIn(values) => match values.as_slice() {
                [value] => write!(f, "{key}!={value}"),
                values => write!(f, "{key} notin ({})", values.join(",")),
            },
            Test::Exists => write!(f, "{key}"),
            Test::Missing => write!(f, "!{key}"),
        }
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, requirement) in self.0.iter().enumerate() {
            if n > 0 {
                f.write_str(",")?;
            }
            write!(f, "{requirement}")?;
        }
        Ok(())
    }
}

impl From<Selector> for String {
    fn from(selector: Selector) -> Self {
        selector.to_string()
    }
}

impl TryFrom<String> for Selector {
    type Error = DomainError;
    fn try_from(text: String) -> Result<Self, DomainError> {
        text.parse()
    }
}

impl FromStr for Selector {
    type Err = DomainError;
    fn from_str(text: &str) -> Result<Self, DomainError> {
        let wrong = || DomainError::Field { field: "selector".into(), got: text.chars().take(80).collect(), expected: EXPECTED.into() };
        if text.len() > MAX_BYTES {
            return Err(wrong());
        }
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        outside_brackets(text).into_iter().map(|part| requirement(part.trim())).collect::<Option<_>>().map(Self).ok_or_else(wrong)
    }
}

/// The parts between commas that stand in no brackets.
fn outside_brackets(text: &str) -> Vec<&str> {
    let mut depth = 0_usize;
    text.split(move |c| {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            _ => {}
        }
        c == ',' && depth == 0
    })
    .collect()
}

fn requirement(part: &str) -> Option<Requirement> {
    let of = |key: &str, test: Test| word(key).map(|key| Requirement { key, test });
    if let Some((key, value)) = part.split_once("!=") {
        return of(key, Test::NotIn(vec![word(value)?]));
    }
    if let Some((key, value)) = part.split_once('=') {
        return of(key, Test::In(vec![word(value.strip_prefix('=').unwrap_or(value))?]));
    }
    if let Some(key) = part.strip_prefix('!') {
        return of(key, Test::Missing);
    }
    let Some((head, list)) = part.split_once('(') else { return of(part, Test::Exists) };
    let values = list.strip_suffix(')')?.split(',').map(word).collect::<Option<Vec<_>>>()?;
    match head.trim().rsplit_once(char::is_whitespace)? {
        (key, "in") => of(key, Test::In(values)),
        (key, "notin") => of(key, Test::NotIn(values)),
        _ => None,
    }
}

/// A key or value: 1 to 63 letters, digits and `-_./`.
fn word(text: &str) -> Option<String> {
    let text = text.trim();
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/');
    ((1..=63).contains(&text.len()) && text.chars().all(fits)).then(|| text.to_owned())
}

/// Checks a label that a person gives a device: what a selector can ask for.
///
/// # Errors
/// [`DomainError::Field`] for a key or value that no selector could name, or the reserved key `class`.
pub fn check_label(key: &str, value: &str) -> Result<(), DomainError> {
    let fits = |text: &str| word(text).is_some_and(|w| w == text);
    if fits(key) && fits(value) && key != CLASS {
        return Ok(());
    }
    let got = format!("{key}={value}").chars().take(80).collect();
    let expected = "key and value of 1 to 63 letters, digits, '-', '_', '.' or '/'; the key is not \"class\"".into();
    Err(DomainError::Field { field: "label".into(), got, expected })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(selector: &str, labels: &[(&str, &str)]) -> bool {
        let labels = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        selector.parse::<Selector>().unwrap().matches(Subject { labels: &labels, class: Some("x-4t") })
    }

    #[test]
    fn every_requirement_must_hold() {
        let berlin = &[("site", "berlin"), ("line", "3")];
        for yes in ["", "site=berlin", "site==berlin , line in (2, 3)", "class in (x-4t,y)", "site,!roof", "roof!=a", "line notin (4,5)"] {
            assert!(matches(yes, berlin), "{yes}");
        }
        for no in ["site=bonn", "site=berlin,line=4", "class=y", "roof", "!site", "site!=berlin", "line notin (3)", "roof in (a)"] {
            assert!(!matches(no, berlin), "{no}");
        }
        assert!(!matches("class=z", &[("class", "z")]), "a label cannot pretend to be the class");
    }

    #[test]
    fn text_parses_back_and_nonsense_is_refused() {
        for text in ["site=berlin,class in (a,b)", "!roof,x!=1,y notin (1,2),z"] {
            assert_eq!(text.parse::<Selector>().unwrap().to_string(), text);
        }
        for bad in [",", "a=", "=b", "a in", "a in (", "a in ()", "a in (b", "a b", "in (a)", "a>1", "a=b=c=d", "ä=1", &"a,".repeat(600)] {
            assert!(bad.parse::<Selector>().is_err_and(|e| e.to_string().contains("expected requirements")), "{bad}");
        }
        assert!(check_label("site", "berlin").is_ok());
        assert!(check_label("class", "a").is_err() && check_label("site", "a b").is_err() && check_label("", "a").is_err());
    }

    #[test]
    fn the_requirement_that_does_not_hold_is_named() {
        let selector: Selector = "site=berlin,class=y".parse().unwrap();
        let labels = BTreeMap::from([("site".to_owned(), "berlin".to_owned())]);
        assert_eq!(selector.unmet(Subject { labels: &labels, class: Some("x") }).unwrap().to_string(), "class=y");
    }
}
