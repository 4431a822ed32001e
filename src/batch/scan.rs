//! A quick look at a record, for its `id`: most bodies are read by this alone.
//!
//! It takes only what is valid JSON for sure. For everything else it says nothing, and `serde_json` reads the record, or
//! says what is wrong with it. Allocates nothing.

use std::ops::Range;

/// Levels that it follows below a member.
const LEVELS: u32 = u64::BITS;

/// What is kept of a record.
pub(super) struct Scanned {
    /// Where the value of the last `id` stands.
    pub(super) id: Option<Range<usize>>,
    /// Members with that name.
    pub(super) id_members: usize,
    /// Behind the record.
    pub(super) end: usize,
}

/// Looks at the object at a place of a body. `None`: it has to be read.
pub(super) fn record(body: &str, at: usize) -> Option<Scanned> {
    let mut scan = Scan { rest: &body.as_bytes()[at..] };
    let place = |scan: &Scan<'_>| body.len() - scan.rest.len();
    let (mut id, mut id_members) = (None, 0);
    scan.take(b'{')?;
    if scan.next()? == b'}' {
        scan.any()?;
        return Some(Scanned { id, id_members, end: place(&scan) });
    }
    loop {
        let name = scan.plain_name()?;
        let start = place(&scan);
        scan.value()?;
        if name == b"id" {
            id = Some(start..place(&scan));
            id_members += 1;
        }
        scan.next()?;
        match scan.any()? {
            b',' => {}
            b'}' => return Some(Scanned { id, id_members, end: place(&scan) }),
            _ => return None,
        }
    }
}

/// What is still to be looked at.
struct Scan<'a> {
    rest: &'a [u8],
}

impl<'a> Scan<'a> {
    /// Moves behind the next byte.
    fn any(&mut self) -> Option<u8> {
        let (first, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(*first)
    }

    /// Moves to the next byte that is not a blank.
    fn next(&mut self) -> Option<u8> {
        loop {
            let (first, rest) = self.rest.split_first()?;
            if *first > b' ' || !matches!(first, b' ' | b'\t' | b'\r' | b'\n') {
                return Some(*first);
            }
            self.rest = rest;
        }
    }

    /// Moves behind this byte, and the blanks before it.
    fn take(&mut self, wanted: u8) -> Option<()> {
        self.next()?;
        (self.any()? == wanted).then_some(())
    }

    /// Moves to the value of a member. Its name has no escapes: with some, it could be `id` all the same, or no text.
    fn plain_name(&mut self) -> Option<&'a [u8]> {
        self.take(b'"')?;
        let name = self.rest;
        self.plain();
        let name = &name[..name.len() - self.rest.len()];
        (self.any()? == b'"').then_some(())?;
        self.value_of_member()?;
        Some(name)
    }

    /// Moves from behind the name of a member to its value.
    fn value_of_member(&mut self) -> Option<()> {
        self.take(b':')?;
        self.next().map(|_first| ())
    }

    /// Moves behind a value.
    fn value(&mut self) -> Option<()> {
        // Whether each level is an object, the innermost in the last bit.
        let (mut objects, mut levels) = (0_u64, 0);
        loop {
            match self.any()? {
                b'"' => self.rest_of_string()?,
                first @ (b'-' | b'0'..=b'9') => self.rest_of_number(first)?,
                b't' => self.rest_of_literal(b"rue")?,
                b'f' => self.rest_of_literal(b"alse")?,
                b'n' => self.rest_of_literal(b"ull")?,
                bracket @ (b'[' | b'{') => {
                    let is_object = bracket == b'{';
                    if self.next()? == if is_object { b'}' } else { b']' } {
                        self.any()?;
                    } else if levels == LEVELS {
                        return None;
                    } else {
                        objects = objects << 1 | u64::from(is_object);
                        levels += 1;
                        if is_object {
                            self.name()?;
                        }
                        continue;
                    }
                }
                _ => return None,
            }
            loop {
                if levels == 0 {
                    return Some(());
                }
                self.next()?;
                match (self.any()?, objects & 1 == 1) {
                    (b',', true) => {
                        self.name()?;
                        break;
                    }
                    (b',', false) => {
                        self.next()?;
                        break;
                    }
                    (b'}', true) | (b']', false) => {
                        objects >>= 1;
                        levels -= 1;
                    }
                    _ => return None,
                }
            }
        }
    }

    /// Moves behind the name of a member, to its value.
    fn name(&mut self) -> Option<()> {
        self.take(b'"')?;
        self.rest_of_string()?;
        self.value_of_member()
    }

    fn rest_of_string(&mut self) -> Option<()> {
        loop {
            self.plain();
            match self.any()? {
                b'"' => return Some(()),
                b'\\' => self.rest_of_escape()?,
                _ => return None,
            }
        }
    }

