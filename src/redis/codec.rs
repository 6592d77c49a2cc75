//! `MessagePack`, as scripts take, return and store it: one value instead of many, each of which the library would parse and
//! allocate.

use rmp::{Marker, decode, encode};

/// A growing `MessagePack` array. Writing to memory does not fail, so results are ignored.
#[derive(Debug, Default)]
pub(super) struct Array {
    length: u32,
    items: Vec<u8>,
}

impl Array {
    pub(super) fn push(&mut self, number: impl Into<u64>) -> &mut Self {
        match number.into() {
            // Most numbers, which are a byte with their own value; the library takes five times as long for it.
            #[expect(clippy::cast_possible_truncation, reason = "it is below 128")]
            small @ 0..128 => self.items.push(small as u8),
            number => {
                let _ = encode::write_uint(&mut self.items, number);
            }
        }
        self.grown()
    }

    pub(super) fn push_signed(&mut self, number: i64) -> &mut Self {
        let _ = encode::write_sint(&mut self.items, number);
        self.grown()
    }

    pub(super) fn push_text(&mut self, text: &str) -> &mut Self {
        let _ = encode::write_str(&mut self.items, text);
        self.grown()
    }

    pub(super) fn push_optional(&mut self, number: Option<u64>) -> &mut Self {
        if let Some(number) = number {
            return self.push(number);
        }
        let _ = encode::write_nil(&mut self.items);
        self.grown()
    }

    fn grown(&mut self) -> &mut Self {
        self.length = self.length.saturating_add(1);
        self
    }

    pub(super) fn followed_by(&self, other: &Self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.items.len() + other.items.len() + size_of::<u64>());
        let length = self.length.saturating_add(other.length);
        let _ = encode::write_array_len(&mut bytes, length);
        bytes.extend_from_slice(&self.items);
        bytes.extend_from_slice(&other.items);
        bytes
    }
}

/// The rest of a sequence of items.
#[derive(Debug)]
pub(super) struct Items<'a>(&'a [u8]);

impl<'a> Items<'a> {
    pub(super) fn new(packed: &'a [u8]) -> Self {
        Self(packed)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The length of an array that starts here.
    pub(super) fn length(&mut self) -> Option<u32> {
        decode::read_array_len(&mut self.0).ok()
    }

    pub(super) fn is_text(&self) -> bool {
        let marker = self.0.first().map(|byte| Marker::from_u8(*byte));
        matches!(
            marker,
            Some(Marker::FixStr(_) | Marker::Str8 | Marker::Str16 | Marker::Str32)
        )
    }

    pub(super) fn number(&mut self) -> Option<u64> {
        decode::read_int(&mut self.0).ok()
    }

    pub(super) fn signed(&mut self) -> Option<i64> {
        decode::read_int(&mut self.0).ok()
    }

    /// Skips a nil; false if the next item is something else.
    pub(super) fn skip_nil(&mut self) -> bool {
        decode::read_nil(&mut self.0.get(..1).unwrap_or_default()).is_ok()
            && self.0.split_off_first().is_some()
    }

    /// An index, which scripts count from 1.
    pub(super) fn position(&mut self) -> Option<usize> {
        usize::try_from(self.number()?).ok()?.checked_sub(1)
    }

    pub(super) fn text(&mut self) -> Option<&'a str> {
        let (text, rest) = decode::read_str_from_slice(self.0).ok()?;
        self.0 = rest;
        Some(text)
    }
}

/// Lengths are those of lists in memory.
pub(super) fn size(length: usize) -> u64 {
    u64::try_from(length).unwrap_or(u64::MAX)
}
