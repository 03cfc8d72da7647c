//! Lists of numbers as bytes, little-endian. What comes with every token is copied whole in this way, not number by number.

use bytes::Bytes;

const BYTES: usize = 4;

/// What lists are of.
pub trait Number: Copy {
    /// Its bytes, least significant first.
    fn to_le(self) -> [u8; BYTES];
    /// The number of these bytes.
    fn from_le(bytes: [u8; BYTES]) -> Self;
}

impl Number for u32 {
    fn to_le(self) -> [u8; BYTES] {
        self.to_le_bytes()
    }

    fn from_le(bytes: [u8; BYTES]) -> Self {
        Self::from_le_bytes(bytes)
    }
}

impl Number for f32 {
    fn to_le(self) -> [u8; BYTES] {
        self.to_le_bytes()
    }

    fn from_le(bytes: [u8; BYTES]) -> Self {
        Self::from_le_bytes(bytes)
    }
}

/// So many bytes are no whole numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} bytes are no list of numbers of {BYTES} bytes")]
pub struct NotWhole(pub usize);

/// The bytes of a list.
pub fn pack<N: Number>(numbers: &[N]) -> Bytes {
    let mut bytes = vec![0; numbers.len() * BYTES];
    let (places, _) = bytes.as_chunks_mut::<BYTES>();
    for (place, number) in places.iter_mut().zip(numbers) {
        *place = number.to_le();
    }
    bytes.into()
}

/// The list of these bytes.
///
/// # Errors
/// They are no whole numbers.
pub fn unpack<N: Number>(bytes: &[u8]) -> Result<Vec<N>, NotWhole> {
    match bytes.as_chunks::<BYTES>() {
        (numbers, []) => Ok(numbers.iter().map(|number| N::from_le(*number)).collect()),
        _ => Err(NotWhole(bytes.len())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_come_back_as_they_were() {
        let (ids, logits) =
            ([0, 1, 0x0102_0304, u32::MAX], [0.0, -1.5, f32::NEG_INFINITY, f32::MIN_POSITIVE]);
        assert_eq!(unpack::<u32>(&pack(&ids)).unwrap(), ids);
        assert_eq!(unpack::<f32>(&pack(&logits)).unwrap(), logits);
        assert_eq!(pack(&[0x0102_0304_u32])[..], [4, 3, 2, 1]);
        assert_eq!(unpack::<u32>(&[]).unwrap(), [0; 0]);
        assert_eq!(unpack::<f32>(&[1; 7]), Err(NotWhole(7)));
    }
}
