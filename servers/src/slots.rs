//! The slots of Redis Cluster.

/// How many slots a cluster has.
pub const SLOTS: u16 = 16_384;

/// The slot of a key: the CRC16 of its hash tag, or of the whole key if it has none.
pub fn key_slot(key: &str) -> u16 {
    crc16(hash_tag(key).as_bytes()) % SLOTS
}

/// What stands between the first `{` and the next `}`, unless that is empty.
fn hash_tag(key: &str) -> &str {
    let tag = key
        .split_once('{')
        .and_then(|(_, rest)| rest.split_once('}'));
    match tag {
        Some((tag, _)) if !tag.is_empty() => tag,
        _ => key,
    }
}

/// CRC-16/XMODEM.
fn crc16(bytes: &[u8]) -> u16 {
    const POLYNOMIAL: u16 = 0x1021;
    bytes.iter().fold(0, |crc, byte| {
        (0..8).fold(crc ^ (u16::from(*byte) << 8), |crc, _| {
            let carry = crc & 0x8000 != 0;
            (crc << 1) ^ if carry { POLYNOMIAL } else { 0 }
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_that_of_the_specification() {
        assert_eq!(crc16(b"123456789"), 0x31C3);
        assert_eq!(key_slot("123456789"), 0x31C3 % SLOTS);
    }

    #[test]
    fn only_the_first_hash_tag_is_hashed() {
        assert_eq!(key_slot("tm:{a7}:counter"), key_slot("a7"));
        assert_eq!(key_slot("{a7}{b8}"), key_slot("a7"));
        assert_eq!(key_slot("x}{a7}"), key_slot("a7"));
        assert_eq!(key_slot("{{a7}}"), key_slot("{a7"));
    }

    #[test]
    fn a_key_without_a_complete_hash_tag_is_hashed_whole() {
        // Without a tag of their own, so that they are hashed whole as well.
        for key in ["{}{a7}", "{a7", "}a7{"] {
            assert_eq!(key_slot(key), crc16(key.as_bytes()) % SLOTS);
        }
    }
}
