//! A trial run: every linear layer's result is replaced by made-up activations, so that what lies between the layers can be
//! computed without any weight and compared with a decoder's equations.

use std::collections::{BTreeSet, HashMap};

use super::{
    array::{Array, Fact},
    dtype::Kind,
    evaluate::Evaluator,
    graph::{Graph, Node, TensorId},
    inputs::{Extent, Inputs},
    landmarks::{constants, find_embedding, find_logits, hidden, not_found},
    linear::{self, Embedding, Linear},
    weights,
};
use crate::{BuildError, Result};

/// Where an activation comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Origin {
    /// The token embedding.
    Embedding,
    /// Linear layer by index in [`Trace::linears`].
    Linear(usize),
}

/// Tokens of the trial run: odd, so that it is no dimension of a model.
const TRIAL_LEN: usize = 7;

/// The graph with its linear layers found and everything between them computed.
#[derive(Debug)]
pub struct Trace<'a> {
    /// The graph.
    pub graph: &'a Graph,
    /// What the caller feeds.
    pub inputs: Inputs,
    /// The token embedding.
    pub embedding: Embedding,
    /// Linear layers, each after those it depends on.
    pub linears: Vec<Linear>,
    /// The output head among them.
    pub head: usize,
    /// Tokens of the trial run.
    pub len: usize,
    constant: Vec<bool>,
    hidden: Vec<bool>,
    origins: HashMap<TensorId, Origin>,
    evaluator: Evaluator<'a>,
}

impl<'a> Trace<'a> {
    /// Finds embedding, output head and linear layers and runs what lies between.
    ///
    /// # Errors
    /// Naming the operator or input that does not fit.
    pub fn run(graph: &'a Graph) -> Result<Self> {
        let whole = graph.order_for(&graph.outputs)?;
        let constant = constants(graph, &whole);
        let (embedding, tokens) = find_embedding(graph, &whole, &constant)?;
        let inputs = Inputs::new(graph, tokens)?;
        let logits = find_logits(graph, &constant, embedding.vocab_size)?;
        let order = graph.order_for(&[logits.tensor])?;
        let len = inputs.fixed_len.unwrap_or(TRIAL_LEN);
        let mut evaluator = Evaluator::new(graph);
        let extent = Extent { past: 0, len };
        inputs
            .feed(graph, &mut evaluator, extent, |_| true)
            .map_err(|fact| BuildError::Unsupported(format!("ONNX inputs: {fact}")))?;
        let hidden = hidden(graph, &order, &embedding);
        let mut trace = Self {
            graph,
            inputs,
            embedding,
            linears: Vec::new(),
            head: 0,
            len,
            constant,
            hidden,
            origins: HashMap::new(),
            evaluator,
        };
        let mut noise = Noise(0x9e37_79b9_7f4a_7c15);
        for node_idx in order {
            trace.step(node_idx, &mut noise)?;
        }
        trace.head = trace
            .linears
            .iter()
            .position(|l| l.node_idx == logits.node_idx)
            .ok_or_else(|| not_found("the output head"))?;
        Ok(trace)
    }

    fn step(&mut self, node_idx: usize, noise: &mut Noise) -> Result<()> {
        let node = &self.graph.nodes[node_idx];
        if node.outputs.iter().flatten().all(|o| self.constant[o.0]) {
            return Ok(());
        }
        if node_idx == self.embedding.node_idx {
            let shape = self.value(self.embedding.indices).map_err(|f| node.refuse(&f))?.shape.clone();
            return self.invent(node, Origin::Embedding, shape, self.embedding.hidden_size, noise);
        }
        let reads_hidden = node.value_inputs().any(|i| self.hidden[i.0]);
        if reads_hidden && !self.absorb_bias(node, noise)? {
            if let Some(linear) = linear::recognise(self.graph, node_idx, |t| self.constant[t.0])? {
                return self.add_linear(node, linear, noise);
            }
        } else if reads_hidden {
            return Ok(());
        }
        self.evaluator.run(node)
    }

    fn add_linear(&mut self, node: &Node, linear: Linear, noise: &mut Noise) -> Result<()> {
        let input = self.value(linear.input).map_err(|f| node.refuse(&f))?.shape.clone();
        let Some((last, lead)) = input.split_last().filter(|(last, _)| **last == linear.in_features) else {
            return Err(
                node.refuse(&format!("an input of {input:?} for a weight of {} columns", linear.in_features))
            );
        };
        let _ = last;
        let (origin, width, lead) = (Origin::Linear(self.linears.len()), linear.out_features, lead.to_vec());
        self.linears.push(linear);
        self.invent(node, origin, lead, width, noise)
    }

    /// Gives the first output of `node` made-up values of shape `[lead…, width]`.
    fn invent(
        &mut self,
        node: &Node,
        origin: Origin,
        lead: Vec<usize>,
        width: usize,
        noise: &mut Noise,
    ) -> Result<()> {
        let output = node.output(0).ok_or_else(|| node.refuse("no output"))?;
        let shape = [lead.as_slice(), &[width]].concat();
        let value = noise.array(shape).map_err(|f| node.refuse(&f))?;
        self.evaluator.set(output, value);
        self.origins.insert(output, origin);
        Ok(())
    }

