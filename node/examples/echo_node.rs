//! A node with the interface of `takt serve` that repeats what it is told: to try a robot's wiring without a model.
//!
//! `ROS_DOMAIN_ID=7 ROS_LOCALHOST_ONLY=1 cargo run --example echo_node`, then `ros2 topic echo /takt/answer` and
//! `ros2 topic pub --once /takt/ask std_msgs/msg/String "{data: hello}"`. Ends when standard input does.

use std::error::Error;

use takt_node::request::{Event, Prompt, Reply, Request, RequestSender, Status, Timings};
use takt_node::ros::{AskDefaults, RosOptions, serve};
use tracing_subscriber::EnvFilter;

fn main() -> Result<(), Box<dyn Error>> {
    // On loopback RustDDS warns of every multicast it cannot send.
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn,rustdds=error"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let options = RosOptions::from_lookup(|name| std::env::var(name).ok())?;
    let (queue, requests) = crossbeam_channel::bounded(64);
    let worker = std::thread::Builder::new().name("echo".to_owned()).spawn(move || {
        for request in requests {
            if answer(&request).is_err() {
                eprintln!("request {:?}: nobody waits for the answer", request.id);
            }
        }
    })?;
    let node = serve(&options, RequestSender::new(queue), AskDefaults::default())?;
    println!("ready: {} in domain {}", options.node()?, options.domain_id);
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink())?;
    node.close();
    worker.join().map_err(|_| "the worker panicked")?;
    Ok(())
}

/// Repeats the prompt, a word a section.
fn answer(request: &Request) -> Result<(), crossbeam_channel::SendError<Event>> {
    let text = match &request.prompt {
        Prompt::Chat(messages) => messages.last().map(|(_, content)| content.clone()).unwrap_or_default(),
        Prompt::Raw(text) => text.clone(),
    };
    let mut offset = 0;
    for (index, word) in (0..).zip(text.split_inclusive(' ')) {
        request.events.send(Event::Tokens { id: request.id, index, offset, text: word.to_owned() })?;
        offset += word.len();
    }
    let total = request.arrived.elapsed();
    let deadline = request.deadline.map(|deadline| deadline.saturating_duration_since(request.arrived));
    request.events.send(Event::Reply(Box::new(Reply {
        id: request.id,
        status: Status::Complete,
        text,
        closing: None,
        token_ids: Vec::new(),
        prompt_token_ids: Vec::new(),
        finish_reason: "stop",
        reason: None,
        earliest_deadline: None,
        is_prompt_too_long: false,
        is_promised: false,
        speculation: None,
        timings: Timings { ttft: Some(total), total, deadline, ..Timings::default() },
    })))
}
