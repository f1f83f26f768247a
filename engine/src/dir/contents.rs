//! What a mapped file holds, checked piece by piece: in any order, by whoever is about to read a piece, each piece once.
//!
//! The file's hash is BLAKE3, a tree over pieces of the file, so that threads share the work and what was just hashed is in their cache for the reading.

use std::{ops::Range, sync::OnceLock};

use blake3::{
    Hash, Hasher,
    hazmat::{
        ChainingValue, HasherExt as _, Mode, left_subtree_len, merge_subtrees_non_root, merge_subtrees_root,
    },
};
use safetensors::Dtype;

use super::finite;

/// Half of a small second-level cache; a power of two, so that every piece is a whole subtree of the hash.
const PIECE_BYTES: usize = 128 << 10;

/// The pieces of one file.
#[derive(Debug)]
pub(super) struct Contents {
    /// In the order of the file.
    tensors: Vec<Placed>,
    pieces: Vec<OnceLock<Piece>>,
}

/// Where a tensor lies in the file.
#[derive(Debug)]
pub(super) struct Placed {
    pub name: String,
    pub dtype: Dtype,
    pub range: Range<usize>,
}

/// What was found in a piece.
#[derive(Debug)]
struct Piece {
    value: ChainingValue,
    /// The first tensor with a value that begins here and is not finite, as an index.
    broken: Option<usize>,
}

impl Contents {
    pub(super) fn new(file_len: usize, mut tensors: Vec<Placed>) -> Self {
        tensors.sort_unstable_by_key(|tensor| tensor.range.start);
        let pieces = (0..file_len.div_ceil(PIECE_BYTES)).map(|_| OnceLock::new()).collect();
        Self { tensors, pieces }
    }

    /// Looks at every piece that bytes `range` of `file` (the whole file) lie in, and that nobody has looked at. Whoever comes while another
    /// thread is looking waits for it.
    pub(super) fn look_at(&self, file: &[u8], range: Range<usize>) {
        let pieces = range.start / PIECE_BYTES..range.end.div_ceil(PIECE_BYTES);
        for (idx, piece) in self.pieces.iter().enumerate().take(pieces.end).skip(pieces.start) {
            piece.get_or_init(|| self.piece(file, idx));
        }
    }

    /// The hash of `file` and the first tensor that holds NaN or infinity. Looks at what nobody has looked at and then calls `done` with it.
    pub(super) fn finish(&self, file: &[u8], done: impl Fn(&[u8])) -> (Hash, Option<&str>) {
        for (idx, piece) in self.pieces.iter().enumerate() {
            piece.get_or_init(|| {
                let found = self.piece(file, idx);
                done(&file[bytes_of(file.len(), idx)]);
                found
            });
        }
        let broken = self.pieces.iter().find_map(|piece| piece.get()?.broken);
        (self.root(file), broken.map(|idx| self.tensors[idx].name.as_str()))
    }

    fn piece(&self, file: &[u8], idx: usize) -> Piece {
        let range = bytes_of(file.len(), idx);
        let mut hasher = Hasher::new();
        hasher.set_input_offset(range.start as u64).update(&file[range.clone()]);
        Piece { value: hasher.finalize_non_root(), broken: self.first_broken(file, &range) }
    }

    /// Of the tensors with elements that begin in `range`.
    fn first_broken(&self, file: &[u8], range: &Range<usize>) -> Option<usize> {
        let first = self.tensors.partition_point(|tensor| tensor.range.end <= range.start);
        let here = self.tensors[first..].iter().take_while(|tensor| tensor.range.start < range.end);
        let all_finite = |tensor: &Placed| {
            let element_bytes = tensor.dtype.bitsize() / 8;
            // An element that two pieces share is looked at where it begins.
            let at = |place: usize| {
                let from_start = place.clamp(tensor.range.start, tensor.range.end) - tensor.range.start;
                tensor.range.start + from_start.next_multiple_of(element_bytes.max(1))
            };
            finite::all(tensor.dtype, &file[at(range.start)..at(range.end).min(tensor.range.end)])
        };
        here.enumerate().find(|(_, tensor)| !all_finite(tensor)).map(|(idx, _)| first + idx)
    }

    /// Every piece has been looked at.
    fn root(&self, file: &[u8]) -> Hash {
        // A root of one piece is another value than the piece within a larger file.
        if file.len() <= PIECE_BYTES {
            return blake3::hash(file);
        }
        let left = left_len(file.len());
        merge_subtrees_root(&self.subtree(0..left), &self.subtree(left..file.len()), Mode::Hash)
    }