    /// Moves to the end of a string, an escape, or a control character, which may not stand in it.
    fn plain(&mut self) {
        const EACH: u64 = u64::from_ne_bytes([1; 8]);
        const HIGH: u64 = u64::from_ne_bytes([0x80; 8]);
        // Eight at once: a byte that subtracts to below zero shows in its highest bit. The first one that shows is right.
        while let Some((eight, more)) = self.rest.split_first_chunk() {
            let eight = u64::from_le_bytes(*eight);
            let equals = |byte: u8| (eight ^ (EACH * u64::from(byte))).wrapping_sub(EACH);
            let controls = eight.wrapping_sub(EACH * u64::from(b' '));
            let shown = (equals(b'"') | equals(b'\\') | controls) & !eight & HIGH;
            if shown != 0 {
                self.rest = &self.rest[shown.trailing_zeros() as usize / 8..];
                return;
            }
            self.rest = more;
        }
        while let [first, rest @ ..] = self.rest
            && !matches!(first, b'"' | b'\\' | 0..b' ')
        {
            self.rest = rest;
        }
    }

    fn rest_of_escape(&mut self) -> Option<()> {
        match self.any()? {
            b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => Some(()),
            b'u' => {
                let (digits, rest) = self.rest.split_first_chunk::<4>()?;
                self.rest = rest;
                digits.iter().all(u8::is_ascii_hexdigit).then_some(())
            }
            _ => None,
        }
    }

    fn rest_of_number(&mut self, mut first: u8) -> Option<()> {
        if first == b'-' {
            first = self.any()?;
        }
        match first {
            b'0' => {}
            b'1'..=b'9' => self.digits(),
            _ => return None,
        }
        if let [b'.', rest @ ..] = self.rest {
            self.rest = rest;
            self.some_digits()?;
        }
        if let [b'e' | b'E', b'+' | b'-', rest @ ..] | [b'e' | b'E', rest @ ..] = self.rest {
            self.rest = rest;
            self.some_digits()?;
        }
        Some(())
    }

    fn digits(&mut self) {
        while let [b'0'..=b'9', rest @ ..] = self.rest {
            self.rest = rest;
        }
    }

    fn some_digits(&mut self) -> Option<()> {
        let before = self.rest.len();
        self.digits();
        (self.rest.len() < before).then_some(())
    }

    fn rest_of_literal(&mut self, wanted: &[u8]) -> Option<()> {
        self.rest = self.rest.strip_prefix(wanted)?;
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(bytes: &[u8]) -> usize {
        let mut scan = Scan { rest: bytes };
        scan.plain();
        bytes.len() - scan.rest.len()
    }

    #[test]
    fn the_first_byte_that_is_special_is_found_at_each_place() {
        for length in 0..20 {
            for byte in 0..=u8::MAX {
                for at in 0..length {
                    for around in [b'a', 0xc3, b'!', b'#'] {
                        let mut bytes = vec![around; length];
                        bytes[at] = byte;
                        let special = byte < b' ' || byte == b'"' || byte == b'\\';
                        assert_eq!(plain(&bytes), if special { at } else { length }, "{bytes:x?}");
                        // What comes behind does not matter.
                        bytes[at + 1..].fill(b'"');
                        assert_eq!(plain(&bytes), if special { at } else { at + 1 }, "{bytes:x?}");
                    }
                }
            }
        }
    }

    #[test]
    fn what_is_no_json_for_sure_is_not_taken() {
        let taken = |value: &str| record(&format!("{{\"a\":{value}}}"), 0).is_some();
        let deep = |levels: usize| "[".repeat(levels) + &"]".repeat(levels);
        for good in
            ["0", "-0", "10.5e+3", "1E9", r#""\u00e9\/""#, "[ ]", "{ }", r#"[{"b":[1, null]}, true]"#, &deep(65)]
        {
            assert!(taken(good), "{good}");
        }
        for bad in [
            "",
            "01",
            "-",
            "1.",
            ".1",
            "1e",
            "+1",
            "nul",
            "nulls",
            "tru",
            "\"",
            "\"\\x\"",
            "\"\\u00g0\"",
            "\"\n\"",
            "[1,]",
            "[,1]",
            "[1 2]",
            "{\"b\"}",
            "{\"b\":}",
            "{\"b\":1,}",
            "{b:1}",
            "[1}",
            "{\"b\":1]",
            "[",
            "{",
            "1}",
            &deep(66),
        ] {
            let whole = format!("{{\"a\":{bad}}}");
            let json = serde_json::from_str::<serde::de::IgnoredAny>(&whole).is_ok();
            assert!(json == bad.starts_with("[["), "{bad}");
            let behind = record(&whole, 0).is_none_or(|scanned| scanned.end < whole.len());
            assert!(behind, "{bad}");
        }
    }

    #[test]
    fn the_last_id_is_found_and_all_of_them_are_counted() {
        let body = r#"[ {"name" : "id", "id": 7 ,"x":{"id":1},"id" : "b\/" } ,{}]"#;
        let first = record(body, 2).expect("it is JSON");
        assert_eq!((first.id.map(|id| &body[id]), first.id_members), (Some(r#""b\/""#), 2));
        assert_eq!(&body[first.end..], " ,{}]");
        let none = record(body, first.end + 2).expect("it is JSON");
        assert_eq!((none.id, none.id_members, &body[none.end..]), (None, 0, "]"));
        assert!(record(r#"{"i\u0064":1}"#, 0).is_none());
    }
}
