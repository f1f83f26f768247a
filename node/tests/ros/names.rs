use takt_node::ros::{AskDefaults, RosError, RosOptions, serve};

use super::{EchoWorker, private_options, serve_echo};

#[test]
fn a_second_node_of_the_same_name_is_refused_and_the_first_goes_on() {
    let options = private_options();
    let first = serve_echo(&options);
    let error = serve(&options, EchoWorker::start().sender, AskDefaults::default()).unwrap_err();
    assert!(matches!(error, RosError::NameTaken { .. }), "{error}");
    let text = error.to_string();
    let node = options.node().unwrap().to_string();
    assert!(text.contains(&format!("another node named {node} is already running in domain")), "{text}");
    drop(first);
    serve(&options, EchoWorker::start().sender, AskDefaults::default()).unwrap();
}

#[test]
fn nodes_of_different_names_share_a_domain() {
    let options = private_options();
    let _first = serve_echo(&options);
    let _second = serve_echo(&RosOptions { node_name: "takt_2".to_owned(), ..options.clone() });
    let _third = serve_echo(&RosOptions { namespace: format!("{}/b", options.namespace), ..options });
}

#[test]
fn of_two_nodes_that_start_at_once_exactly_one_stays() {
    let options = private_options();
    let results: Vec<_> = std::thread::scope(|scope| {
        let start = || serve(&options, EchoWorker::start().sender, AskDefaults::default());
        let starting = [scope.spawn(start), scope.spawn(start)];
        starting.map(|thread| thread.join().unwrap()).into_iter().collect()
    });
    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1);
    let refused = results.into_iter().find_map(Result::err).unwrap();
    assert!(matches!(refused, RosError::NameTaken { .. }), "{refused}");
}