    /// The chaining value of bytes `range`, which are a subtree (BLAKE3, section 2.1).
    fn subtree(&self, range: Range<usize>) -> ChainingValue {
        if range.len() <= PIECE_BYTES {
            let piece = self.pieces[range.start / PIECE_BYTES].get();
            return piece.map_or([0; 32], |piece| piece.value);
        }
        let middle = range.start + left_len(range.len());
        merge_subtrees_non_root(
            &self.subtree(range.start..middle),
            &self.subtree(middle..range.end),
            Mode::Hash,
        )
    }
}

/// The piece's part of the file.
fn bytes_of(file_len: usize, idx: usize) -> Range<usize> {
    idx * PIECE_BYTES..file_len.min((idx + 1) * PIECE_BYTES)
}

/// Bytes of the left child of a subtree of `len` bytes, which is more than a piece: a multiple of one.
fn left_len(len: usize) -> usize {
    usize::try_from(left_subtree_len(len as u64)).unwrap_or(len)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file_of(len: usize) -> Vec<u8> {
        (0..len).map(|i| (i * 31 + i / 977) as u8).collect()
    }

    #[test]
    fn the_hash_is_blake3s_however_the_pieces_are_visited() {
        for len in [
            0,
            1,
            1024,
            PIECE_BYTES - 1,
            PIECE_BYTES,
            PIECE_BYTES + 1,
            2 * PIECE_BYTES,
            3 * PIECE_BYTES + 1025,
            11 * PIECE_BYTES - 7,
        ] {
            let file = file_of(len);
            for visits in [vec![], vec![0..len, 0..len], vec![len / 2..len / 2 + 1, 0..len.min(3)]] {
                let contents = Contents::new(len, Vec::new());
                visits
                    .into_iter()
                    .filter(|range| range.end <= len)
                    .for_each(|range| contents.look_at(&file, range));
                assert_eq!(contents.finish(&file, |_| ()).0, blake3::hash(&file), "{len} bytes");
            }
        }
    }

    #[test]
    fn several_threads_share_the_pieces() {
        let file = file_of(9 * PIECE_BYTES + 5);
        let contents = Contents::new(file.len(), Vec::new());
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let (contents, file) = (&contents, &file);
                scope.spawn(move || {
                    for step in 0..file.len() / 1000 {
                        let at = (step * 7919 + thread * 104_729) % (file.len() - 1000);
                        contents.look_at(file, at..at + 1000);
                    }
                });
            }
        });
        assert_eq!(contents.finish(&file, |_| ()).0, blake3::hash(&file));
    }

    #[test]
    fn what_was_looked_at_already_is_not_given_back_again() {
        let file = file_of(4 * PIECE_BYTES);
        let contents = Contents::new(file.len(), Vec::new());
        contents.look_at(&file, PIECE_BYTES..PIECE_BYTES + 1);
        let given_back = std::cell::RefCell::new(Vec::new());
        contents.finish(&file, |bytes| {
            given_back.borrow_mut().push(bytes.as_ptr().addr() - file.as_ptr().addr())
        });
        assert_eq!(given_back.into_inner(), [0, 2 * PIECE_BYTES, 3 * PIECE_BYTES]);
    }

    #[test]
    fn a_value_that_is_not_finite_is_found_wherever_it_lies_and_its_tensor_named() {
        // F32 at a place that is no multiple of 4, so that one element lies in two pieces.
        let (start, len) = (10, 3 * PIECE_BYTES);
        let end = start + (len - start) / 4 * 4;
        let crossing = start + (PIECE_BYTES - start) / 4 * 4;
        assert!(crossing < PIECE_BYTES && crossing + 4 > PIECE_BYTES);
        for at in [start, start + 4, crossing, crossing + 4, end - 4] {
            let mut file = vec![0; len];
            file[at..at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
            let tensors = vec![
                Placed { name: "late".into(), dtype: Dtype::F32, range: start..end },
                Placed { name: "codes".into(), dtype: Dtype::U8, range: 0..start },
            ];
            let contents = Contents::new(len, tensors);
            contents.look_at(&file, at..at + 1);
            assert_eq!(contents.finish(&file, |_| ()).1, Some("late"), "at {at}");
        }
    }

    #[test]
    fn bytes_before_and_after_a_tensor_do_not_count_as_its_values() {
        let mut file = vec![0xff; 2 * PIECE_BYTES];
        let range = PIECE_BYTES - 8..PIECE_BYTES + 8;
        file[range.clone()].fill(0);
        let contents = Contents::new(file.len(), vec![Placed { name: "t".into(), dtype: Dtype::F32, range }]);
        assert_eq!(contents.finish(&file, |_| ()).1, None);
    }
}
