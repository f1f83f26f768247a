//! What goes into one section beside the cache: tokens and positions, what each token sees, where its row goes.

use std::collections::HashMap;

use takt_engine::TokenId;
use takt_tests::onnx_run::Element;

/// Rows at the end of each lane that belong to no token: what pads idle lanes goes there.
pub const SCRATCH_ROWS: usize = 16;

/// One lane's share of a section: tokens, each with its parent among them, and the path that is kept.
#[derive(Debug, Clone)]
pub struct Share {
    pub lane: usize,
    pub tokens: Vec<TokenId>,
    /// The first is its own parent.
    pub parents: Vec<usize>,
    pub keep: Vec<usize>,
    pub is_tree: bool,
}

impl Share {
    pub fn text(lane: usize, tokens: &[TokenId]) -> Self {
        let parents = (0..tokens.len()).map(|node| node.saturating_sub(1)).collect();
        Self { lane, tokens: tokens.to_vec(), parents, keep: (0..tokens.len()).collect(), is_tree: false }
    }

    pub fn tree(lane: usize, tokens: &[TokenId], parents: &[usize], keep: &[usize]) -> Self {
        let (tokens, parents, keep) = (tokens.to_vec(), parents.to_vec(), keep.to_vec());
        Self { lane, tokens, parents, keep, is_tree: true }
    }
}

/// An input or output in memory.
#[derive(Debug)]
pub struct Buffer {
    pub element: Element,
    pub dims: Vec<usize>,
    pub bytes: Vec<u8>,
}

impl Buffer {
    pub fn zeros(element: Element, dims: Vec<usize>) -> Self {
        let len = element.num_bytes(dims.iter().product()).unwrap();
        Self { element, dims, bytes: vec![0; len] }
    }

    pub fn of_floats(dims: Vec<usize>, values: &[f32]) -> Self {
        Self {
            element: Element::F32,
            dims,
            bytes: values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        }
    }

    pub fn floats(&self) -> Vec<f32> {
        assert_eq!(self.element, Element::F32);
        self.bytes.chunks(4).map(|four| f32::from_le_bytes(four.try_into().unwrap())).collect()
    }

    pub fn ints(dims: Vec<usize>, values: &[i64]) -> Self {
        Self {
            element: Element::I64,
            dims,
            bytes: values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        }
    }

    fn bools(dims: Vec<usize>, values: &[bool]) -> Self {
        Self { element: Element::Bool, dims, bytes: values.iter().map(|&value| u8::from(value)).collect() }
    }
}

/// One lane of a section.
#[derive(Debug, Clone, Copy)]
pub struct LaneOf<'a> {
    /// Its place in the batch.
    pub place: usize,
    /// Rows of its text.
    pub len: usize,
    /// Where the first new token's row goes, and where among the keys it is seen.
    pub write: usize,
    pub key: usize,
    /// `None` for an idle lane.
    pub share: Option<&'a Share>,
}

/// All inputs but the cache, lane by lane.
#[derive(Debug)]
pub struct Section {
    batch: usize,
    sequence: usize,
    kv: usize,
    ids: Vec<i64>,
    positions: Vec<i64>,
    mask: Vec<bool>,
    key_positions: Vec<i64>,
    write_indices: Vec<i64>,
}

impl Section {
    pub fn new(batch: usize, sequence: usize, kv: usize) -> Self {
        let num_tokens = batch * sequence;
        Self {
            batch,
            sequence,
            kv,
            ids: vec![1; num_tokens],
            positions: vec![0; num_tokens],
            mask: vec![false; num_tokens * kv],
            key_positions: vec![0; batch * kv],
            write_indices: vec![0; batch],
        }
    }

    /// Tokens of a lane; what pads it goes on behind its last.
    pub fn fill(&mut self, lane: &LaneOf<'_>) {
        self.write_indices[lane.place] = lane.write as i64;
        let (tokens, parents) =
            lane.share.map_or((&[][..], &[][..]), |share| (&share.tokens[..], &share.parents[..]));
        let padding = (tokens.len()..self.sequence).map(|node| node.saturating_sub(1));
        let parents: Vec<usize> = parents.iter().copied().chain(padding).collect();
        let keys = &mut self.key_positions[lane.place * self.kv..(lane.place + 1) * self.kv];
        keys.iter_mut().zip(0..lane.len as i64).for_each(|(position, row)| *position = row);
        let first = lane.place * self.sequence;
        for node in 0..self.sequence {
            let (path, at) = (path(&parents, node), first + node);
            self.ids[at] = tokens.get(node).map_or(1, |&token| i64::from(token));
            self.positions[at] = (lane.len + path.len() - 1) as i64;
            let seen = &mut self.mask[at * self.kv..(at + 1) * self.kv];
            // An idle lane's row may be beyond the keys that are looked at; its first is not, and is a number always.
            let text = if lane.share.is_some() { lane.len } else { lane.len.max(1) };
            seen.iter_mut().take(text).for_each(|seen| *seen = true);
            for key in path.iter().map(|ancestor| lane.key + ancestor).filter(|key| *key < self.kv) {
                seen[key] = true;
            }
            if let Some(position) = keys.get_mut(lane.key + node) {
                *position = self.positions[at];
            }
        }
    }

    /// By name. Without a mask `kv_positions` are those of all lanes.
    pub fn inputs(self, has_mask: bool) -> HashMap<&'static str, Buffer> {
        let Self { batch, sequence, kv, .. } = self;
        let tokens = || vec![batch, sequence];
        let keys = match has_mask {
            true => Buffer::ints(vec![batch, kv], &self.key_positions),
            false => Buffer::ints(vec![kv], &(0..kv as i64).collect::<Vec<_>>()),
        };
        let rows: Vec<i64> = (0..batch).flat_map(|_| 0..sequence as i64).collect();
        HashMap::from([
            ("input_ids", Buffer::ints(tokens(), &self.ids)),
            ("position_ids", Buffer::ints(tokens(), &self.positions)),
            ("write_indices", Buffer::ints(vec![batch], &self.write_indices)),
            ("attention_mask", Buffer::bools(vec![batch, sequence, kv], &self.mask)),
            ("kv_positions", keys),
            ("logits_rows", Buffer::ints(tokens(), &rows)),
        ])
    }
}

/// From `node` to its root.
fn path(parents: &[usize], node: usize) -> Vec<usize> {
    let mut path = vec![node];
    while let Some(&last) = path.last()
        && parents[last] != last
    {
        path.push(parents[last]);
    }
    path
}
