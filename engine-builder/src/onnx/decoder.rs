//! Assembly: the residual stream is followed from the embedding to the output head, layer by layer.

use std::collections::{BTreeSet, HashMap};

use takt_engine::spec::DecoderSpec;

use super::{
    array::Fact,
    attention::{self, Attention},
    graph::{Graph, TensorId},
    mask,
    mlp::{self, GatedMlp},
    norm::Norm,
    rope,
    tensors::{Location, Rows},
    trace::{Origin, Trace},
};
use crate::{BuildError, Result};

/// A recognised decoder.
#[derive(Debug)]
pub struct Decoder {
    /// Its description.
    pub spec: DecoderSpec,
    /// Its tensors by canonical name.
    pub locations: HashMap<String, Location>,
}

struct Layer {
    input_norm: Norm,
    attention: Attention,
    mlp_norm: Norm,
    mlp: GatedMlp,
}

/// Recognises the decoder in `graph`; `max_context` is what the files beside it say, in tokens.
///
/// # Errors
/// Naming the operator, node or relation that is not understood.
pub fn recognise(graph: &Graph, max_context: Option<usize>) -> Result<Decoder> {
    let trace = Trace::run(graph)?;
    let mut stream = Stream::new(&trace)?;
    let mut layers = Vec::new();
    let final_norm = loop {
        let readers = stream.readers();
        if readers.contains(&trace.head) {
            break stream.final_norm(&readers)?;
        }
        layers.push(stream.layer(readers, layers.len())?);
    };
    let assembly = Assembly { trace: &trace, layers: &layers, final_norm: &final_norm };
    let spec = assembly.spec(max_context)?;
    spec.validate()?;
    Ok(Decoder { spec, locations: assembly.locations() })
}

/// The residual stream up to some layer.
struct Stream<'a, 'g> {
    trace: &'a Trace<'g>,
    /// What has been added so far.
    origins: BTreeSet<Origin>,
    /// The sum, `[tokens, hidden]`.
    sum: Vec<f64>,
    /// What each linear layer reads.
    sources: Vec<super::trace::Glue>,
}

impl<'a, 'g> Stream<'a, 'g> {
    fn new(trace: &'a Trace<'g>) -> Result<Self> {
        let node = &trace.graph.nodes[trace.embedding.node_idx];
        let output = node.output(0).ok_or_else(|| node.refuse("no output"))?;
        let sum = trace.value(output).map_err(|fact| node.refuse(&fact))?.data.clone();
        let sources = trace.linears.iter().map(|linear| trace.glue(linear.input)).collect();
        Ok(Self { trace, origins: BTreeSet::from([Origin::Embedding]), sum, sources })
    }

    /// Layers that read exactly the present stream.
    fn readers(&self) -> Vec<usize> {
        (0..self.sources.len()).filter(|idx| self.sources[*idx].origins == self.origins).collect()
    }

    fn refuse(&self, linear: usize, fact: &str) -> BuildError {
        self.trace.graph.nodes[self.trace.linears[linear].node_idx].refuse(fact)
    }

    fn layer(&mut self, readers: Vec<usize>, layer_idx: usize) -> Result<Layer> {
        let (input_norm, o) = self.branch(&readers, &format!("attention of layer {layer_idx}"))?;
        let attention = attention::read(self.trace, &self.sources[o], o)
            .map_err(|fact| self.refuse(o, &format!("attention of layer {layer_idx}: {fact}")))?;
        self.add(o)?;
        let readers = self.readers();
        let (mlp_norm, down) = self.branch(&readers, &format!("feed-forward of layer {layer_idx}"))?;
        let mlp = mlp::read(self.trace, &self.sources[down], down)
            .map_err(|fact| self.refuse(down, &format!("feed-forward of layer {layer_idx}: {fact}")))?;
        self.add(down)?;
        Ok(Layer { input_norm, attention, mlp_norm, mlp })
    }

    /// The norm in front of `readers`, and the one linear layer fed by all of them and nothing else.
    fn branch(&self, readers: &[usize], what: &str) -> Result<(Norm, usize)> {
        let Some(first) = readers.first() else {
            let last = self.trace.linears.len() - 1;
            let node = &self.trace.graph.nodes[self.trace.linears[last].node_idx];
            return Err(BuildError::Unsupported(format!(
                "ONNX graph: {what}: no linear layer reads the residual stream between embedding and output head (operator {}, node {:?})",
                node.full_op(),
                node.name
            )));
        };
        let norm = self.norm_before(readers)?;
        let wanted: BTreeSet<Origin> = readers.iter().map(|idx| Origin::Linear(*idx)).collect();
        let closing: Vec<usize> =
            (0..self.sources.len()).filter(|idx| self.sources[*idx].origins == wanted).collect();
        match closing[..] {
            [one] => Ok((norm, one)),
            _ => Err(self.refuse(
                *first,
                &format!("{what}: {} linear layers read the normalised residual stream, and {} read exactly their results, expected 1", readers.len(), closing.len()),
            )),
        }
    }

