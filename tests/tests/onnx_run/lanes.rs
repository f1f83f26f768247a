//! What runs an exported decoder as its contract says: lanes side by side in one cache, sections of some of them, trees, idle lanes between.

use std::{cell::Cell, collections::HashMap, fs, path::Path};

use takt_engine_builder::export::{Contract, Dim, ElementType, Form, Port};
use takt_tests::onnx_run::{Binding, Element, Model};

use crate::section::{Buffer, LaneOf, SCRATCH_ROWS, Section, Share};

fn element(port: &Port) -> Element {
    match port.element {
        ElementType::F32 => Element::F32,
        ElementType::F16 => Element::F16,
        ElementType::Bf16 => Element::Bf16,
        ElementType::I64 => Element::I64,
        ElementType::Bool => Element::Bool,
        ElementType::F8E4M3 => Element::E4M3,
        other => panic!("{}: {other:?}", port.name),
    }
}

/// A decoder and its cache.
pub struct Lanes {
    model: Model,
    inputs: Vec<Port>,
    outputs: Vec<Port>,
    form: Form,
    /// `[num_lanes, G, rows, d]` of every layer's keys and values.
    caches: HashMap<String, Buffer>,
    rows: usize,
    lens: Vec<usize>,
    /// What went in and came out, run by run: `2.in.input_ids`.
    pub recorded: Option<Vec<(String, Buffer)>>,
    num_runs: usize,
}

/// Logits and residual streams of one lane's tokens, each `[tokens, …]`.
pub struct Outputs {
    pub logits: Vec<f32>,
    pub hidden: Vec<Vec<f32>>,
}

impl Lanes {
    /// The decoder of the export at `folder`.
    pub fn open(folder: &Path, contract: &Contract, num_lanes: usize) -> Self {
        Self::open_model(folder, contract, 0, num_lanes)
    }

    /// Model `idx` of it, which may borrow from the others' data.
    pub fn open_model(folder: &Path, contract: &Contract, idx: usize, num_lanes: usize) -> Self {
        let facts = &contract.models[idx];
        let names = contract.models.iter().map(|model| model.data_file);
        let data: Vec<_> = names.map(|name| (name, fs::read(folder.join(name)).unwrap())).collect();
        let data: Vec<(&str, &[u8])> = data.iter().map(|(name, bytes)| (*name, &bytes[..])).collect();
        let onnx = fs::read(folder.join(facts.file)).unwrap();
        let model = Model::read(&onnx, &data).unwrap();
        let cached = facts.inputs.iter().find(|port| port.name.starts_with("past_key_values.")).unwrap();
        let rows = match cached.shape[2] {
            Dim::Fixed(rows) => rows,
            Dim::Named(_) => contract.capacity,
        };
        let cache = |port: &Port| {
            let fixed = |dim: &Dim| match dim {
                Dim::Fixed(len) => Some(*len),
                Dim::Named(_) => None,
            };
            let dims = vec![num_lanes, fixed(&port.shape[1]).unwrap(), rows, fixed(&port.shape[3]).unwrap()];
            (port.name.clone(), Buffer::zeros(element(port), dims))
        };
        let caches =
            facts.inputs.iter().filter(|port| port.name.starts_with("past_key_values.")).map(cache).collect();
        let (inputs, outputs) = (facts.inputs.clone(), facts.outputs.clone());
        Self {
            model,
            inputs,
            outputs,
            form: contract.form,
            caches,
            rows,
            lens: vec![0; num_lanes],
            recorded: None,
            num_runs: 0,
        }
    }

    fn has(&self, input: &str) -> bool {
        self.inputs.iter().any(|port| port.name == input)
    }

    /// Runs one section over the lanes from the first to the last that has a share, and commits what is kept.
    pub fn run(&mut self, shares: &[Share]) -> Vec<Outputs> {
        let outputs = self.run_with(shares, Vec::new());
        let lo = shares.iter().map(|share| share.lane).min().unwrap();
        let sequence = shares.iter().map(|share| share.tokens.len()).max().unwrap();
        shares.iter().map(|share| Self::found(share, lo, sequence, &outputs)).collect()
    }

    /// The same with inputs of a head's; gives all outputs but the cache.
    pub fn run_with(
        &mut self,
        shares: &[Share],
        more: Vec<(&'static str, Buffer)>,
    ) -> HashMap<String, Buffer> {
        let lo = shares.iter().map(|share| share.lane).min().unwrap();
        let hi = shares.iter().map(|share| share.lane).max().unwrap();
        let (batch, sequence) = (hi - lo + 1, shares.iter().map(|share| share.tokens.len()).max().unwrap());
        let mut inputs = self.section(shares, lo, [batch, sequence]);
        inputs.extend(more);
        let mut outputs = self.outputs_of(batch, sequence);
        self.call(lo, batch, inputs, &mut outputs);
        if self.form == Form::Primitives {
            self.append(shares, lo, sequence, &outputs);
        }
        for share in shares {
            self.keep(share);
        }
        outputs
    }

    /// Every input but the cache.
    fn section(
        &self,
        shares: &[Share],
        lo: usize,
        [batch, sequence]: [usize; 2],
    ) -> HashMap<&'static str, Buffer> {
        let in_place = self.form == Form::Operators;
        let kv = if in_place { self.kv_len(shares, sequence) } else { self.rows + sequence };
        let mut section = Section::new(batch, sequence, kv);
        for place in 0..batch {
            let (lane, len) = (lo + place, self.lens[lo + place]);
            let share = shares.iter().find(|share| share.lane == lane);
            let write = if share.is_some() { len } else { self.rows - SCRATCH_ROWS };
            let key = if in_place { write } else { self.rows };
            section.fill(&LaneOf { place, len, write, key, share });
        }
        let mut inputs = section.inputs(self.has("attention_mask"));
        inputs.retain(|name, _| self.has(name));
        inputs
    }

