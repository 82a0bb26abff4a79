//! Topic → topic by a pattern, as Kafka Connect's `RegexRouter` does it, which Debezium's event router has
//! for `route.topic.regex` and `route.topic.replacement`. Pure.
//!
//! The pattern is Java's. What means something else to the engine here, or cannot be had from one that never
//! backtracks, is refused at start: a topic must not come out differently from before, and no row may
//! take long.

use std::fmt;

use regex::bytes::{Captures, Regex, RegexBuilder};

/// What topics are rewritten by.
#[derive(Debug, Clone)]
pub struct Rewrite {
    pattern: String,
    replacement: String,
    /// The pattern, to fit the whole of a topic.
    whole: Regex,
    /// The same, to fit some part of it.
    part: Regex,
    parts: Vec<Part>,
}

/// A piece of the replacement.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    Group(usize),
}

impl PartialEq for Rewrite {
    fn eq(&self, other: &Self) -> bool {
        self.pattern == other.pattern && self.replacement == other.replacement
    }
}

impl Eq for Rewrite {}

impl fmt::Display for Rewrite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "regex={:?} replacement={:?}",
            self.pattern, self.replacement
        )
    }
}

impl Rewrite {
    /// What Debezium rewrites by unless told otherwise.
    pub const DEFAULT_REPLACEMENT: &str = "outbox.event.${routedByValue}";

    /// Checks a pattern alone.
    ///
    /// # Errors
    /// One sentence on what is wrong with it.
    pub fn check_pattern(pattern: &str) -> Result<(), String> {
        java_only(pattern)?;
        compile(pattern).map(drop)
    }

    /// Reads a pattern and its replacement.
    ///
    /// # Errors
    /// One sentence on what is wrong with them.
    pub fn parse(pattern: &str, replacement: &str) -> Result<Self, String> {
        java_only(pattern)?;
        let part = compile(pattern)?;
        let whole = compile(&format!(r"\A(?:{pattern})\z"))?;
        let parts = replacement_parts(replacement, &part)?;
        Ok(Self {
            pattern: pattern.to_owned(),
            replacement: replacement.to_owned(),
            whole,
            part,
            parts,
        })
    }

    /// `topic` rewritten, if the pattern fits the whole of it, else as it is. What is replaced is the first
    /// part that the pattern fits, which as a rule is the whole: `RegexRouter` asks for `matches` and then
    /// does `replaceFirst`.
    #[must_use]
    pub fn apply(&self, topic: &str) -> String {
        if !self.whole.is_match(topic.as_bytes()) {
            return topic.to_owned();
        }
        let Some(found) = self.part.captures(topic.as_bytes()) else {
            return topic.to_owned();
        };
        let Some(all) = found.get(0) else {
            return topic.to_owned();
        };
        let mut bytes = topic.as_bytes()[..all.start()].to_vec();
        self.expand(&found, &mut bytes);
        bytes.extend_from_slice(&topic.as_bytes()[all.end()..]);
        // half a character, from a pattern that cuts one: no legal topic, and the row is parked
        String::from_utf8_lossy(&bytes).into_owned()
    }

    fn expand(&self, found: &Captures<'_>, into: &mut Vec<u8>) {
        for part in &self.parts {
            match part {
                Part::Text(text) => into.extend_from_slice(text.as_bytes()),
                Part::Group(i) => {
                    into.extend_from_slice(found.get(*i).map_or(b"", |group| group.as_bytes()));
                }
            }
        }
    }
}

/// As Java reads it where no flag says otherwise: classes like `\w` and case are those of ASCII.
fn compile(pattern: &str) -> Result<Regex, String> {
    RegexBuilder::new(pattern)
        .unicode(false)
        .build()
        .map_err(|error| match error {
            regex::Error::CompiledTooBig(_) => "it is too large".to_owned(),
            // the last line of the message says what, those before draw where
            error => {
                let text = error.to_string();
                let last = text.lines().last().unwrap_or_default();
                let why = last.strip_prefix("error: ").unwrap_or(last);
                format!("it is no pattern that can be used here: {why}")
            }
        })
}

