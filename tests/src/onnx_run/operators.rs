//! Every operator that exported models have, and the attributes that are understood of each.

use super::{
    Result, RunError, attention, elementwise, movement, normalization, product, quantization,
    tensor::{Call, Tensor},
};

/// How an operator is computed.
#[derive(Debug, Clone, Copy)]
enum Compute {
    /// With one output.
    One(fn(&Call<'_>) -> Result<Tensor>),
    /// With two.
    Two(fn(&Call<'_>) -> Result<[Tensor; 2]>),
}

/// An operator.
#[derive(Debug)]
pub(super) struct Operator {
    /// Its name; `domain:name` outside the standard.
    pub name: &'static str,
    /// What is understood beside its inputs. Anything else is refused when a model is read.
    pub attributes: &'static [&'static str],
    compute: Compute,
}

const fn one(
    name: &'static str,
    attributes: &'static [&'static str],
    compute: fn(&Call<'_>) -> Result<Tensor>,
) -> Operator {
    Operator { name, attributes, compute: Compute::One(compute) }
}

/// As the standard has them from opset 20 to 24, and one of TensorRT's own.
static OPERATORS: [Operator; 31] = [
    one("Add", &[], elementwise::add),
    one("And", &[], elementwise::and),
    one("Attention", &["scale", "softmax_precision"], attention::attention),
    one("Cast", &["to"], elementwise::cast),
    one("Concat", &["axis"], movement::concat),
    one("DequantizeLinear", &["axis", "block_size"], quantization::dequantize_linear),
    one("Div", &[], elementwise::div),
    one("Gather", &["axis"], movement::gather),
    one("GatherND", &["batch_dims"], movement::gather_nd),
    one("Identity", &[], movement::identity),
    one("Less", &[], elementwise::less),
    one("LessOrEqual", &[], elementwise::less_or_equal),
    one("MatMul", &[], product::mat_mul),
    one("Mul", &[], elementwise::mul),
    one("QuantizeLinear", &["saturate"], quantization::quantize_linear),
    one("RMSNormalization", &["axis", "epsilon", "stash_type"], normalization::rms_normalization),
    one("Range", &[], movement::range),
    one("ReduceMean", &["keepdims"], normalization::reduce_mean),
    one("Reshape", &["allowzero"], movement::reshape),
    one("RotaryEmbedding", &["interleaved", "rotary_embedding_dim"], attention::rotary_embedding),
    one("Shape", &["start", "end"], movement::shape),
    one("Sigmoid", &[], elementwise::sigmoid),
    one("Slice", &[], movement::slice),
    one("Softmax", &["axis"], normalization::softmax),
    one("Sqrt", &[], elementwise::sqrt),
    one("Squeeze", &[], movement::squeeze),
    one("Sub", &[], elementwise::sub),
    one("TensorScatter", &["axis"], attention::tensor_scatter),
    one("Transpose", &["perm"], movement::transpose),
    one("Unsqueeze", &[], movement::unsqueeze),
    one("Where", &[], elementwise::choose),
];

static FP4_DYNAMIC_QUANTIZE: Operator = Operator {
    name: "trt:TRT_FP4DynamicQuantize",
    attributes: &["axis", "block_size", "scale_type"],
    compute: Compute::Two(quantization::fp4_dynamic_quantize),
};

/// The operator `name` of `domain`.
pub(super) fn find(domain: &str, name: &str) -> Result<&'static Operator> {
    let name = if domain.is_empty() { name.to_owned() } else { format!("{domain}:{name}") };
    let known = OPERATORS.iter().chain([&FP4_DYNAMIC_QUANTIZE]);
    known
        .into_iter()
        .find(|operator| operator.name == name)
        .ok_or_else(|| RunError(format!("operator {name} is not there")))
}

impl Operator {
    /// Its outputs.
    pub fn compute(&self, call: &Call<'_>) -> Result<Vec<Tensor>> {
        match self.compute {
            Compute::One(compute) => Ok(vec![compute(call)?]),
            Compute::Two(compute) => Ok(compute(call)?.into()),
        }
    }
}
