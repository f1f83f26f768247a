//! Heartbeats that RustDDS cannot be told to send.

use crate::ros::presence::Guid;

/// Header, INFO_DST and HEARTBEAT.
pub(super) const HEARTBEAT_LEN: usize = 20 + 16 + 32;

/// RTPS 2.3, 8.3.7.5 and 9.4.5.6: `writer` tells `reader` that it has the messages from 1 to `last` (none, if that is 0), and wants
/// an answer unless it had one with that `count` or a higher one.
pub(super) fn heartbeat(writer: Guid, reader: Guid, last: i64, count: i32) -> [u8; HEARTBEAT_LEN] {
    let [writer_prefix, reader_prefix] = [&writer[..12], &reader[..12]];
    let [writer_id, reader_id] = [&writer[12..], &reader[12..]];
    let parts: [&[u8]; 11] = [
        b"RTPS\x02\x03",
        // The vendor, as every identity of its participants starts.
        &writer[..2],
        writer_prefix,
        // INFO_DST, little endian, 12 bytes.
        &[0x0e, 0x01, 12, 0],
        reader_prefix,
        // HEARTBEAT, little endian and not final, 28 bytes.
        &[0x07, 0x01, 28, 0],
        reader_id,
        writer_id,
        &halves(1),
        &halves(last.cast_unsigned()),
        &count.to_le_bytes(),
    ];
    let mut datagram = [0; HEARTBEAT_LEN];
    datagram.iter_mut().zip(parts.into_iter().flatten()).for_each(|(to, from)| *to = *from);
    datagram
}

/// A sequence number or time: high half, then low half, each little endian.
pub(super) fn halves(number: u64) -> [u8; 8] {
    number.rotate_left(32).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_heartbeat_is_the_writers_of_its_messages_to_the_reader() {
        let mut writer = [0x11; 16];
        writer[..2].copy_from_slice(&[0x01, 0x0f]);
        writer[12..].copy_from_slice(&[0, 0, 2, 3]);
        let mut reader = [0x22; 16];
        reader[12..].copy_from_slice(&[0, 0, 8, 4]);
        let expected = |last: &str, count: &str| {
            format!(
                "52545053 0203 010f 010f11111111111111111111 \
                0e010c00 222222222222222222222222 \
                07011c00 00000804 00000203 0000000001000000 {last} {count}"
            )
            .replace(' ', "")
        };
        let hex = |last, count| -> String {
            heartbeat(writer, reader, last, count).iter().map(|byte| format!("{byte:02x}")).collect()
        };
        assert_eq!(hex(1, 1), expected("0000000001000000", "01000000"));
        assert_eq!(hex(0, 0), expected("0000000000000000", "00000000"));
        assert_eq!(hex(0x2_0000_0003, 0x0102_0304), expected("0200000003000000", "04030201"));
    }
}
