//! Codes and scales.

use super::{
    Result, RunError,
    element::Element,
    tensor::{Call, Tensor},
};

/// Which scale belongs to an element.
struct Scales {
    /// Elements of a step along the axis.
    stride: usize,
    /// Size of the axis.
    len: usize,
    /// Elements along the axis that share a scale.
    block: usize,
    /// Scales along the axis.
    count: usize,
    /// Whether each place of the other axes has scales of its own.
    blocked: bool,
}

impl Scales {
    /// One scale; one for each place of `axis`; or one for each block along it.
    fn read(call: &Call<'_>, x: &Tensor, scale: &Tensor) -> Result<Self> {
        let one = Self { stride: 1, len: 1, block: 1, count: 1, blocked: false };
        if scale.dims.is_empty() {
            return Ok(one);
        }
        let axis = call.axis("axis", 1, x.dims.len())?;
        let (stride, len) = (x.stride(axis), x.dims[axis]);
        let block = usize::try_from(call.attributes.int("block_size")?.unwrap_or(0)).unwrap_or(0);
        if block == 0 && scale.dims == [len] {
            return Ok(Self { stride, len, count: len, ..one });
        }
        let mut dims = x.dims.clone();
        dims[axis] = len.div_ceil(block.max(1));
        if block == 0 || scale.dims != dims {
            let (x, scale) = (&x.dims, &scale.dims);
            return Err(RunError(format!(
                "scales {scale:?} for {x:?} along axis {axis} in blocks of {block}"
            )));
        }
        Ok(Self { stride, len, block, count: dims[axis], blocked: true })
    }

    /// The scale of element `idx`.
    fn of(&self, idx: usize) -> usize {
        if self.count == 1 && !self.blocked {
            return 0;
        }
        let (inner, outer) = (idx % self.stride, idx / (self.stride * self.len));
        let place = idx / self.stride % self.len / self.block;
        match self.blocked {
            true => (outer * self.count + place) * self.stride + inner,
            false => place,
        }
    }
}

/// Codes times their scales, in the scales' type.
pub(super) fn dequantize_linear(call: &Call<'_>) -> Result<Tensor> {
    call.at_most(2)?;
    let ((x, codes), (scale, factors)) = (call.floats(0)?, call.floats(1)?);
    if !matches!(x.element, Element::E4M3 | Element::E2M1 | Element::I4) {
        return Err(RunError(format!("codes of {:?}", x.element)));
    }
    if !matches!(scale.element, Element::F32 | Element::F16 | Element::Bf16) {
        return Err(RunError(format!("scales of {:?}", scale.element)));
    }
    let scales = Scales::read(call, x, scale)?;
    let values = codes.iter().enumerate().map(|(idx, code)| code * factors[scales.of(idx)]).collect();
    Ok(Tensor::floats(scale.element, x.dims.clone(), values))
}

/// To E4M3, with one scale; the zero point says the type and is zero.
pub(super) fn quantize_linear(call: &Call<'_>) -> Result<Tensor> {
    call.at_most(3)?;
    call.attributes.only("saturate", 1)?;
    let ((x, values), (scale, factors), (zero, offset)) = (call.floats(0)?, call.floats(1)?, call.floats(2)?);
    let is_done = zero.element == Element::E4M3 && offset == [0.0] && scale.element == x.element;
    let (true, [factor]) = (is_done, factors) else {
        let (scale, zero) = ((scale.element, &scale.dims), (zero.element, &zero.dims));
        return Err(RunError(format!("{:?} quantized by {scale:?} with a zero {zero:?}", x.element)));
    };
    let codes = values.iter().map(|value| x.element.round(value / factor)).collect();
    Ok(Tensor::floats(Element::E4M3, x.dims.clone(), codes))
}

/// TensorRT's operator, after its documentation: E2M1 codes and an E4M3 scale for each block of 16 along the last axis; the second input is the
/// scale of those scales.
pub(super) fn fp4_dynamic_quantize(call: &Call<'_>) -> Result<[Tensor; 2]> {
    call.at_most(2)?;
    let ((x, values), (_, factors)) = (call.floats(0)?, call.floats(1)?);
    call.attributes.only("block_size", 16)?;
    call.attributes.only("scale_type", 17)?;
    let axis = call.axis("axis", -1, x.dims.len())?;
    let (true, [global]) = (axis + 1 == x.dims.len() && x.dims[axis] % 16 == 0, factors) else {
        return Err(RunError(format!("blocks of 16 along axis {axis} of {:?}", x.dims)));
    };
    let (mut codes, mut scales) = (Vec::with_capacity(values.len()), Vec::with_capacity(values.len() / 16));
    for block in values.chunks_exact(16) {
        let largest = block.iter().fold(0.0, |max: f32, x| if x.is_nan() { *x } else { max.max(x.abs()) });
        let step = largest / 6.0 / global;
        let step = if step == 0.0 { 1.0 } else { step.clamp(2f32.powi(-9), 448.0) };
        let step = Element::E4M3.round(step);
        scales.push(step);
        codes.extend(block.iter().map(|x| x / (step * global)));
    }
    let mut blocks = x.dims.clone();
    blocks[axis] /= 16;
    Ok([Tensor::floats(Element::E2M1, x.dims.clone(), codes), Tensor::floats(Element::E4M3, blocks, scales)])
}
