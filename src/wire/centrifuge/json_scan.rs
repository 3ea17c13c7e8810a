//! JSON reader: one pass over the text, no tree, no allocation unless a string holds escapes.
//!
//! In: the text of a client's message (`command`) or of a payload (`json::check`). Out: values, raw slices of values,
//! and where the text breaks RFC 8259.
//!
//! Invariants: `at` never passes the end of `text` and never goes back; foreign values are walked with a bit stack of
//! [`DEPTH_MAX`] bits instead of recursion; raw slices are complete, valid JSON values.

use alloc::borrow::Cow;

use super::command::CommandError;
use super::fields::ReadFields;
use super::json::{DEPTH_MAX, JsonErrorKind};
use super::json_string::{plain_len, unescape};

/// A place in a JSON text.
pub(super) struct Scan<'a> {
    text: &'a [u8],
    /// Index of the next byte.
    pub(super) at: usize,
    /// Whether `\n` ends the text (commands) instead of being whitespace (payloads).
    newline_ends: bool,
    /// Whether `\n` or `\r` stood between tokens so far.
    pub(super) newline_seen: bool,
    /// Whether no field of the current object was read yet.
    first: bool,
}

const _: () = assert!(DEPTH_MAX == u128::BITS, "the stack of open containers is one u128");

impl<'a> Scan<'a> {
    /// Reads a text in which newlines are whitespace.
    pub(super) fn text(text: &'a [u8]) -> Self {
        Scan { text, at: 0, newline_ends: false, newline_seen: false, first: true }
    }

    /// Reads the first line of `text`.
    pub(super) fn line(text: &'a [u8]) -> Self {
        Scan { text, at: 0, newline_ends: true, newline_seen: false, first: true }
    }

    /// What is wrong when the byte here is none of those expected.
    #[cold]
    fn unexpected(&self) -> JsonErrorKind {
        if self.at < self.text.len() { JsonErrorKind::Unexpected } else { JsonErrorKind::End }
    }

    #[inline]
    pub(super) fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    /// Skips insignificant whitespace (RFC 8259 §2).
    #[inline]
    pub(super) fn whitespace(&mut self) {
        // Compact texts have none: one comparison.
        if self.peek().is_some_and(|byte| byte <= b' ') {
            self.whitespace_run();
        }
    }

    fn whitespace_run(&mut self) {
        while let Some(byte) = self.peek() {
            match byte {
                b' ' | b'\t' => {}
                b'\r' => self.newline_seen = true,
                b'\n' if !self.newline_ends => self.newline_seen = true,
                _ => break,
            }
            self.at += 1;
        }
    }

    #[inline]
    fn expect(&mut self, byte: u8) -> Result<(), JsonErrorKind> {
        if self.peek() == Some(byte) {
            self.at += 1;
            Ok(())
        } else {
            Err(self.unexpected())
        }
    }

    /// Takes `word` if it stands here.
    fn literal(&mut self, word: &[u8]) -> Result<(), JsonErrorKind> {
        if self.text[self.at..].starts_with(word) {
            self.at += word.len();
            Ok(())
        } else {
            Err(self.unexpected())
        }
    }

    /// Takes a string, from its opening quote to behind its closing one. Returns whether it has escapes.
    #[inline]
    fn quoted(&mut self) -> Result<bool, JsonErrorKind> {
        self.expect(b'"')?;
        self.at += plain_len(&self.text[self.at..]);
        if self.peek() == Some(b'"') {
            self.at += 1;
            return Ok(false);
        }
        self.quoted_rest()?;
        Ok(true)
    }