    /// The norm all `readers` share, checked against the stream.
    fn norm_before(&self, readers: &[usize]) -> Result<Norm> {
        let mut shared: Option<Norm> = None;
        for idx in readers {
            let linear = &self.trace.linears[*idx];
            let refuse = |fact: String| {
                self.refuse(*idx, &format!("reads the residual stream, but not through an RMSNorm: {fact}"))
            };
            let norm = match shared {
                Some(norm) => norm,
                None => Norm::behind(self.trace, linear.input).map_err(refuse)?,
            };
            let found = self.trace.value(linear.input).map_err(refuse)?;
            norm.check(&found.data, &self.sum).map_err(refuse)?;
            shared = Some(norm);
        }
        shared.ok_or_else(|| BuildError::Unsupported("ONNX graph: nothing reads the residual stream".into()))
    }

    fn add(&mut self, linear: usize) -> Result<()> {
        let value = self.trace.output_of(linear).map_err(|fact| self.refuse(linear, &fact))?;
        if value.data.len() != self.sum.len() {
            return Err(self.refuse(
                linear,
                &format!("makes {:?}, which cannot be added to the residual stream", value.shape),
            ));
        }
        self.sum.iter_mut().zip(&value.data).for_each(|(sum, v)| *sum += v);
        self.origins.insert(Origin::Linear(linear));
        Ok(())
    }

    fn final_norm(&self, readers: &[usize]) -> Result<Norm> {
        if readers.len() != 1 {
            return Err(self.refuse(
                self.trace.head,
                &format!("{} linear layers read the stream beside the output head", readers.len() - 1),
            ));
        }
        self.norm_before(readers)
    }
}

/// Everything found, on its way to a description.
struct Assembly<'a, 'g> {
    trace: &'a Trace<'g>,
    layers: &'a [Layer],
    final_norm: &'a Norm,
}

/// Context assumed when neither a file nor a stored rotary table tells: enough for a robot's prompt, small enough for its memory.
const DEFAULT_CONTEXT: usize = 4096;

impl Assembly<'_, '_> {
    fn spec(&self, max_context: Option<usize>) -> Result<DecoderSpec> {
        let trace = self.trace;
        let first = self.layers.first().ok_or_else(|| {
            BuildError::Unsupported("ONNX graph: no decoder layer between embedding and output head".into())
        })?;
        self.layers.iter().enumerate().try_for_each(|(idx, layer)| self.same_shape(first, layer, idx))?;
        let attention = &first.attention;
        let head = &trace.linears[trace.head];
        let refuse =
            |fact: String| trace.graph.nodes[trace.linears[attention.q.linear].node_idx].refuse(&fact);
        let (rope, table_len) = rope::resolve(trace, &attention.rope).map_err(refuse)?;
        let max_context = max_context.or(table_len).or(trace.inputs.fixed_len).unwrap_or(DEFAULT_CONTEXT);
        if head.bias.is_some() {
            return Err(trace.graph.nodes[head.node_idx].refuse("an output head with a bias"));
        }
        let has_bias = |rows: &[Rows]| rows.iter().any(|r| trace.linears[r.linear].bias.is_some());
        Ok(DecoderSpec {
            family: "onnx-decoder".into(),
            num_layers: self.layers.len(),
            hidden_size: trace.embedding.hidden_size,
            intermediate_size: first.mlp.gate.count,
            num_q_heads: attention.num_q_heads,
            num_kv_heads: attention.num_kv_heads,
            head_dim: attention.head_dim,
            vocab_size: trace.embedding.vocab_size,
            max_context,
            norm_eps: self.final_norm.epsilon as f32,
            attention_scale: attention.scale as f32,
            rope,
            qk_norm: attention.qk_norm.is_some(),
            qkv_bias: has_bias(&[attention.q, attention.k, attention.v]),
            o_bias: has_bias(&[attention.o]),
            mlp_bias: has_bias(&[first.mlp.gate, first.mlp.up, first.mlp.down]),
            tied_embeddings: self.tied(),
            windows: self.windows(max_context)?,
        })
    }

    fn same_shape(&self, first: &Layer, layer: &Layer, idx: usize) -> Result<()> {
        let (a, b) = (&first.attention, &layer.attention);
        let epsilons = [&layer.input_norm, &layer.mlp_norm]
            .into_iter()
            .chain(b.qk_norm.iter().flat_map(|(q, k)| [q, k]))
            .map(|n| n.epsilon);
        let facts = [
            (
                "head counts or widths",
                (a.num_q_heads, a.num_kv_heads, a.head_dim) == (b.num_q_heads, b.num_kv_heads, b.head_dim),
            ),
            ("rotary tables", attention::same_rotation(&a.rope, &b.rope)),
            ("attention scales", (a.scale - b.scale).abs() <= 1e-6 * a.scale.abs()),
            ("norms of heads", a.qk_norm.is_some() == b.qk_norm.is_some()),
            ("feed-forward widths", first.mlp.gate.count == layer.mlp.gate.count),
            ("epsilons", epsilons.into_iter().all(|e| (e - self.final_norm.epsilon).abs() <= 1e-6 * e)),
            ("projections with a bias", self.biases(first) == self.biases(layer)),
        ];
        match facts.iter().find(|(_, holds)| !holds) {
            Some((what, _)) => Err(BuildError::Unsupported(format!(
                "ONNX graph: layer {idx} differs from layer 0 (or the final norm) in its {what}"
            ))),
            None => self.whole_groups(layer, idx),
        }
    }

