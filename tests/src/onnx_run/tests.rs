//! Small graphs with known answers, and what is refused.

use std::cell::Cell;

use prost::Message as _;

use super::{
    Binding, Element, Model, Result,
    proto::{
        AttributeProto, Dimension, DimensionProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto,
        StringStringEntryProto, TensorProto, TensorShapeProto, TensorTypeProto, TypeProto, ValueInfoProto,
    },
};

/// A node with the attributes `(name, integers)`; one integer is an integer, several are a list.
pub fn node(op: &str, inputs: &[&str], outputs: &[&str], attributes: &[(&str, &[i64])]) -> NodeProto {
    let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    let attribute = |(name, values): &(&str, &[i64])| {
        let attribute = AttributeProto { name: (*name).into(), ..AttributeProto::default() };
        match values {
            [one] => AttributeProto { i: *one, r#type: 2, ..attribute },
            all => AttributeProto { ints: all.to_vec(), r#type: 7, ..attribute },
        }
    };
    NodeProto {
        input: owned(inputs),
        output: owned(outputs),
        name: format!("the {op}"),
        op_type: op.into(),
        attribute: attributes.iter().map(attribute).collect(),
        domain: String::new(),
    }
}

fn constant(name: &str, data_type: i32, dims: &[i64], raw: &[u8]) -> TensorProto {
    TensorProto {
        dims: dims.into(),
        data_type,
        name: name.into(),
        raw_data: Some(raw.into()),
        ..TensorProto::default()
    }
}

fn ints(name: &str, values: &[i64]) -> TensorProto {
    let raw: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    constant(name, 7, &[values.len() as i64], &raw)
}

fn floats(name: &str, dims: &[i64], values: &[f32]) -> TensorProto {
    let raw: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    constant(name, 1, dims, &raw)
}

/// A port of `[rows, …]`: an empty name is a length of 2.
pub fn port(name: &str, elem_type: i32, dims: &[&str]) -> ValueInfoProto {
    let dim = |dim: &&str| DimensionProto {
        value: Some(if dim.is_empty() { Dimension::Value(2) } else { Dimension::Name((*dim).into()) }),
    };
    let shape = TensorShapeProto { dim: dims.iter().map(dim).collect() };
    let tensor_type = TensorTypeProto { elem_type, shape: Some(shape) };
    ValueInfoProto { name: name.into(), r#type: Some(TypeProto { tensor_type: Some(tensor_type) }) }
}

/// The bytes of a model.
pub fn model(graph: GraphProto) -> Vec<u8> {
    let opset = OperatorSetIdProto { domain: String::new(), version: 24 };
    ModelProto { graph: Some(graph), opset_import: vec![opset] }.encode_to_vec()
}

/// A graph that only has constants, whose one node makes `out`.
fn outcome(node: NodeProto, initializer: Vec<TensorProto>) -> Result<Vec<f32>> {
    let graph =
        GraphProto { node: vec![node], initializer, input: Vec::new(), output: vec![port("out", 1, &["a"])] };
    let model = Model::read(&model(graph), &[])?;
    assert_eq!(model.num_nodes(), 0, "what follows from constants is computed once");
    let [(_, tensor)] = &model.constants[..] else { panic!("{:?}", model.constants) };
    Ok(match &tensor.data {
        super::tensor::Data::Floats(values) => values.clone(),
        super::tensor::Data::Ints(values) => values.iter().map(|&value| value as f32).collect(),
        super::tensor::Data::Bools(values) => {
            values.iter().map(|&value| f32::from(u8::from(value))).collect()
        }
    })
}

fn range(len: usize) -> Vec<f32> {
    (0..len).map(|value| value as f32).collect()
}

#[test]
fn operators_that_move_elements_give_what_the_standard_says() {
    let x = || floats("x", &[2, 3, 2], &range(12));
    let of = |op: &str, given: &[&str], attributes: &[(&str, &[i64])], more: Vec<TensorProto>| {
        let initializer = [vec![x()], more].concat();
        outcome(node(op, given, &["out"], attributes), initializer).unwrap()
    };
    assert_eq!(
        of("Transpose", &["x"], &[("perm", &[2, 0, 1])], vec![]),
        [0., 2., 4., 6., 8., 10., 1., 3., 5., 7., 9., 11.]
    );
    let slice = |starts, ends, axes| vec![ints("s", &[starts]), ints("e", &[ends]), ints("a", &[axes])];
    assert_eq!(of("Slice", &["x", "s", "e", "a"], &[], slice(1, 99, 1)), [2., 3., 4., 5., 8., 9., 10., 11.]);
    assert_eq!(of("Slice", &["x", "s", "e", "a"], &[], slice(-1, 3, -2)), [4., 5., 10., 11.]);
    assert_eq!(
        of("Gather", &["x", "i"], &[("axis", &[1])], vec![ints("i", &[2, -3])]),
        [4., 5., 0., 1., 10., 11., 6., 7.]
    );
    let at = || constant("i", 7, &[2, 1, 1], &[[2, 0, 0, 0, 0, 0, 0, 0], [0; 8]].concat());
    assert_eq!(of("GatherND", &["x", "i"], &[("batch_dims", &[1])], vec![at()]), [4., 5., 6., 7.]);
    assert_eq!(of("Concat", &["x", "x"], &[("axis", &[2])], vec![])[..8], [0., 1., 0., 1., 2., 3., 2., 3.]);
    assert_eq!(of("Shape", &["x"], &[("start", &[1]), ("end", &[2])], vec![]), [3.]);
    assert_eq!(
        of("Add", &["x", "y"], &[], vec![floats("y", &[3, 1], &[10., 20., 30.])])[..6],
        [10., 11., 22., 23., 34., 35.]
    );
    let reshaped = of("Reshape", &["x", "s"], &[], vec![ints("s", &[0, -1])]);
    assert_eq!(reshaped, range(12));
}

#[test]
fn scales_belong_to_the_whole_to_a_row_or_to_a_block() {
    // Codes of E2M1: 1, 2, 3, 4, then the same, negative.
    let codes = || constant("w", 23, &[2, 4], &[0x42, 0x65, 0xca, 0xed]);
    let of = |scale: TensorProto, attributes: &[(&str, &[i64])]| {
        outcome(node("DequantizeLinear", &["w", "s"], &["out"], attributes), vec![codes(), scale])
    };
    let whole = of(floats("s", &[], &[2.0]), &[]).unwrap();
    assert_eq!(whole, [2., 4., 6., 8., -2., -4., -6., -8.]);
    let rows = of(floats("s", &[2], &[1.0, 10.0]), &[("axis", &[0])]).unwrap();
    assert_eq!(rows, [1., 2., 3., 4., -10., -20., -30., -40.]);
    let blocked = [("axis", &[1][..]), ("block_size", &[2])];
    let blocks = of(floats("s", &[2, 2], &[1., 10., 100., 1000.]), &blocked).unwrap();
    assert_eq!(blocks, [1., 2., 30., 40., -100., -200., -3000., -4000.]);
    let error = of(floats("s", &[2, 1], &[1., 2.]), &blocked).unwrap_err().to_string();
    assert!(error.contains("DequantizeLinear") && error.contains("[2, 1]"), "{error}");
}

#[test]
fn what_is_not_known_is_refused_by_name() {
    let x = || floats("x", &[2], &[1.0, 2.0]);
    let refused = |node: NodeProto| outcome(node, vec![x()]).unwrap_err().to_string();
    let error = refused(node("Gelu", &["x"], &["out"], &[]));
    assert!(error.contains("operator Gelu is not there"), "{error}");
    let error =
        refused(NodeProto { domain: "com.microsoft".into(), ..node("Add", &["x", "x"], &["out"], &[]) });
    assert!(error.contains("com.microsoft:Add"), "{error}");
    let error = refused(node("Softmax", &["x"], &["out"], &[("stretch", &[1])]));
    assert!(error.contains("the Softmax") && error.contains("stretch"), "{error}");
    let error = refused(node("Add", &["x", "y"], &["out"], &[]));
    assert!(error.contains("\"y\" is not defined"), "{error}");
    let far = TensorProto {
        data_location: 1,
        raw_data: None,
        external_data: vec![StringStringEntryProto { key: "location".into(), value: "far.data".into() }],
        ..x()
    };
    let error = outcome(node("Identity", &["x"], &["out"], &[]), vec![far]).unwrap_err().to_string();
    assert!(error.contains("far.data"), "{error}");
    assert!(Model::read(b"no model", &[]).is_err());
}

/// `past` and rows of `new` into `present`, all `[1, 1, …, 2]`.
pub fn cache_model() -> Vec<u8> {
    let cache = |name| port(name, 1, &["batch", "groups", "rows", ""]);
    model(GraphProto {
        node: vec![node("TensorScatter", &["past", "new", "at"], &["present"], &[("axis", &[-2])])],
        initializer: Vec::new(),
        input: vec![
            cache("past"),
            port("new", 1, &["batch", "groups", "count", ""]),
            port("at", 7, &["batch"]),
        ],
        output: vec![cache("present")],
    })
}

fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

#[test]
fn a_cache_is_updated_in_its_place_or_copied_as_it_is_bound() {
    let model = Model::read(&cache_model(), &[]).unwrap();
    let (mut past, mut new, mut at, mut elsewhere) =
        (bytes(&range(8)), bytes(&[50., 51.]), 2_i64.to_le_bytes(), vec![0; 32]);
    let cells = |bytes| Cell::from_mut(bytes).as_slice_of_cells();
    let (past, new, at, elsewhere) =
        (cells(&mut past[..]), cells(&mut new[..]), cells(&mut at[..]), cells(&mut elsewhere[..]));
    let f32 = |name, rows, bytes| Binding::new(name, Element::F32, &[1, 1, rows, 2], bytes).unwrap();
    let run = |present, at| {
        let at = Binding::new("at", Element::I64, &[1], at).unwrap();
        model.run(&[f32("past", 4, past), f32("new", 1, new), at, f32("present", 4, present)])
    };
    let read = |cells: &[Cell<u8>]| -> Vec<u8> { cells.iter().map(Cell::get).collect() };
    run(elsewhere, at).unwrap();
    let expected = bytes(&[0., 1., 2., 3., 50., 51., 6., 7.]);
    assert_eq!((read(past), read(elsewhere)), (bytes(&range(8)), expected.clone()));
    run(past, at).unwrap();
    assert_eq!(read(past), expected);
    at[0].set(4);
    let error = run(past, at).unwrap_err().to_string();
    assert!(error.contains("1 rows from row 4 on of a cache of 4"), "{error}");
}

#[test]
fn bindings_that_do_not_fit_are_refused_by_name() {
    let model = Model::read(&cache_model(), &[]).unwrap();
    let mut memory = [0; 64];
    let cells = Cell::from_mut(&mut memory[..]).as_slice_of_cells();
    let f32 = |name, dims: [usize; 4]| {
        Binding::new(name, Element::F32, &dims, &cells[..4 * dims.iter().product::<usize>()]).unwrap()
    };
    let at = || Binding::new("at", Element::I64, &[1], &cells[..8]).unwrap();
    let usual =
        || vec![f32("past", [1, 1, 4, 2]), f32("new", [1, 1, 1, 2]), at(), f32("present", [1, 1, 4, 2])];
    let refused = |change: fn(&mut Vec<Binding<'_>>)| {
        let mut bindings = usual();
        change(&mut bindings);
        model.run(&bindings).unwrap_err().to_string()
    };
    model.run(&usual()).unwrap();
    let error = refused(|all| drop(all.remove(0)));
    assert!(error.contains("\"past\": is not bound"), "{error}");
    let error = refused(|all| all[2].name = "there");
    assert!(error.contains("no input or output \"there\""), "{error}");
    let error = refused(|all| all[3].dims[2] = 3);
    assert!(error.contains("\"present\"") && error.contains("[1, 1, 3, 2]"), "{error}");
    let error = refused(|all| all[1].element = Element::F16);
    assert!(error.contains("\"new\"") && error.contains("F16"), "{error}");
    assert!(Binding::new("past", Element::F32, &[3], &cells[..8]).is_err());
}

/// A tied embedding: rows of it are looked up, and all of it, transposed, is the output head.
#[test]
fn a_constant_is_kept_for_who_reads_it_each_time_though_something_follows_from_it_as_well() {
    let model = Model::read(
        &model(GraphProto {
            node: vec![
                node("Gather", &["table", "row"], &["found"], &[]),
                node("Transpose", &["table"], &["turned"], &[("perm", &[1, 0])]),
                node("MatMul", &["found", "turned"], &["out"], &[]),
            ],
            initializer: vec![floats("table", &[3, 2], &range(6))],
            input: vec![port("row", 7, &["rows"])],
            output: vec![port("out", 1, &["rows", "columns"])],
        }),
        &[],
    )
    .unwrap();
    assert_eq!(model.num_nodes(), 2);
    let (mut row, mut out) = (1_i64.to_le_bytes(), [0; 12]);
    let [row, out] = [&mut row[..], &mut out[..]].map(|bytes| Cell::from_mut(bytes).as_slice_of_cells());
    for expected in [[3.0, 13.0, 23.0], [5.0, 23.0, 41.0]] {
        let given = Binding::new("row", Element::I64, &[1], row).unwrap();
        model.run(&[given, Binding::new("out", Element::F32, &[1, 3], out).unwrap()]).unwrap();
        assert_eq!(out.iter().map(Cell::get).collect::<Vec<u8>>(), bytes(&expected));
        row[0].set(2);
    }
}