    /// A bucket of rows that holds every lane's text and its new tokens.
    fn kv_len(&self, shares: &[Share], sequence: usize) -> usize {
        let longest = shares.iter().map(|share| self.lens[share.lane]).max().unwrap() + sequence;
        longest.next_power_of_two().max(16).min(self.rows)
    }

    fn outputs_of(&self, batch: usize, sequence: usize) -> HashMap<String, Buffer> {
        let size = |dim: &Dim| match dim {
            Dim::Fixed(len) => *len,
            Dim::Named(name) if name == "batch" => batch,
            Dim::Named(_) => sequence,
        };
        let own = |port: &&Port| !(self.form == Form::Operators && port.name.starts_with("present."));
        let outputs = self.outputs.iter().filter(own);
        let buffer = |port: &Port| Buffer::zeros(element(port), port.shape.iter().map(size).collect());
        outputs.map(|port| (port.name.clone(), buffer(port))).collect()
    }

    /// Binds lanes `lo..lo + batch` of the cache, in their place, and everything else; runs.
    fn call(
        &mut self,
        lo: usize,
        batch: usize,
        mut inputs: HashMap<&'static str, Buffer>,
        outputs: &mut HashMap<String, Buffer>,
    ) {
        let names: Vec<[String; 2]> = self
            .caches
            .keys()
            .map(|past| [past.clone(), past.replace("past_key_values", "present")])
            .collect();
        let mut bindings = Vec::new();
        let inputs = inputs.iter_mut().map(|(name, buffer)| (*name, buffer));
        for (name, buffer) in inputs.chain(outputs.iter_mut().map(|(name, buffer)| (name.as_str(), buffer))) {
            let bytes = Cell::from_mut(&mut buffer.bytes[..]).as_slice_of_cells();
            bindings.push(Binding::new(name, buffer.element, &buffer.dims, bytes).unwrap());
        }
        for ([past, present], buffer) in names.iter().zip(self.caches.values_mut()) {
            let lane_len = buffer.bytes.len() / buffer.dims[0];
            let dims = [&[batch], &buffer.dims[1..]].concat();
            let bytes =
                Cell::from_mut(&mut buffer.bytes[lo * lane_len..(lo + batch) * lane_len]).as_slice_of_cells();
            bindings.push(Binding::new(past, buffer.element, &dims, bytes).unwrap());
            if self.form == Form::Operators {
                bindings.push(Binding::new(present, buffer.element, &dims, bytes).unwrap());
            }
        }
        let is_output = |name: &str| self.outputs.iter().any(|port| port.name == name);
        let mut record = |kind: &str, wanted: bool| {
            let Some(recorded) = &mut self.recorded else { return };
            for binding in bindings.iter().filter(|binding| is_output(binding.name) == wanted) {
                let bytes = binding.bytes.iter().map(Cell::get).collect();
                let buffer = Buffer { element: binding.element, dims: binding.dims.clone(), bytes };
                recorded.push((format!("{}.{kind}.{}", self.num_runs, binding.name), buffer));
            }
        };
        record("in", false);
        self.model.run(&bindings).unwrap();
        record("out", true);
        self.num_runs += 1;
    }

    /// Puts the new rows behind each lane's text.
    fn append(&mut self, shares: &[Share], lo: usize, sequence: usize, outputs: &HashMap<String, Buffer>) {
        for (name, cache) in &mut self.caches {
            let new = &outputs[&name.replace("past_key_values", "present")];
            let [_, groups, rows, depth] = cache.dims[..] else { panic!() };
            let row_len = cache.element.num_bytes(depth).unwrap();
            for share in shares {
                for group in 0..groups {
                    let from = ((share.lane - lo) * groups + group) * sequence * row_len;
                    let to = ((share.lane * groups + group) * rows + self.lens[share.lane]) * row_len;
                    let len = share.tokens.len() * row_len;
                    cache.bytes[to..to + len].copy_from_slice(&new.bytes[from..from + len]);
                }
            }
        }
    }

    fn found(share: &Share, lo: usize, sequence: usize, outputs: &HashMap<String, Buffer>) -> Outputs {
        let part = |buffer: &Buffer| {
            let width = buffer.dims[2];
            let first = (share.lane - lo) * sequence * width;
            buffer.floats()[first..first + share.tokens.len() * width].to_vec()
        };
        let hidden =
            (0..).map_while(|layer| outputs.get(&format!("hidden_states.{layer}"))).map(part).collect();
        Outputs { logits: part(&outputs["logits"]), hidden }
    }

    /// Moves the rows of the path that is kept together, and commits them.
    fn keep(&mut self, share: &Share) {
        let start = self.lens[share.lane];
        for cache in self.caches.values_mut() {
            let [_, groups, rows, depth] = cache.dims[..] else { panic!() };
            let row_len = cache.element.num_bytes(depth).unwrap();
            for group in 0..groups {
                let first = ((share.lane * groups + group) * rows + start) * row_len;
                for (to, &from) in share.keep.iter().enumerate() {
                    let from = first + from * row_len;
                    cache.bytes.copy_within(from..from + row_len, first + to * row_len);
                }
            }
        }
        self.lens[share.lane] = start + share.keep.len();
    }
}