/// Finds what only Java's engine knows, or reads otherwise.
fn java_only(pattern: &str) -> Result<(), String> {
    let no = |what: &str| {
        Err(format!(
            "it has {what}, which only Java's engine knows: write it without, or give the topic by a column \
             of the table"
        ))
    };
    let mut chars = pattern.chars().peekable();
    let (mut class_depth, mut quantified) = (0_u32, false);
    while let Some(c) = chars.next() {
        let was_quantified = std::mem::take(&mut quantified);
        match c {
            '\\' => match chars.next() {
                Some('1'..='9' | 'k') => return no("a backreference"),
                Some('Q' | 'E') => return no("a quotation by \\Q"),
                Some(c @ ('v' | 'h' | 'R' | 'X' | 'G' | 'Z' | 'H' | 'V' | 'N' | '<' | '>')) => {
                    return no(&format!("`\\{c}`"));
                }
                Some('b') if chars.peek() == Some(&'{') => return no("`\\b{`"),
                _ => {}
            },
            '[' => {
                class_depth += 1;
                // a `]` that comes first is one to match, to this engine alone
                if chars.peek() == Some(&'^') {
                    chars.next();
                }
                if chars.peek() == Some(&']') {
                    return no("a class that begins with `]`");
                }
                if chars.peek() == Some(&':') {
                    return no("a class that begins with `:`");
                }
            }
            ']' => class_depth = class_depth.saturating_sub(1),
            // set operations that Java has not
            '-' | '~' if class_depth > 0 && chars.peek() == Some(&c) => {
                return no(&format!("`{c}{c}` in a class"));
            }
            _ if class_depth > 0 => {}
            '(' if chars.peek() == Some(&'?') => {
                chars.next();
                match chars.peek() {
                    Some('=' | '!') => return no("a lookahead"),
                    Some('>') => return no("an atomic group"),
                    Some('<') => {
                        chars.next();
                        if matches!(chars.peek(), Some('=' | '!')) {
                            return no("a lookbehind");
                        }
                    }
                    Some(':') => {}
                    _ => {
                        let flags = std::iter::from_fn(|| {
                            chars.next_if(|c| c.is_ascii_alphabetic() || *c == '-')
                        });
                        if let Some(flag) = flags.into_iter().find(|c| !"imsx-".contains(*c)) {
                            return no(&format!("the flag `{flag}`"));
                        }
                    }
                }
            }
            '*' | '+' | '?' | '}' => {
                match c {
                    '+' if was_quantified => return no("a possessive quantifier"),
                    '*' | '+' if was_quantified => {
                        return Err("a quantifier stands behind another".to_owned());
                    }
                    _ => {}
                }
                // `a??` and `a*?` are lazy, and end there
                quantified = !(c == '?' && was_quantified);
            }
            _ => {}
        }
    }
    Ok(())
}