    fn biases(&self, layer: &Layer) -> Vec<bool> {
        let (a, m) = (&layer.attention, &layer.mlp);
        [a.q, a.k, a.v, a.o, m.gate, m.up, m.down]
            .iter()
            .map(|r| self.trace.linears[r.linear].bias.is_some())
            .collect()
    }

    /// The description has one flag for Q, K and V, and one for the feed-forward projections.
    fn whole_groups(&self, layer: &Layer, idx: usize) -> Result<()> {
        let biases = self.biases(layer);
        let mixed = |group: &[bool]| group.iter().any(|b| *b != group[0]);
        if mixed(&biases[..3]) || mixed(&biases[4..]) {
            return Err(BuildError::Unsupported(format!(
                "ONNX graph: in layer {idx} some of the projections of a group have a bias and some do not"
            )));
        }
        Ok(())
    }

    /// The output head is the embedding: the same constant, or an equal one (exporters store a transposed copy).
    fn tied(&self) -> bool {
        let (embedding, head) = (&self.trace.embedding.matrix, &self.trace.linears[self.trace.head].matrix);
        embedding.equals(head, self.trace.graph)
    }

    fn windows(&self, max_context: usize) -> Result<Vec<Option<usize>>> {
        let mut known: HashMap<&[TensorId], Option<usize>> = HashMap::new();
        let mut windows = Vec::with_capacity(self.layers.len());
        for layer in self.layers {
            let attention = &layer.attention;
            let window = match (attention.window, known.get(attention.masks.as_slice())) {
                (Some(window), _) => Some(window),
                (None, _) if attention.masks.is_empty() => self.operator_window(attention, max_context),
                (None, Some(window)) => *window,
                (None, None) => {
                    let found: Fact<Option<usize>> =
                        mask::long_window(self.trace, &attention.masks, max_context);
                    let node = &self.trace.graph.nodes[self.trace.linears[attention.o.linear].node_idx];
                    let found = found.map_err(|fact| node.refuse(&fact))?;
                    known.insert(&attention.masks, found);
                    found
                }
            };
            windows.push(window);
        }
        Ok(if windows.iter().all(Option::is_none) { Vec::new() } else { windows })
    }

    /// The window an attention operator states itself.
    fn operator_window(&self, attention: &Attention, max_context: usize) -> Option<usize> {
        attention.stated_window.filter(|window| *window < max_context)
    }

    fn locations(&self) -> HashMap<String, Location> {
        let trace = self.trace;
        let mut all = HashMap::new();
        let embedding = &trace.embedding;
        let matrix = |matrix: &super::linear::Matrix, count: usize| Location::Matrix {
            matrix: matrix.clone(),
            first: 0,
            count,
        };
        all.insert("model.embed_tokens.weight".to_owned(), matrix(&embedding.matrix, embedding.vocab_size));
        all.insert(
            "lm_head.weight".to_owned(),
            matrix(&trace.linears[trace.head].matrix, embedding.vocab_size),
        );
        let norm = |norm: &Norm| Location::Vector { tensor: norm.weight, first: 0, count: norm.values.len() };
        all.insert("model.norm.weight".to_owned(), norm(self.final_norm));
        for (idx, layer) in self.layers.iter().enumerate() {
            let (attention, mlp) = (&layer.attention, &layer.mlp);
            let name = |part: &str| format!("model.layers.{idx}.{part}");
            all.insert(name("input_layernorm.weight"), norm(&layer.input_norm));
            all.insert(name("post_attention_layernorm.weight"), norm(&layer.mlp_norm));
            if let Some((q, k)) = &attention.qk_norm {
                all.insert(name("self_attn.q_norm.weight"), norm(q));
                all.insert(name("self_attn.k_norm.weight"), norm(k));
            }
            let parts = [
                ("self_attn.q_proj", attention.q),
                ("self_attn.k_proj", attention.k),
                ("self_attn.v_proj", attention.v),
                ("self_attn.o_proj", attention.o),
                ("mlp.gate_proj", mlp.gate),
                ("mlp.up_proj", mlp.up),
                ("mlp.down_proj", mlp.down),
            ];
            for (part, Rows { linear, first, count }) in parts {
                let linear = &trace.linears[linear];
                all.insert(
                    name(&format!("{part}.weight")),
                    Location::Matrix { matrix: linear.matrix.clone(), first, count },
                );
                if let Some(tensor) = linear.bias {
                    all.insert(name(&format!("{part}.bias")), Location::Vector { tensor, first, count });
                }
            }
        }
        all
    }
}