    /// Takes the rest of a string, from its first escape to behind its closing quote.
    fn quoted_rest(&mut self) -> Result<(), JsonErrorKind> {
        loop {
            match self.peek() {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(());
                }
                Some(b'\\') => self.escape()?,
                Some(_) => return Err(JsonErrorKind::Control),
                None => return Err(JsonErrorKind::End),
            }
            self.at += plain_len(&self.text[self.at..]);
        }
    }

    /// Takes a string; returns what stands between the quotes, and whether it has escapes.
    #[inline]
    fn raw_string(&mut self) -> Result<(&'a [u8], bool), JsonErrorKind> {
        let start = self.at + 1;
        let escaped = self.quoted()?;
        Ok((&self.text[start..self.at - 1], escaped))
    }

    /// Checks one escape, from its backslash (RFC 8259 §7).
    fn escape(&mut self) -> Result<(), JsonErrorKind> {
        let rest = &self.text[self.at + 1..];
        let len = match rest.first() {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => 2,
            Some(b'u') if rest.get(1..5).is_some_and(|hex| hex.iter().all(u8::is_ascii_hexdigit)) => 6,
            _ => return Err(JsonErrorKind::Escape),
        };
        self.at += len;
        Ok(())
    }

    /// Takes a number (RFC 8259 §6); its value is not looked at.
    fn number(&mut self) -> Result<(), JsonErrorKind> {
        if self.peek() == Some(b'-') {
            self.at += 1;
        }
        if self.peek() == Some(b'0') {
            self.at += 1;
        } else {
            self.digits()?;
        }
        if self.peek() == Some(b'.') {
            self.at += 1;
            self.digits()?;
        }
        if matches!(self.peek(), Some(b'e' | b'E')) {
            self.at += 1;
            if matches!(self.peek(), Some(b'+' | b'-')) {
                self.at += 1;
            }
            self.digits()?;
        }
        Ok(())
    }

    fn digits(&mut self) -> Result<(), JsonErrorKind> {
        let start = self.at;
        while self.peek().is_some_and(|byte| byte.is_ascii_digit()) {
            self.at += 1;
        }
        if self.at == start { Err(JsonErrorKind::Number) } else { Ok(()) }
    }

    /// Takes a key and its colon; nobody wants to know the key.
    #[inline]
    fn skip_key(&mut self) -> Result<(), JsonErrorKind> {
        self.whitespace();
        self.quoted()?;
        self.whitespace();
        self.expect(b':')
    }

    /// Takes a key and its colon.
    #[inline]
    fn key(&mut self) -> Result<(&'a [u8], bool), JsonErrorKind> {
        self.whitespace();
        let key = self.raw_string()?;
        self.whitespace();
        self.expect(b':')?;
        Ok(key)
    }

    /// Takes one value of any kind and checks all of it.
    pub(super) fn value(&mut self) -> Result<(), JsonErrorKind> {
        // One bit per open container, the innermost lowest: 1 is an object, 0 an array.
        let mut open: u128 = 0;
        let mut depth: u32 = 0;
        loop {
            self.whitespace();
            match self.peek() {
                Some(b'"') => {
                    self.quoted()?;
                }
                Some(bracket @ (b'{' | b'[')) => {
                    if depth == DEPTH_MAX {
                        return Err(JsonErrorKind::TooDeep);
                    }
                    self.at += 1;
                    self.whitespace();
                    // `{` + 2 is `}`, `[` + 2 is `]`.
                    if self.peek() == Some(bracket + 2) {
                        self.at += 1;
                    } else {
                        depth += 1;
                        open = open << 1 | u128::from(bracket == b'{');
                        if bracket == b'{' {
                            self.skip_key()?;
                        }
                        continue;
                    }
                }
                Some(b'-' | b'0'..=b'9') => self.number()?,
                Some(b't') => self.literal(b"true")?,
                Some(b'f') => self.literal(b"false")?,
                Some(b'n') => self.literal(b"null")?,
                _ => return Err(self.unexpected()),
            }
            // A value has ended: close containers until one goes on.
            loop {
                if depth == 0 {
                    return Ok(());
                }
                self.whitespace();
                let object = open & 1 == 1;
                match self.peek() {
                    Some(b',') => {
                        self.at += 1;
                        if object {
                            self.skip_key()?;
                        }
                        break;
                    }
                    Some(b'}') if object => {}
                    Some(b']') if !object => {}
                    _ => return Err(self.unexpected()),
                }
                self.at += 1;
                open >>= 1;
                depth -= 1;
            }
        }
    }

    /// Goes to a value; takes it and returns true if it is `null`.
    #[inline]
    fn null(&mut self) -> Result<bool, JsonErrorKind> {
        self.whitespace();
        if self.peek() == Some(b'n') {
            self.literal(b"null")?;
            return Ok(true);
        }
        Ok(false)
    }

    /// Takes an integer without fraction or exponent.
    fn integer(&mut self) -> Result<u64, CommandError> {
        let start = self.at;
        let mut value: u64 = 0;
        while let Some(digit @ b'0'..=b'9') = self.peek() {
            value = value
                .checked_mul(10)
                .and_then(|value| value.checked_add(u64::from(digit - b'0')))
                .ok_or(CommandError::Number)?;
            self.at += 1;
        }
        let len = self.at - start;
        if len == 0 && self.peek() != Some(b'-') {
            return Err(CommandError::Malformed);
        }
        let leading_zero = len > 1 && self.text[start] == b'0';
        if len == 0 || leading_zero || matches!(self.peek(), Some(b'.' | b'e' | b'E')) {
            return Err(CommandError::Number);
        }
        Ok(value)
    }
}

