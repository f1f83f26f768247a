//! `Attention`, `RotaryEmbedding` and `TensorScatter`, as far as exported models use them.

use super::{
    Result, RunError,
    element::Element,
    normalization::softmax_row,
    product::product,
    tensor::{Call, Data, Tensor, position},
};

/// Dimensions of four.
fn four(tensor: &Tensor, what: &str) -> Result<[usize; 4]> {
    <[usize; 4]>::try_from(&tensor.dims[..])
        .map_err(|_| RunError(format!("{what} of {:?}, four dimensions are done here", tensor.dims)))
}

/// Queries `[batch, H, sequence, d]` over keys and values `[batch, G, kv, d]`, with a mask of booleans that is stretched to `[batch, H, sequence, kv]`.
///
/// As the standard defines it: scores are rounded to the type of queries, the softmax is in that of `softmax_precision`, and its weights are
/// rounded to the type of queries again. What is masked is -∞ added: a key or value that is not a number is seen through any mask.
pub(super) fn attention(call: &Call<'_>) -> Result<Tensor> {
    call.at_most(4)?;
    let ((q, queries), (k, keys), (v, values)) = (call.floats(0)?, call.floats(1)?, call.floats(2)?);
    let ([batch, heads, sequence, depth], [key_batch, groups, kv, key_depth]) =
        (four(q, "queries")?, four(k, "keys")?);
    let misfit = || RunError(format!("queries {:?} over keys {:?} and values {:?}", q.dims, k.dims, v.dims));
    let same = q.element == k.element && q.element == v.element && k.dims == v.dims;
    if !same || batch != key_batch || depth != key_depth || groups == 0 || heads % groups != 0 {
        return Err(misfit());
    }
    let precision = match call.attributes.int("softmax_precision")? {
        None => q.element,
        Some(number) => Element::of_onnx(number)?,
    };
    let root = match call.attributes.float("scale")? {
        Some(scale) => scale.sqrt(),
        None => (depth as f32).sqrt().sqrt().recip(),
    };
    let mask = Mask::read(call.input(3)?, [batch, heads, sequence, kv])?;
    let scaled = |values: &[f32]| -> Vec<f32> { values.iter().map(|&x| q.element.round(x * root)).collect() };
    let rows = heads / groups * sequence;
    let mut out = Vec::with_capacity(queries.len());
    for place in 0..batch * groups {
        let (first_row, first_key) = (place * rows * depth, place * kv * depth);
        let queries = scaled(&queries[first_row..first_row + rows * depth]);
        let keys = scaled(&keys[first_key..first_key + kv * depth]);
        let mut scores = product(&queries, &transposed(&keys, depth), [rows, depth, kv]);
        q.element.round_all(&mut scores);
        for (row, scores) in scores.chunks_exact_mut(kv.max(1)).enumerate() {
            let head = place % groups * (heads / groups) + row / sequence;
            mask.hide([place / groups, head, row % sequence], scores);
            softmax_row(scores);
            precision.round_all(scores);
        }
        q.element.round_all(&mut scores);
        out.extend(product(&scores, &values[first_key..first_key + kv * depth], [rows, kv, depth]));
    }
    Ok(Tensor::floats(q.element, q.dims.clone(), out))
}

/// `[n, depth]` as `[depth, n]`.
fn transposed(rows: &[f32], depth: usize) -> Vec<f32> {
    (0..depth).flat_map(|column| rows.iter().skip(column).step_by(depth.max(1)).copied()).collect()
}

/// A mask of booleans.
struct Mask<'a> {
    seen: &'a [bool],
    /// 0 where a dimension is stretched.
    strides: [usize; 4],
}

impl<'a> Mask<'a> {
    fn read(mask: &'a Tensor, dims: [usize; 4]) -> Result<Self> {
        let Data::Bools(seen) = &mask.data else {
            return Err(RunError(format!("a mask of {:?}, booleans are done here", mask.element)));
        };
        let own = four(mask, "a mask")?;
        if own.iter().zip(dims).any(|(&own, dim)| own != dim && own != 1) || own[3] != dims[3] {
            return Err(RunError(format!("a mask {own:?} for scores {dims:?}")));
        }
        let strides = [0, 1, 2, 3].map(|axis| if own[axis] == 1 { 0 } else { mask.stride(axis) });
        Ok(Self { seen, strides })
    }

