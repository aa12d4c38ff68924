//! What serde and TOML's reader say about a value that they can't read, in words for people who have written a configuration and not a program.

/// How alike a key has to be for us to ask whether it was meant, from 0 to 1.
const ALIKE: f64 = 0.75;

/// The same message in plainer words; one that they did not make is left as it is.
pub(crate) fn plain(message: &str) -> String {
    let message = message.trim_end();
    unknown_field(message)
        .or_else(|| wrong_value(message))
        .or_else(|| named(message, "missing field ").map(|key| format!("the key {key:?} is missing")))
        .or_else(|| named(message, "duplicate field ").map(|key| format!("the key {key:?} is there twice")))
        .unwrap_or_else(|| fixed(message).to_owned())
}

/// What always has the same words.
fn fixed(message: &str) -> &str {
    match message {
        "invalid IPv4 address syntax" => "this is no IPv4 address: write one as in 10.77.0.10",
        "duplicate key" => "this key is there twice: leave one of them away",
        other => other,
    }
}

/// ``unknown field `X`, expected one of `a`, `b` ``.
fn unknown_field(message: &str) -> Option<String> {
    let (unknown, expected) = message.strip_prefix("unknown field `")?.split_once("`, ")?;
    let known: Vec<_> = expected.split('`').skip(1).step_by(2).collect();
    let alike = |key: &&str| strsim::jaro(&unknown.to_lowercase(), key);
    let nearest = known.iter().copied().max_by(|a, b| alike(a).total_cmp(&alike(b))).filter(|key| alike(key) >= ALIKE);
    let meant = nearest.map(|key| format!(", is {key:?} meant?")).unwrap_or_default();
    let there = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
    Some(format!("there is no key {unknown:?} here{meant} (those that there are: {there})"))
}

/// `invalid type: string "x", expected a whole number`.
fn wrong_value(message: &str) -> Option<String> {
    let rest = message.strip_prefix("invalid type: ").or_else(|| message.strip_prefix("invalid value: "))?;
    let (given, expected) = rest.split_once(", expected ")?;
    let marked = |prefix: &str| named(given, prefix);
    let given = match given {
        "map" => "a table".to_owned(),
        "sequence" => "a list".to_owned(),
        "null" | "unit value" => "nothing".to_owned(),
        _ => marked("integer ")
            .or_else(|| marked("floating point "))
            .map(|number| format!("the number {number}"))
            .or_else(|| marked("boolean ").map(str::to_owned))
            .or_else(|| given.strip_prefix("string ").map(|text| format!("the text {text}")))
            .unwrap_or_else(|| given.to_owned()),
    };
    let expected = match expected {
        "a string" => "a text in quotes",
        "a boolean" => "true or false",
        "a sequence" => "a list",
        "a map" => "a table",
        "IPv4 address" => "an IPv4 address in quotes",
        "u8" | "u16" | "u32" | "u64" | "usize" => "a whole number",
        _ if expected.starts_with("struct ") => "a table of keys",
        other => other,
    };
    Some(format!("{given} can't stand here: give {expected}"))
}

/// What is in backticks after a prefix.
fn named<'a>(message: &'a str, prefix: &str) -> Option<&'a str> {
    message.strip_prefix(prefix)?.strip_prefix('`')?.split_once('`').map(|(name, _)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_serde_says_is_said_in_plainer_words() {
        let cases = [
            (
                "unknown field `queus`, expected one of `network`, `queues`, `mac`",
                "there is no key \"queus\" here, is \"queues\" meant? (those that there are: network, queues, mac)",
            ),
            ("unknown field `From`, expected `from` or `to`", "there is no key \"From\" here, is \"from\" meant? (those"),
            ("unknown field `x`, expected `name`", "there is no key \"x\" here (those that there are: name)"),
            ("unknown field `x`, there are no fields", "there is no key \"x\" here (those that there are: none)"),
            (
                "invalid type: string \"x\", expected a whole number from 1 to 16",
                "the text \"x\" can't stand here: give a whole number from 1 to 16",
            ),
            ("invalid type: integer `2`, expected a string", "the number 2 can't stand here: give a text in quotes"),
            ("invalid type: map, expected a sequence", "a table can't stand here: give a list"),
            ("invalid type: boolean `true`, expected struct PortConfig\n", "true can't stand here: give a table of keys"),
            ("invalid value: integer `-1`, expected u32", "the number -1 can't stand here: give a whole number"),
            ("missing field `to`", "the key \"to\" is missing"),
            ("duplicate field `to`", "the key \"to\" is there twice"),
            ("invalid type: integer `3`, expected IPv4 address", "the number 3 can't stand here: give an IPv4 address in quotes"),
            ("invalid IPv4 address syntax", "this is no IPv4 address: write one as in"),
            ("17 is out of range", "17 is out of range"),
        ];
        for (message, expected) in cases {
            let text = plain(message);
            assert!(text.starts_with(expected), "{message:?} gave\n  {text}");
        }
    }
}