impl<'a> ReadFields<'a> for Scan<'a> {
    #[inline]
    fn next_field(&mut self, number_of: impl Fn(&[u8]) -> u32) -> Result<Option<u32>, CommandError> {
        self.whitespace();
        match self.peek() {
            Some(b'}') => {
                self.at += 1;
                self.first = false;
                return Ok(None);
            }
            Some(b',') if !self.first => self.at += 1,
            Some(_) if self.first => self.first = false,
            _ => return Err(CommandError::Malformed),
        }
        let (key, escaped) = self.key()?;
        let number = if escaped { number_of(unescape(key)?.as_bytes()) } else { number_of(key) };
        Ok(Some(number))
    }

    fn skip(&mut self) -> Result<(), CommandError> {
        Ok(self.value()?)
    }

    fn present(&mut self) -> Result<bool, CommandError> {
        if self.null()? {
            return Ok(false);
        }
        self.skip()?;
        Ok(true)
    }

    fn string(&mut self) -> Result<Cow<'a, str>, CommandError> {
        if self.null()? {
            return Ok(Cow::Borrowed(""));
        }
        let (raw, escaped) = self.raw_string()?;
        if escaped {
            return Ok(Cow::Owned(unescape(raw)?));
        }
        core::str::from_utf8(raw).map(Cow::Borrowed).map_err(|_| CommandError::Utf8)
    }

    fn data(&mut self) -> Result<&'a [u8], CommandError> {
        self.whitespace();
        let start = self.at;
        self.value()?;
        Ok(&self.text[start..self.at])
    }

    fn boolean(&mut self) -> Result<bool, CommandError> {
        self.whitespace();
        match self.peek() {
            Some(b't') => self.literal(b"true").map(|()| true),
            Some(b'f') => self.literal(b"false").map(|()| false),
            _ => self.literal(b"null").map(|()| false),
        }
        .map_err(CommandError::from)
    }

    fn unsigned(&mut self) -> Result<u64, CommandError> {
        if self.null()? {
            return Ok(0);
        }
        self.integer()
    }

    fn signed(&mut self) -> Result<i64, CommandError> {
        if self.null()? {
            return Ok(0);
        }
        let negative = self.peek() == Some(b'-');
        self.at += usize::from(negative);
        let value = self.integer()?;
        if negative {
            0_i64.checked_sub_unsigned(value).ok_or(CommandError::Number)
        } else {
            i64::try_from(value).map_err(|_| CommandError::Number)
        }
    }

    #[inline]
    fn message<T>(
        &mut self,
        read: impl FnOnce(&mut Self) -> Result<T, CommandError>,
    ) -> Result<Option<T>, CommandError> {
        if self.null()? {
            return Ok(None);
        }
        self.expect(b'{')?;
        self.first = true;
        // `read` leaves `first` false: the enclosing object has had at least the field that holds this one.
        read(self).map(Some)
    }

    fn entries(
        &mut self,
        mut each: impl FnMut(Cow<'a, str>, &mut Self) -> Result<(), CommandError>,
    ) -> Result<(), CommandError> {
        if self.null()? {
            return Ok(());
        }
        self.expect(b'{')?;
        self.whitespace();
        if self.peek() == Some(b'}') {
            self.at += 1;
            return Ok(());
        }
        loop {
            self.whitespace();
            let key = self.string_key()?;
            each(key, self)?;
            self.whitespace();
            match self.peek() {
                Some(b',') => self.at += 1,
                Some(b'}') => break,
                _ => return Err(CommandError::Malformed),
            }
        }
        self.at += 1;
        Ok(())
    }
}

impl<'a> Scan<'a> {
    fn string_key(&mut self) -> Result<Cow<'a, str>, CommandError> {
        let (raw, escaped) = self.key()?;
        if escaped {
            return Ok(Cow::Owned(unescape(raw)?));
        }
        core::str::from_utf8(raw).map(Cow::Borrowed).map_err(|_| CommandError::Utf8)
    }
}