    fn hide(&self, at: [usize; 3], scores: &mut [f32]) {
        let first: usize = at.iter().zip(self.strides).map(|(at, stride)| at * stride).sum();
        let seen = &self.seen[first..first + scores.len()];
        scores
            .iter_mut()
            .zip(seen)
            .filter(|(_, seen)| !**seen)
            .for_each(|(score, _)| *score += f32::NEG_INFINITY);
    }
}

/// `x` `[batch, heads, sequence, d]` with tables `[positions, pairs]`, at positions `[batch, sequence]`.
pub(super) fn rotary_embedding(call: &Call<'_>) -> Result<Tensor> {
    call.at_most(4)?;
    let ((x, values), (cos, cosines), (sin, sines)) = (call.floats(0)?, call.floats(1)?, call.floats(2)?);
    let (positions, at) = call.ints(3)?;
    let [batch, heads, sequence, depth] = four(x, "what is rotated")?;
    let pairs = match call.attributes.int("rotary_embedding_dim")?.unwrap_or(0) {
        0 => depth / 2,
        dims => dims as usize / 2,
    };
    let (elements, shape) = ([cos.element, sin.element], &cos.dims);
    let fits = shape.len() == 2 && shape[1] == pairs && 2 * pairs <= depth && sin.dims == *shape;
    if !fits || elements != [x.element; 2] || positions.dims != [batch, sequence] {
        let tables = (elements, shape, &sin.dims);
        return Err(RunError(format!(
            "{:?} {:?} rotated by {tables:?} at {:?}",
            x.element, x.dims, positions.dims
        )));
    }
    let at: Vec<usize> = at.iter().map(|&idx| position(idx, shape[0])).collect::<Result<_>>()?;
    let interleaved = call.attributes.int("interleaved")?.unwrap_or(0) == 1;
    let mut out = values.to_vec();
    for (row, x) in out.chunks_exact_mut(depth.max(1)).enumerate() {
        let table = at[row / (heads * sequence) * sequence + row % sequence] * pairs;
        for pair in 0..pairs {
            let (first, second) = if interleaved { (2 * pair, 2 * pair + 1) } else { (pair, pairs + pair) };
            let (c, s, a, b) = (cosines[table + pair], sines[table + pair], x[first], x[second]);
            (x[first], x[second]) = (c * a - s * b, s * a + c * b);
        }
    }
    Ok(Tensor::floats(x.element, x.dims.clone(), out))
}

/// Where the rows of an update go: `[batch, G, capacity, d]`, from row `write_indices[b]` on.
pub(super) struct Scatter {
    /// Elements of a run of consecutive rows.
    pub run_len: usize,
    /// First element of each run, in the update's order.
    pub starts: Vec<usize>,
}

impl Scatter {
    /// Of `update` into a cache of `dims`.
    pub fn read(call: &Call<'_>, element: Element, dims: &[usize]) -> Result<Self> {
        call.at_most(3)?;
        let (update, (indices, at)) = (call.floats(1)?.0, call.ints(2)?);
        let misfit = || {
            RunError(format!("rows {:?} {:?} into a cache {element:?} {dims:?}", update.element, update.dims))
        };
        let (&[batch, groups, capacity, depth], [b, g, count, d]) = (dims, four(update, "rows")?) else {
            return Err(misfit());
        };
        let axis = call.axis("axis", -2, dims.len())?;
        if axis != 2
            || [b, g, d] != [batch, groups, depth]
            || update.element != element
            || indices.dims != [batch]
        {
            return Err(misfit());
        }
        let mut starts = Vec::with_capacity(batch * groups);
        for (lane, &first) in at.iter().enumerate() {
            let end = usize::try_from(first).ok().and_then(|first| first.checked_add(count));
            let Some(first) = end.filter(|&end| end <= capacity).map(|end| end - count) else {
                return Err(RunError(format!("{count} rows from row {first} on of a cache of {capacity}")));
            };
            starts.extend((0..groups).map(|group| ((lane * groups + group) * capacity + first) * depth));
        }
        Ok(Self { run_len: count * depth, starts })
    }
}

/// A copy of the cache with the new rows.
pub(super) fn tensor_scatter(call: &Call<'_>) -> Result<Tensor> {
    let (cache, values) = call.floats(0)?;
    let scatter = Scatter::read(call, cache.element, &cache.dims)?;
    let update = call.floats(1)?.1;
    let mut values = values.to_vec();
    for (&start, rows) in scatter.starts.iter().zip(update.chunks_exact(scatter.run_len.max(1))) {
        values[start..start + rows.len()].copy_from_slice(rows);
    }
    Ok(Tensor { element: cache.element, dims: cache.dims.clone(), data: Data::Floats(values) })
}