    /// An addition of a constant vector to a linear layer's result is that layer's bias.
    fn absorb_bias(&mut self, node: &Node, noise: &mut Noise) -> Result<bool> {
        let (Some(a), Some(b)) = (node.input(0), node.input(1)) else { return Ok(false) };
        if node.op != "Add" {
            return Ok(false);
        }
        for (value, bias) in [(a, b), (b, a)] {
            let Some(Origin::Linear(idx)) = self.origins.get(&value).copied() else { continue };
            let linear = &self.linears[idx];
            let only_reader = self.graph.tensor(value).consumers.len() == 1;
            let fits = self.constant[bias.0]
                && weights::shape(self.graph, bias).is_some_and(|s| {
                    s.last() == Some(&linear.out_features)
                        && s.iter().product::<usize>() == linear.out_features
                });
            if linear.bias.is_some() || !only_reader || !fits {
                continue;
            }
            let width = linear.out_features;
            let lead = self
                .value(value)
                .map_err(|f| node.refuse(&f))?
                .shape
                .split_last()
                .map(|(_, lead)| lead.to_vec())
                .unwrap_or_default();
            let output = node.output(0).ok_or_else(|| node.refuse("no output"))?;
            self.origins.remove(&value);
            self.linears[idx].bias = linear::unless_zero(self.graph, bias);
            self.linears[idx].output = output;
            self.invent(node, Origin::Linear(idx), lead, width, noise)?;
            return Ok(true);
        }
        Ok(false)
    }

    /// The value of a tensor in the trial run.
    ///
    /// # Errors
    /// When it was not computed.
    pub fn value(&self, tensor: TensorId) -> Fact<&Array> {
        self.evaluator
            .known(tensor)
            .map(|v| &**v)
            .ok_or_else(|| format!("{:?} has no value", self.graph.tensor(tensor).name))
    }

    /// The value of a tensor in the trial run, folding it when it is a constant.
    ///
    /// # Errors
    /// When it has none.
    pub fn value_or_constant(&self, tensor: TensorId) -> Fact<Array> {
        match self.evaluator.known(tensor) {
            Some(value) => Ok((**value).clone()),
            None => weights::small(self.graph, tensor),
        }
    }

    /// The made-up result of linear layer `idx`.
    ///
    /// # Errors
    /// Never in a completed run.
    pub fn output_of(&self, idx: usize) -> Fact<&Array> {
        self.value(self.linears[idx].output)
    }

    /// Depends on stored tensors only.
    pub fn is_constant(&self, tensor: TensorId) -> bool {
        self.constant[tensor.0] || self.graph.tensor(tensor).stored.is_some()
    }

    /// Depends on the embedding's values.
    pub fn is_hidden(&self, tensor: TensorId) -> bool {
        self.hidden[tensor.0]
    }

    /// Layers whose results reach `tensor` without another layer between, and the nodes on the way (each after its readers).
    pub fn glue(&self, tensor: TensorId) -> Glue {
        let mut glue = Glue::default();
        let mut seen = BTreeSet::new();
        let mut stack = vec![tensor];
        while let Some(at) = stack.pop() {
            if !self.hidden[at.0] {
                continue;
            }
            if let Some(origin) = self.origins.get(&at) {
                glue.origins.insert(*origin);
                continue;
            }
            let Some(node_idx) = self.graph.tensor(at).producer else { continue };
            if seen.insert(node_idx) {
                glue.nodes.push(node_idx);
                stack.extend(self.graph.nodes[node_idx].value_inputs());
            }
        }
        glue
    }
}

/// What lies between a tensor and the layers before it.
#[derive(Debug, Clone, Default)]
pub struct Glue {
    /// Layers it starts from.
    pub origins: BTreeSet<Origin>,
    /// Operators on the way.
    pub nodes: Vec<usize>,
}

impl Glue {
    /// The operators' names, for error messages.
    pub fn describe(&self, graph: &Graph) -> String {
        let names: BTreeSet<String> = self.nodes.iter().map(|idx| graph.nodes[*idx].full_op()).collect();
        names.into_iter().collect::<Vec<_>>().join(", ")
    }
}

/// Reproducible made-up activations, uniform in [-½, ½).
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> f64 {
        // xorshift64*: Vigna, "An experimental exploration of Marsaglia's xorshift generators, scrambled" (2016).
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let bits = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11;
        bits as f64 / (1_u64 << 53) as f64 - 0.5
    }

    fn array(&mut self, shape: Vec<usize>) -> Fact<Array> {
        let mut array = Array::filled(shape, Kind::Float, 0.0)?;
        array.data.iter_mut().for_each(|v| *v = self.next());
        Ok(array)
    }
}
