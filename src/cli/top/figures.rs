//! Numbers as people read them: the same words as on the status page.

/// `1,234`, `12.3 M`, `–` where it is not known.
pub(super) fn count(number: Option<u64>) -> String {
    let Some(number) = number else {
        return "–".to_owned();
    };
    if number >= 10_000_000 {
        let (divisor, unit) = if number >= 1_000_000_000 {
            (100_000_000, "G")
        } else {
            (100_000, "M")
        };
        let tenths = number / divisor;
        return format!("{}.{} {unit}", tenths / 10, tenths % 10);
    }
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Events a second: `0`, `7.4`, `1,234`.
pub(super) fn rate(per_s: Option<f64>) -> String {
    match per_s {
        None => "–".to_owned(),
        Some(rate) if rate > 0.0 && rate < 9.95 => format!("{rate:.1}"),
        Some(rate) => grouped(rate),
    }
}

/// A length of time, given in seconds: `3.2 ms`, `41 s`, `2 h 5 min`.
pub(super) fn span(seconds: Option<f64>) -> String {
    let Some(seconds) = seconds else {
        return "–".to_owned();
    };
    match seconds {
        s if s <= 0.0 => "0 s".to_owned(),
        s if s < 0.009_95 => format!("{:.1} ms", s * 1000.0),
        s if s < 0.999_5 => format!("{:.0} ms", s * 1000.0),
        s if s < 9.95 => format!("{s:.1} s"),
        s if s < 100.0 => format!("{s:.0} s"),
        s if s < 3600.0 => format!("{:.0} min {:.0} s", (s / 60.0).floor(), (s % 60.0).floor()),
        s if s < 86_400.0 => {
            let minutes = (s % 3600.0 / 60.0).floor();
            format!("{:.0} h {minutes:.0} min", (s / 3600.0).floor())
        }
        s => {
            let hours = (s % 86_400.0 / 3600.0).floor();
            format!("{:.0} d {hours:.0} h", (s / 86_400.0).floor())
        }
    }
}

/// A number without its fraction, in groups of three.
fn grouped(number: f64) -> String {
    let text = format!("{:.0}", number.max(0.0));
    text.parse().map_or(text, |number| count(Some(number)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_as_on_the_page() {
        assert_eq!(count(None), "–");
        assert_eq!(count(Some(0)), "0");
        assert_eq!(count(Some(999)), "999");
        assert_eq!(count(Some(1_234_567)), "1,234,567");
        assert_eq!(count(Some(12_345_678)), "12.3 M");
        assert_eq!(count(Some(7_200_000_000)), "7.2 G");
        assert_eq!(rate(Some(0.0)), "0");
        assert_eq!(rate(Some(7.44)), "7.4");
        assert_eq!(rate(Some(1234.4)), "1,234");
        for (seconds, text) in [
            (0.0, "0 s"),
            (0.0032, "3.2 ms"),
            (0.0413, "41 ms"),
            (1.23, "1.2 s"),
            (41.3, "41 s"),
            (125.0, "2 min 5 s"),
            (3661.0, "1 h 1 min"),
            (190_000.0, "2 d 4 h"),
        ] {
            assert_eq!(span(Some(seconds)), text);
        }
        assert_eq!(span(None), "–");
    }
}