/// Reads a replacement as Java's `Matcher.appendReplacement` does: `$1`, `${name}`, and `\` before what is
/// meant as it stands.
fn replacement_parts(replacement: &str, pattern: &Regex) -> Result<Vec<Part>, String> {
    let mut parts: Vec<Part> = Vec::new();
    let mut text = String::new();
    let mut chars = replacement.chars().peekable();
    while let Some(c) = chars.next() {
        let group = match c {
            '\\' => {
                let Some(next) = chars.next() else {
                    return Err("the replacement ends with a `\\`".to_owned());
                };
                text.push(next);
                continue;
            }
            '$' if chars.next_if_eq(&'{').is_some() => {
                let mut name = String::new();
                loop {
                    match chars.next() {
                        Some('}') => break,
                        Some(c) => name.push(c),
                        None => return Err("a `${` of the replacement has no closing `}`".into()),
                    }
                }
                let names = pattern.capture_names().enumerate();
                let mut named = names.filter(|(_, it)| *it == Some(name.as_str()));
                let Some((group, _)) = named.next() else {
                    return Err(format!(
                        "the pattern has no group `{name}`, which the replacement names"
                    ));
                };
                group
            }
            '$' => {
                let digit = |c: &char| c.to_digit(10).and_then(|d| usize::try_from(d).ok());
                let Some(mut group) = chars.peek().and_then(digit) else {
                    return Err("a `$` of the replacement has neither digit nor `{`".to_owned());
                };
                chars.next();
                if group >= pattern.captures_len() {
                    return Err(format!(
                        "the pattern has no group {group}, which the replacement names"
                    ));
                }
                // as many digits as there are groups for
                while let Some(next) = chars.peek().and_then(digit) {
                    let longer = group * 10 + next;
                    if longer >= pattern.captures_len() {
                        break;
                    }
                    group = longer;
                    chars.next();
                }
                group
            }
            c => {
                text.push(c);
                continue;
            }
        };
        if !text.is_empty() {
            parts.push(Part::Text(std::mem::take(&mut text)));
        }
        parts.push(Part::Group(group));
    }
    if !text.is_empty() {
        parts.push(Part::Text(text));
    }
    Ok(parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rewritten(pattern: &str, replacement: &str, topic: &str) -> String {
        Rewrite::parse(pattern, replacement).unwrap().apply(topic)
    }

    #[test]
    fn topics_are_rewritten_as_kafka_connect_does_it() {
        for (pattern, replacement, topic, expected) in [
            (
                "(?<routedByValue>.*)",
                Rewrite::DEFAULT_REPLACEMENT,
                "Order",
                "outbox.event.Order",
            ),
            ("Order", "orders", "Order", "orders"),
            // the whole must fit
            ("Order", "orders", "OrderLine", "OrderLine"),
            ("(.*)-(.*)", "$2.$1", "a-b-c", "c.a-b"),
            // java takes as many digits as there are groups for
            ("(.)(.)", "$10", "ab", "a0"),
            ("(.)(.)", r"\$1$2", "ab", "$1b"),
            ("(a)|(b)", "<$2>", "a", "<>"),
            // it asks for the whole, then replaces the first part
            ("a|ab", "x", "ab", "xb"),
            (r"\w+", "t", "é", "é"),
            ("(?i)ORDER", "t", "oRder", "t"),
            ("a*?b??", "t", "ab", "tab"),
            (r"[\w.]+", "t", "a.b", "t"),
        ] {
            assert_eq!(
                rewritten(pattern, replacement, topic),
                expected,
                "{pattern} {topic}"
            );
        }
    }

    #[test]
    fn patterns_that_only_java_knows_are_refused() {
        for (pattern, why) in [
            ("(?=a)b", "lookahead"),
            ("(?!a)b", "lookahead"),
            ("(?<=a)b", "lookbehind"),
            ("(?<!a)b", "lookbehind"),
            (r"(a)\1", "backreference"),
            (r"(?<n>a)\k<n>", "backreference"),
            ("a*+", "possessive"),
            ("a++", "possessive"),
            ("a?+", "possessive"),
            ("a{2}+", "possessive"),
            ("(?>a)", "atomic"),
            ("(?U)a", "flag `U`"),
            (r"\Qa\E", "quotation"),
            ("[]a]", "begins with `]`"),
            ("[a--b]", "`--`"),
            (r"\<a", r"`\<`"),
            ("a**", "quantifier"),
            (r"\p{Lu}", "no pattern"),
            ("(a", "no pattern"),
        ] {
            let error = Rewrite::check_pattern(pattern).unwrap_err();
            assert!(error.contains(why), "{pattern}: {error}");
        }
        // what looks alike and is not
        for pattern in [
            "[*+]", r"a\*+", "(?:a)+", "(?<n>a)", "(?i:a)", "a+?", "[a-z]",
        ] {
            assert_eq!(Rewrite::check_pattern(pattern), Ok(()), "{pattern}");
        }
    }

    #[test]
    fn replacements_that_name_no_group_are_refused() {
        for (replacement, why) in [
            ("$2", "no group 2"),
            ("${n}", "no group `n`"),
            ("${n", "closing"),
            ("$x", "neither"),
            ("a\\", "ends"),
        ] {
            let error = Rewrite::parse("(a)", replacement).unwrap_err();
            assert!(error.contains(why), "{replacement}: {error}");
        }
    }
}
